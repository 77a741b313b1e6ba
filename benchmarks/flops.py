"""Floating-point operations that the mathematics of a decoder asks for: what no implementation can do without.

Matrix products only, two operations for each multiplication with its addition; `words` counts real (row, time step) pairs,
so padding is nobody's need. Training takes each product three times (forward, gradient of the input, gradient of the
weight), but the features of a frozen encoder want no gradient.
"""

from typing import NamedTuple

from torch import nn

from captioning.models.decoders.adaptive import AdaptiveAttentionDecoder
from captioning.models.decoders.attention import SoftAttentionDecoder
from captioning.models.decoders.base import Decoder
from captioning.models.decoders.recurrent import RecurrentDecoder
from captioning.models.features import FeatureDims


class Flops(NamedTuple):
    images: int  # once an image, on its features: no gradient to them
    inner: int  # once an image, on what has a gradient
    words: int  # once a word

    @property
    def forward(self) -> int:
        return self.images + self.inner + self.words

    @property
    def training(self) -> int:
        return 2 * self.images + 3 * (self.inner + self.words)


class Sizes(NamedTuple):
    images: int
    cells: int
    words: int


def flops_of(decoder: Decoder, dims: FeatureDims, sizes: Sizes) -> Flops:
    """Of the forward pass over `sizes.words` words of `sizes.images` images."""
    B, N, words = sizes
    out, E = decoder.words.out.weight.numel(), decoder.words.vectors.weight.shape[1]
    if isinstance(decoder, SoftAttentionDecoder):
        D, H, A = dims.grid, decoder.from_hidden.in_features, decoder.attention.key.out_features
        gates = decoder.from_word.out_features
        start = D * decoder.start.out_features
        attend = H * A + N * A + N * D  # query, scores, weighted sum
        word = attend + H * D + (E + D + H) * gates + (H + D) * E + out
        return Flops(2 * B * (N * D * A + start), 0, 2 * words * word)
    if isinstance(decoder, AdaptiveAttentionDecoder):
        D, H, A = dims.grid, decoder.cells.out_features, decoder.attention.key.out_features
        attend = H * A + N * A + N * H + H * A + A  # query, scores, weighted sum, the sentinel's key and score
        word = attend + (E + H) * 5 * H + out
        return Flops(2 * B * (N * D * H + D * E), 2 * B * (N * H * A + E * 5 * H), 2 * words * word)
    assert isinstance(decoder, RecurrentDecoder)
    image, inside = products(decoder.image), products(decoder.rnn)
    after = inside if decoder.has_first_word else 0  # once an image, on what has a gradient
    if isinstance(decoder.image, nn.RNNBase):  # it reads N cells; only the first layer's input is a feature
        on_cell = decoder.image.get_parameter("weight_ih_l0").numel()
        image, after = N * on_cell, N * (image - on_cell)
    return Flops(2 * B * image, 2 * B * after, 2 * words * (inside + products(decoder.deep) + out))


def products(module: nn.Module) -> int:
    """Multiplications of one row with every matrix of the module."""
    return sum(weight.numel() for weight in module.parameters() if weight.dim() == 2)
