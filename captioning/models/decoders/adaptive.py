"""Adaptive attention: Lu et al. 2017, "Knowing when to look". A visual sentinel lets the decoder look away from the image."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from captioning.kinds import Count, Dropout
from captioning.models.decoders.attention import AttendingDecoder, Attention, Score
from captioning.models.decoders.base import Words
from captioning.models.decoders.later import Map
from captioning.models.features import FeatureDims, ImageFeatures


class AdaptiveState(NamedTuple):
    memory: tuple[Tensor, ...]  # the cells (B, N, H), their keys (B, N, A), the whole image's part of the gates (B, 5H)
    hidden: Tensor  # (B*K, H)
    cell: Tensor  # (B*K, H)
    attention: Tensor  # (B*K, N); sums to what the sentinel left


class AdaptiveAttentionDecoder(AttendingDecoder):
    """Attention after the LSTM, which sees `[word; whole image]` (equations 4-13). What is missing from 1 in its attention is
    the share of the sentinel: how much the word was taken from language alone."""

    def __init__(
        self,
        feature_dims: FeatureDims,
        vocab_size: int,
        *,
        hidden_size: Count = 512,
        embedding_size: Count = 512,
        attention_size: Count = 512,
        dropout: Dropout = 0.5,
        tied: bool = False,
    ):
        super().__init__(feature_dims, uses_grid=True)
        self.cells = nn.Linear(feature_dims.grid, hidden_size)
        self.whole = nn.Linear(feature_dims.grid, embedding_size)
        gates = 5 * hidden_size  # an LSTM's four, and the sentinel's
        self.from_word = nn.Linear(embedding_size, gates)
        self.from_whole = nn.Linear(embedding_size, gates, bias=False)
        self.from_hidden = nn.Linear(hidden_size, gates, bias=False)
        self.attention = Attention(hidden_size, attention_size)
        self.query = nn.Linear(hidden_size, attention_size, bias=False)
        self.sentinel_key = nn.Linear(hidden_size, attention_size)
        self.words = Words(vocab_size, embedding_size, hidden_size, dropout=dropout, tied=tied)

    def init_state(self, features: ImageFeatures) -> AdaptiveState:
        grid = self.standard(features.grid)
        cells = self.words.dropout(torch.relu(self.cells(grid)))  # (B, N, H)
        whole = self.words.dropout(torch.relu(self.whole(grid.mean(dim=1))))  # (B, E)
        nothing = cells.new_zeros(len(cells), cells.shape[2])
        memory = (cells, self.attention.key(cells), self.from_whole(whole))
        return AdaptiveState(memory, nothing, nothing, cells.new_zeros(cells.shape[:2]))

    def maps(self) -> tuple[nn.Linear, ...]:
        return self.from_hidden, self.query, self.sentinel_key

    def advance(self, score: Score, maps: Sequence[Map], from_word: Tensor, state: AdaptiveState) -> tuple[AdaptiveState, Tensor]:
        from_hidden, to_query, sentinel_key = maps
        cells, keys, from_whole = state.memory
        images = len(cells)
        gates = (from_word.unflatten(0, (images, -1)) + from_whole[:, None]).flatten(0, 1) + from_hidden(state.hidden)
        write, keep, show, new, look_away = gates.chunk(5, dim=-1)
        cell = torch.sigmoid(keep) * state.cell + torch.sigmoid(write) * torch.tanh(new)
        hidden = torch.sigmoid(show) * torch.tanh(cell)
        sentinel = torch.sigmoid(look_away) * torch.tanh(cell)  # (B*K, H)
        query = to_query(hidden)
        on_grid = score(query.unflatten(0, (images, -1)), keys)  # (B, K, N)
        on_sentinel = self.attention.score(torch.tanh(sentinel_key(sentinel) + query)).unflatten(0, (images, -1))
        scores = torch.cat([on_grid, on_sentinel], dim=-1)
        attention = scores.softmax(dim=-1).to(cells.dtype)  # (B, K, N + 1)
        seen = torch.bmm(attention[..., :-1], cells)
        seen = (seen + attention[..., -1:] * sentinel.unflatten(0, (images, -1))).flatten(0, 1)
        return AdaptiveState(state.memory, hidden, cell, attention[..., :-1].flatten(0, 1)), seen

    def answer(self, word: Tensor, hidden: Tensor, seen: Tensor) -> Tensor:
        return hidden + seen
