"""Soft attention over the grid: Xu et al. 2015, "Show, Attend and Tell". The time loop has only what depends on the recurrence."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from captioning.kinds import Count, Dropout
from captioning.models.decoders.additive import Scores
from captioning.models.decoders.base import Decoder, DecoderOutput, State, Words
from captioning.models.decoders.later import Map, later
from captioning.models.features import FeatureDims, ImageFeatures

Score = Callable[[Tensor, Tensor], Tensor]


class AttentionState(NamedTuple):
    memory: tuple[Tensor, ...]  # what is attended to (B, N, D), its keys (B, N, A)
    hidden: Tensor  # (B*K, H)
    cell: Tensor  # (B*K, H) of an LSTM; zero wide for a GRU
    attention: Tensor  # (B*K, N)


class Attention(nn.Module):
    """Additive attention (section 3.1.2 and 4.2): score = v . tanh(key + query)."""

    def __init__(self, grid_size: int, attention_size: int):
        super().__init__()
        self.key = nn.Linear(grid_size, attention_size)
        self.score = nn.Linear(attention_size, 1, bias=False)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Queries (B, K, A) and keys (B, N, A) -> scores (B, K, N)."""
        return self.score(torch.tanh(keys[:, None] + queries[:, :, None])).squeeze(-1)


def lstm(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """(R, 4H) and the cell before -> hidden state and cell after."""
    write, keep, show, new = gates.chunk(4, dim=-1)
    cell = torch.sigmoid(keep) * cell + torch.sigmoid(write) * torch.tanh(new)
    return torch.sigmoid(show) * torch.tanh(cell), cell


def gru(from_input: Tensor, from_hidden: Tensor, hidden: Tensor) -> Tensor:
    """(R, 3H) twice and the hidden state before -> the one after."""
    update, reset, new = from_input.chunk(3, dim=-1)
    update_h, reset_h, new_h = from_hidden.chunk(3, dim=-1)
    new = torch.tanh(new + torch.sigmoid(reset + reset_h) * new_h)
    return new + torch.sigmoid(update + update_h) * (hidden - new)


class AttendingDecoder(Decoder):
    """A decoder with a loop over `advance`. What does not depend on the recurrence is outside of it: the words' products before, the
    vocabulary's after, for all steps at once; and so are the gradients of the weights used in it (`later`)."""

    attends = True
    is_compiled = False
    from_word: nn.Linear
    attention: Attention

    def maps(self) -> tuple[nn.Linear, ...]:
        """The linear maps of a step, in the order in which `advance` takes them."""
        raise NotImplementedError

    def advance(self, score: Score, maps: Sequence[Map], from_word: Tensor, state: State) -> tuple[State, Tensor]:
        """One step: the word's part of the gates (B*K, gates) and the state -> the state after, and what was seen (B*K, D)."""
        raise NotImplementedError

    def begin_loop(self) -> tuple[Score, Sequence[Map]]:
        """What one loop works with: the scores of attention and the maps, their gradients gathered. A compiler has its own ways."""
        if self.is_compiled or torch.compiler.is_exporting():
            return self.attention, self.maps()
        return Scores(self.attention.score.weight[0]), [later(linear) for linear in self.maps()]

    def answer(self, word: Tensor, hidden: Tensor, seen: Tensor) -> Tensor:
        """What the vocabulary product takes; any leading dimensions."""
        raise NotImplementedError

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        word = self.words.embed(token)
        state, seen = self.advance(*self.begin_loop(), self.from_word(word), state)
        return self.words.logits(self.answer(word, state.hidden, seen)), state

    def forward(self, features: ImageFeatures, tokens: Tensor) -> DecoderOutput:
        state, hidden, seen, attention = self.begin(features, len(tokens)), [], [], []
        loop = self.begin_loop()
        word = self.words.embed(tokens)  # (B, T, E)
        for its_part in self.from_word(word).unbind(dim=1):
            state, what = self.advance(*loop, its_part, state)
            hidden.append(state.hidden)
            seen.append(what)
            attention.append(state.attention)
        answer = self.answer(word, torch.stack(hidden, 1), torch.stack(seen, 1))
        return DecoderOutput(self.words.logits(answer), torch.stack(attention, 1))

    def compile_parts(self) -> None:
        self.advance, self.is_compiled = torch.compile(self.advance, dynamic=True), True


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
        super().__init__(feature_dims, uses_grid=True)
        self.has_cell, gates = cell == "lstm", (4 if cell == "lstm" else 3) * hidden_size
        self.attention = Attention(feature_dims.grid, attention_size)
        self.start = nn.Linear(feature_dims.grid, hidden_size * (2 if self.has_cell else 1))
        self.sizes = [attention_size, feature_dims.grid, gates]  # the query, the gate of what is seen, the cell's gates:
        self.from_hidden = nn.Linear(hidden_size, sum(self.sizes))  # one product gives all three
        self.from_word = nn.Linear(embedding_size, gates)
        self.from_seen = nn.Linear(feature_dims.grid, gates, bias=False)
        self.answer_hidden = nn.Linear(hidden_size, embedding_size)
        self.answer_seen = nn.Linear(feature_dims.grid, embedding_size, bias=False)
        self.words = Words(vocab_size, embedding_size, embedding_size, dropout=dropout, tied=tied)

    def init_state(self, features: ImageFeatures) -> AttentionState:
        grid = self.standard(features.grid)
        start = torch.tanh(self.start(grid.mean(dim=1)))  # (B, H or 2H)
        hidden, cell = start.tensor_split([self.from_hidden.in_features], dim=1)
        keys = self.attention.key(grid)  # under autocast in half precision: then so is the grid, once for all steps
        return AttentionState((grid.to(keys.dtype), keys), hidden, cell, grid.new_zeros(grid.shape[:2]))

    def maps(self) -> tuple[nn.Linear, ...]:
        return self.from_hidden, self.from_seen

    def advance(self, score: Score, maps: Sequence[Map], from_word: Tensor, state: AttentionState) -> tuple[AttentionState, Tensor]:
        from_hidden, from_seen = maps
        grid, keys = state.memory
        query, gate, gates = from_hidden(state.hidden).split(self.sizes, dim=-1)
        attention = score(query.unflatten(0, (len(keys), -1)), keys).softmax(dim=-1)  # (B, K, N), in float32
        seen = torch.sigmoid(gate) * torch.bmm(attention.to(grid.dtype), grid).flatten(0, 1)  # (B*K, D)
        from_input = from_word + from_seen(seen)
        if self.has_cell:
            hidden, cell = lstm(from_input + gates, state.cell)
        else:
            hidden, cell = gru(from_input, gates, state.hidden), state.cell
        return AttentionState(state.memory, hidden, cell, attention.flatten(0, 1)), seen

    def answer(self, word: Tensor, hidden: Tensor, seen: Tensor) -> Tensor:
        return word + self.answer_hidden(self.words.dropout(hidden)) + self.answer_seen(seen)
