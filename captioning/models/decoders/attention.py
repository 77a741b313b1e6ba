"""Soft attention over the grid: Xu et al. 2015, "Show, Attend and Tell". The time loop has only what depends on the recurrence."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from captioning.kinds import Count, Dropout
from captioning.models.decoders.base import Decoder, DecoderOutput, State, Words
from captioning.models.features import FeatureDims, ImageFeatures


class AttentionState(NamedTuple):
    memory: tuple[Tensor, ...]  # what is attended to (B, N, D), its keys (B, N, A)
    hidden: Tensor  # (B*K, H)
    cell: Tensor  # (B*K, H) of an LSTM; zero wide for a GRU
    attention: Tensor  # (B*K, N)


class Attention(nn.Module):
    """Additive attention (section 3.1.2 and 4.2): score = v . tanh(key + query)."""

    def __init__(self, grid_size: int, hidden_size: int, attention_size: int):
        super().__init__()
        self.key = nn.Linear(grid_size, attention_size)
        self.query = nn.Linear(hidden_size, attention_size, bias=False)
        self.score = nn.Linear(attention_size, 1, bias=False)

    def scores(self, hidden: Tensor, keys: Tensor) -> Tensor:
        """(B*K, H) and (B, N, A) -> (B, K, N)."""
        query = self.query(hidden).unflatten(0, (len(keys), -1))  # (B, K, A)
        return self.score(torch.tanh(keys[:, None] + query[:, :, None])).squeeze(-1)


class Cell(nn.Module):
    """An LSTM or GRU cell whose input product is made elsewhere, for all time steps at once where that is possible."""

    def __init__(self, kind: Literal["lstm", "gru"], hidden_size: int):
        super().__init__()
        self.kind, self.gates = kind, (4 if kind == "lstm" else 3) * hidden_size
        self.from_hidden = nn.Linear(hidden_size, self.gates)

    def forward(self, from_input: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """(R, gates) and the state before -> the state after."""
        from_hidden = self.from_hidden(hidden)
        if self.kind == "gru":
            update, reset, new = from_input.chunk(3, dim=-1)
            update_h, reset_h, new_h = from_hidden.chunk(3, dim=-1)
            new = torch.tanh(new + torch.sigmoid(reset + reset_h) * new_h)
            return new + torch.sigmoid(update + update_h) * (hidden - new), cell
        write, keep, show, new = (from_input + from_hidden).chunk(4, dim=-1)
        cell = torch.sigmoid(keep) * cell + torch.sigmoid(write) * torch.tanh(new)
        return torch.sigmoid(show) * torch.tanh(cell), cell


class AttendingDecoder(Decoder):
    """A decoder with a loop over `advance`; the words' products before it and the vocabulary's after it are made for all steps at once."""

    attends = True
    from_word: nn.Linear

    def advance(self, from_word: Tensor, state: State) -> tuple[State, Tensor]:
        """One step: the word's part of the gates (B*K, gates) and the state -> the state after, and what was seen (B*K, D)."""
        raise NotImplementedError

    def answer(self, word: Tensor, hidden: Tensor, seen: Tensor) -> Tensor:
        """What the vocabulary product takes; any leading dimensions."""
        raise NotImplementedError

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        word = self.words.embed(token)
        state, seen = self.advance(self.from_word(word), state)
        return self.words.logits(self.answer(word, state.hidden, seen)), state

    def forward(self, features: ImageFeatures, tokens: Tensor) -> DecoderOutput:
        state, hidden, seen, attention = self.init_state(features), [], [], []
        word = self.words.embed(tokens)  # (B, T, E)
        for its_part in self.from_word(word).unbind(dim=1):
            state, what = self.advance(its_part, state)
            hidden.append(state.hidden)
            seen.append(what)
            attention.append(state.attention)
        answer = self.answer(word, torch.stack(hidden, 1), torch.stack(seen, 1))
        return DecoderOutput(self.words.logits(answer), torch.stack(attention, 1))

    def compile_parts(self) -> None:
        self.advance = torch.compile(self.advance)


class SoftAttentionDecoder(AttendingDecoder):
    """Soft attention with its gate (section 4.2.1) and the deep output layer (equation 7)."""

    def __init__(
        self,
        feature_dims: FeatureDims,
        vocab_size: int,
        *,
        cell: Literal["lstm", "gru"] = "lstm",
        hidden_size: Count = 512,
        embedding_size: Count = 512,
        attention_size: Count = 512,
        dropout: Dropout = 0.5,
        tied: bool = False,
    ):
        super().__init__()
        self.attention = Attention(feature_dims.grid, hidden_size, attention_size)
        self.cell = Cell(cell, hidden_size)
        self.start = nn.Linear(feature_dims.grid, hidden_size * (2 if cell == "lstm" else 1))
        self.gate = nn.Linear(hidden_size, feature_dims.grid)
        self.from_word = nn.Linear(embedding_size, self.cell.gates)
        self.from_seen = nn.Linear(feature_dims.grid, self.cell.gates, bias=False)
        self.answer_hidden = nn.Linear(hidden_size, embedding_size)
        self.answer_seen = nn.Linear(feature_dims.grid, embedding_size, bias=False)
        self.words = Words(vocab_size, embedding_size, embedding_size, dropout=dropout, tied=tied)

    def init_state(self, features: ImageFeatures) -> AttentionState:
        grid = features.grid
        start = torch.tanh(self.start(grid.mean(dim=1)))  # (B, H or 2H)
        hidden, cell = start.tensor_split([self.cell.from_hidden.in_features], dim=1)
        return AttentionState((grid, self.attention.key(grid)), hidden, cell, grid.new_zeros(grid.shape[:2]))

    def advance(self, from_word: Tensor, state: AttentionState) -> tuple[AttentionState, Tensor]:
        grid, keys = state.memory
        attention = self.attention.scores(state.hidden, keys).softmax(dim=-1)  # (B, K, N)
        seen = torch.einsum("bkn,bnd->bkd", attention.to(grid.dtype), grid).flatten(0, 1)
        seen = torch.sigmoid(self.gate(state.hidden)) * seen
        hidden, cell = self.cell(from_word + self.from_seen(seen), state.hidden, state.cell)
        return AttentionState(state.memory, hidden, cell, attention.flatten(0, 1)), seen

    def answer(self, word: Tensor, hidden: Tensor, seen: Tensor) -> Tensor:
        return word + self.answer_hidden(self.words.dropout(hidden)) + self.answer_seen(seen)
