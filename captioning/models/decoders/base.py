"""What every decoder is: `step` defines it, `forward` may only be faster. Plus words in and words out, which all decoders share."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from captioning.models.features import FeatureDims, ImageFeatures
from captioning.models.standard import Standard

State = Any
"""A NamedTuple per decoder. Its first field, `memory`, is a tuple of tensors with one row an image: what an image's hypotheses
share and is never copied for them. Every other field has one row a hypothesis."""


class DecoderOutput(NamedTuple):
    logits: Tensor  # (B*K, T, V)
    attention: Tensor | None  # (B*K, T, N)


class Decoder(nn.Module):
    """A new decoder needs `init_state` and `step`. If its state has a field `attention`, plots and losses find it there.

    uses_grid: False: it looks at the pooled vector alone, and is spared the reading of the grid.
    """

    words: "Words"
    attends = False  # whether its state has a field `attention`

    def __init__(self, feature_dims: FeatureDims, *, uses_grid: bool):
        super().__init__()
        self.uses_grid = uses_grid
        self.standard = Standard(feature_dims.grid if uses_grid else feature_dims.pooled)

    def looks_at(self, features: ImageFeatures) -> Tensor:
        """What of the image it is given: the grid (B, N, D) or the pooled vector (B, P)."""
        return features.grid if self.uses_grid else features.pooled

    def init_state(self, features: ImageFeatures) -> State:
        """The state before the first word, with one hypothesis an image."""
        raise NotImplementedError

    def begin(self, features: ImageFeatures, rows: int) -> State:
        """The state before the first word of `rows` captions, an image's captions side by side: they share what is made of the image."""
        state = self.init_state(features)
        each = rows // len(features.pooled)
        if each == 1:
            return state
        memory, *moving = state
        return type(state)(memory, *(part.repeat_interleave(each, dim=0) for part in moving))

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        """(B*K,) tokens, an image's hypotheses side by side -> logits (B*K, V) of the next token, and the state after this one."""
        raise NotImplementedError

    def forward(self, features: ImageFeatures, tokens: Tensor) -> DecoderOutput:
        """Teacher forcing: tokens (B*K, T) in, an image's captions side by side; the logits after each token out."""
        state, logits, attention = self.begin(features, len(tokens)), [], []
        for token in tokens.unbind(dim=1):
            its_logits, state = self.step(token, state)
            logits.append(its_logits)
            attention.append(attention_of(state))
        return DecoderOutput(torch.stack(logits, 1), None if attention[0] is None else torch.stack(attention, 1))

    def compile_parts(self) -> None:
        """torch.compile what runs once a word: all of `forward` would make one graph for every length of caption."""
        self.step = torch.compile(self.step, dynamic=True)


def attention_of(state: State) -> Tensor | None:
    """(B*K, N): where the last word looked, if this decoder attends."""
    return getattr(state, "attention", None)


class Words(nn.Module):
    """Word vectors in, logits out.

    tied: the vocabulary product uses the word vectors (Press and Wolf 2017), after a product that brings its input to their size.
    """

    def __init__(self, vocab_size: int, embedding_size: int, inner_size: int, *, dropout: float, tied: bool):
        super().__init__()
        self.vectors = nn.Embedding(vocab_size, embedding_size, padding_idx=0)
        self.bring = nn.Linear(inner_size, embedding_size) if tied else nn.Identity()
        self.out = nn.Linear(embedding_size if tied else inner_size, vocab_size)
        if tied:
            nn.init.normal_(self.vectors.weight, std=embedding_size**-0.5)
            self.out.weight = self.vectors.weight
        self.dropout = nn.Dropout(dropout)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.vectors(tokens))

    def logits(self, x: Tensor) -> Tensor:
        return self.out(self.bring(self.dropout(x)))


def repeated(image: Tensor, x: Tensor) -> Tensor:
    """An image's vector (B, Y) for every position of x (B*K, T, X): (B*K, T, Y)."""
    rows = image[:, None].expand(-1, len(x) // len(image), -1).flatten(0, 1)
    return rows[:, None].expand(-1, x.shape[1], -1)


def beside(image: Tensor, x: Tensor) -> Tensor:
    """x (B*K, T, X) with its image's vector (B, Y) beside every position: (B*K, T, X + Y)."""
    return torch.cat([x, repeated(image, x)], dim=-1)
