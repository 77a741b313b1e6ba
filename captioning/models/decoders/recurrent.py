"""LSTM, GRU and vanilla RNN decoders, and the places to put the image."""

from contextlib import nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from captioning.kinds import Count, Dropout
from captioning.models.decoders.base import Decoder, DecoderOutput, Words, beside, repeated
from captioning.models.features import FeatureDims, ImageFeatures

Cell = nn.LSTM | nn.GRU | nn.RNN
CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
FORGET = 1  # the place of the forget gate among those of nn.LSTM


@torch.no_grad()
def remembering(rnn: Cell) -> Cell:
    """A start from which what was read first, often the image, is not forgotten after a few words: orthogonal recurrence, gate by gate
    (Saxe et al. 2014), and an LSTM whose forget gate is open (Gers et al. 2000; Jozefowicz et al. 2015)."""
    for name, weight in rnn.named_parameters():
        for number, gate in enumerate(weight.split(rnn.hidden_size)):
            if "weight_hh" in name:
                nn.init.orthogonal_(gate)
            if "bias" in name:
                nn.init.constant_(gate, 0.5 if isinstance(rnn, nn.LSTM) and number == FORGET else 0.0)  # there are two biases
    return rnn


class RecurrentState(NamedTuple):
    memory: tuple[Tensor, ...]  # the image's vector (B, E or H) where later words need it, else nothing
    hidden: Tensor  # (B*K, layers, H)
    cell: Tensor  # (B*K, layers, H) of an LSTM; zero wide for the others


class RecurrentDecoder(Decoder):
    """Tanti, Gatt and Camilleri 2018, "Where to put the image in an image caption generator", figure 1.

    injection: `init`, the image is the first hidden state; `pre`, it is the first word; `par`, it stands beside every word;
        `merge`, it stands beside the hidden state before the vocabulary product, and the RNN knows only words. Beyond that paper:
        `pre_par`, first word and beside every word; `add`, merged by a sum and a ReLU layer, as in the Keras tutorials;
        `read`, a cell of the same kind reads the grid, cell after cell, and ends in the first hidden state (Sutskever et al. 2014).
    """

    def __init__(
        self,
        feature_dims: FeatureDims,
        vocab_size: int,
        *,
        cell: Literal["lstm", "gru", "rnn"],
        injection: Literal["init", "pre", "par", "merge", "pre_par", "add", "read"] = "init",
        hidden_size: Count = 512,
        embedding_size: Count = 512,
        layers: Count = 1,
        dropout: Dropout = 0.5,
        tied: bool = False,
    ):
        super().__init__(feature_dims, uses_grid=injection == "read")
        self.injection, self.layers, self.has_cell = injection, layers, cell == "lstm"
        self.has_first_word, self.has_companion = "pre" in injection, "par" in injection

        def recurrent(input_size: int) -> Cell:
            dropped = dropout if layers > 1 else 0.0
            return remembering(CELLS[cell](input_size, hidden_size, layers, batch_first=True, dropout=dropped))

        widths = {"init": layers * hidden_size * (2 if self.has_cell else 1), "merge": hidden_size, "add": hidden_size}
        image_width = widths.get(injection, embedding_size)
        self.image = recurrent(feature_dims.grid) if self.uses_grid else nn.Linear(feature_dims.pooled, image_width)
        self.rnn = recurrent(embedding_size * (2 if self.has_companion else 1))
        self.deep = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.ReLU()) if injection == "add" else nn.Identity()
        inner_size = hidden_size * (2 if injection == "merge" else 1)
        self.words = Words(vocab_size, embedding_size, inner_size, dropout=dropout, tied=tied)

    def init_state(self, features: ImageFeatures) -> RecurrentState:
        seen = self.standard(self.looks_at(features))
        hidden = seen.new_zeros(len(seen), self.layers, self.rnn.hidden_size)
        state = RecurrentState((), hidden, hidden if self.has_cell else hidden[:, :, :0])
        if not isinstance(self.image, nn.Linear):
            return self.run(self.image, seen, state)[1]
        image = self.image(seen)
        if self.injection == "init":
            parts = torch.tanh(image).unflatten(1, (-1, self.layers, self.rnn.hidden_size)).unbind(dim=1)
            return RecurrentState((), parts[0], parts[1] if self.has_cell else state.cell)
        image = self.words.dropout(image)
        if self.injection != "pre":
            state = state._replace(memory=(image,))
        if self.has_first_word:
            return self.run(self.rnn, self.beside_words(image[:, None], state), state)[1]
        return state

    def step(self, token: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        logits, state = self.read(token[:, None], state)
        return logits[:, 0], state

    def forward(self, features: ImageFeatures, tokens: Tensor) -> DecoderOutput:
        return DecoderOutput(self.read(tokens, self.begin(features, len(tokens)))[0], None)

    def read(self, tokens: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Any number of words at once: (B*K, T) -> (B*K, T, V)."""
        x, state = self.run(self.rnn, self.beside_words(self.words.embed(tokens), state), state)
        if self.injection == "merge":
            x = beside(state.memory[0], x)
        if self.injection == "add":
            x = self.deep(x + repeated(state.memory[0], x))
        return self.words.logits(x), state

    def beside_words(self, x: Tensor, state: RecurrentState) -> Tensor:
        return beside(state.memory[0], x) if self.has_companion else x

    def run(self, rnn: Cell, x: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        usable = x.device.type != "cpu" or torch.get_autocast_dtype("cpu") != torch.float16  # a CPU has no cells in fp16
        dtype = x.dtype if usable else torch.float32
        before = [part.transpose(0, 1).to(dtype).contiguous() for part in (state.hidden, state.cell)]
        with nullcontext() if usable else torch.autocast("cpu", enabled=False):
            x, after = rnn(x.to(dtype), tuple(before) if self.has_cell else before[0])
        hidden, cell = after if self.has_cell else (after, before[1])
        return x, RecurrentState(state.memory, hidden.transpose(0, 1), cell.transpose(0, 1))
