"""LSTM, GRU and vanilla RNN decoders on the pooled vector, with the four places to put the image."""

from contextlib import nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from captioning.kinds import Count, Dropout
from captioning.models.decoders.base import Decoder, DecoderOutput, Words, beside
from captioning.models.features import FeatureDims, ImageFeatures

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class RecurrentState(NamedTuple):
    memory: tuple[Tensor, ...]  # the image's vector (B, E or H) for par and merge, else nothing
    hidden: Tensor  # (B*K, layers, H)
    cell: Tensor  # (B*K, layers, H) of an LSTM; zero wide for the others


class RecurrentDecoder(Decoder):
    """Tanti, Gatt and Camilleri 2018, "Where to put the image in an image caption generator", figure 1.

    injection: `init`, the image is the first hidden state; `pre`, it is the first word; `par`, it stands beside every word;
        `merge`, it stands beside the hidden state before the vocabulary product, and the RNN knows only words.
    """

    uses_grid = False

    def __init__(
        self,
        feature_dims: FeatureDims,
        vocab_size: int,
        *,
        cell: Literal["lstm", "gru", "rnn"],
        injection: Literal["init", "pre", "par", "merge"] = "init",
        hidden_size: Count = 512,
        embedding_size: Count = 512,
        layers: Count = 1,
        dropout: Dropout = 0.5,
        tied: bool = False,
    ):
        super().__init__()
        self.injection, self.layers, self.has_cell = injection, layers, cell == "lstm"
        widths = {"init": layers * hidden_size * (2 if self.has_cell else 1), "merge": hidden_size}
        self.image = nn.Linear(feature_dims.pooled, widths.get(injection, embedding_size))
        self.rnn = CELLS[cell](
            embedding_size * (2 if injection == "par" else 1),
            hidden_size,
            layers,
            batch_first=True,
            dropout=dropout if layers > 1 else 0.0,
        )
        inner_size = hidden_size * (2 if injection == "merge" else 1)
        self.words = Words(vocab_size, embedding_size, inner_size, dropout=dropout, tied=tied)

    def init_state(self, features: ImageFeatures) -> RecurrentState:
        image = self.image(features.pooled)
        hidden = image.new_zeros(len(image), self.layers, self.rnn.hidden_size)
        cell = hidden if self.has_cell else hidden[:, :, :0]
        if self.injection == "init":
            parts = torch.tanh(image).unflatten(1, (-1, self.layers, self.rnn.hidden_size)).unbind(dim=1)
            return RecurrentState((), parts[0], parts[1] if self.has_cell else cell)
        if self.injection == "pre":
            return self.run(image[:, None], RecurrentState((), hidden, cell))[1]
        return RecurrentState((self.words.dropout(image),), hidden, cell)

    def step(self, token: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        logits, state = self.read(token[:, None], state)
        return logits[:, 0], state

    def forward(self, features: ImageFeatures, tokens: Tensor) -> DecoderOutput:
        return DecoderOutput(self.read(tokens, self.begin(features, len(tokens)))[0], None)

    def read(self, tokens: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Any number of words at once: (B*K, T) -> (B*K, T, V)."""
        x = self.words.embed(tokens)
        x, state = self.run(beside(state.memory[0], x) if self.injection == "par" else x, state)
        return self.words.logits(beside(state.memory[0], x) if self.injection == "merge" else x), state

    def run(self, x: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        usable = x.device.type != "cpu" or torch.get_autocast_dtype("cpu") != torch.float16  # a CPU has no cells in fp16
        dtype = x.dtype if usable else torch.float32
        before = [part.transpose(0, 1).to(dtype).contiguous() for part in (state.hidden, state.cell)]
        with nullcontext() if usable else torch.autocast("cpu", enabled=False):
            x, after = self.rnn(x.to(dtype), tuple(before) if self.has_cell else before[0])
        hidden, cell = after if self.has_cell else (after, before[1])
        return x, RecurrentState(state.memory, hidden.transpose(0, 1), cell.transpose(0, 1))
