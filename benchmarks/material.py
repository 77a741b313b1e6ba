"""Batches, features and decoders of the rows: sizes as in the papers, lengths as in Flickr8k. Nothing is downloaded."""

import math
import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from captioning.data.sampler import batches
from captioning.data.vocabulary import words
from captioning.models.decoders.adaptive import AdaptiveAttentionDecoder
from captioning.models.decoders.attention import SoftAttentionDecoder
from captioning.models.decoders.base import Decoder
from captioning.models.decoders.recurrent import RecurrentDecoder
from captioning.models.features import FeatureDims, ImageFeatures

ROOT = Path(__file__).resolve().parents[1]
V, FIRST_WORD = 2539, 4
DIMS = FeatureDims(grid=2048, pooled=2048)
MAX_WORDS = 37
PAD, BOS, EOS = 0, 1, 2


def flickr8k_root() -> Path | None:
    """Real data is found by FLICKR8K_ROOT or beside the checkout; without it, drawn numbers and drawings do."""
    root = Path(os.environ.get("FLICKR8K_ROOT", ROOT.parent / "shared" / "flickr8k"))
    return root if (root / "Flickr8k.token.txt").is_file() else None


@cache
def lengths_by_image() -> list[list[int]]:
    """Words of each of an image's five captions: Flickr8k's, or a fixed draw with its mean of 10.8."""
    root = flickr8k_root()
    if root is None:
        draws = torch.randn(30_000, generator=torch.Generator().manual_seed(0))
        drawn = (draws * 0.33 + math.log(10.3)).exp().round().clamp(1, MAX_WORDS).int().tolist()
        return [drawn[start : start + 5] for start in range(0, len(drawn), 5)]
    train = set((root / "Flickr_8k.trainImages.txt").read_text().split())
    found: dict[str, list[int]] = {}
    for line in (root / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines():
        name, _, caption = line.partition("\t")
        if name.partition("#")[0] in train:
            found.setdefault(name.partition("#")[0], []).append(max(1, len(words(caption)[:MAX_WORDS])))
    return [its for its in found.values() if len(its) == 5]


def all_lengths() -> list[int]:
    return [length for its in lengths_by_image() for length in its]


class Material(NamedTuple):
    """A batch for a training step."""

    features: ImageFeatures  # one row an image
    tokens: Tensor  # (B, T) <bos> words <eos> <pad>; an image's captions side by side

    @property
    def words(self) -> int:
        """Targets: the words and <eos>."""
        return int((self.tokens[:, 1:] != PAD).sum())

    @property
    def beside(self) -> ImageFeatures:
        """The features once a caption, as who knows no better has them."""
        rows = torch.arange(len(self.features.pooled), device=self.tokens.device)
        return self.features.select(rows.repeat_interleave(len(self.tokens) // len(rows)))


def tokens_of(lengths: list[int], vocabulary: int = V) -> Tensor:
    draws = torch.Generator().manual_seed(1)
    tokens = torch.randint(FIRST_WORD, vocabulary, (len(lengths), max(lengths) + 2), generator=draws)
    tokens[:, 0] = BOS
    for row, length in enumerate(lengths):
        tokens[row, length + 1] = EOS
        tokens[row, length + 2 :] = PAD
    return tokens


def features_of(images: int, cells: int, dims: FeatureDims = DIMS) -> ImageFeatures:
    """Like a ResNet's: not negative, half of them zero, and images differ by more than their cells do."""
    draws = torch.Generator().manual_seed(2)
    image = 3 * torch.randn(images, 1, dims.grid, generator=draws)
    grid = torch.randn(images, cells, dims.grid, generator=draws).add_(image).relu_()
    return ImageFeatures(grid, torch.randn(images, dims.pooled, generator=draws).relu_())


def grouped_batches(batch_size: int) -> list[list[int]]:
    """The sampler's batches of one epoch, as lengths."""
    lengths = all_lengths()
    return [[lengths[index] for index in batch] for batch in batches(lengths, batch_size, seed=0, epoch=0) if len(batch) == batch_size]


def batch_of(batch_size: int, cells: int, device: torch.device, vocabulary: int = V) -> Material:
    """The batch whose time steps are nearest the mean of an epoch."""
    epoch = grouped_batches(batch_size)
    mean = sum(map(max, epoch)) / len(epoch)
    lengths = min(epoch, key=lambda batch: abs(max(batch) - mean))
    return on(device, Material(features_of(batch_size, cells), tokens_of(lengths, vocabulary)))


def five_captions(batch_size: int, cells: int, device: torch.device) -> Material:
    """About `batch_size` captions, five of each image; images with like longest captions come together, in pools of 50 batches."""
    images = batch_size // 5
    by_longest = sorted(lengths_by_image()[: 50 * images], key=max)
    chosen = by_longest[len(by_longest) // 2 :][:images]
    return on(device, Material(features_of(images, cells), tokens_of([length for its in chosen for length in its])))


def on(device: torch.device, material: Material) -> Material:
    return Material(ImageFeatures(*(part.to(device) for part in material.features)), material.tokens.to(device))


def decoder_of(name: str, device: torch.device, *, vocabulary: int = V, dims: FeatureDims = DIMS, size: int = 512) -> Decoder:
    """attention, adaptive, lstm, gru or rnn, of `size` hidden units; without dropout, so that gradients can be compared."""
    torch.manual_seed(0)
    if name == "attention":
        decoder: Decoder = SoftAttentionDecoder(dims, vocabulary, hidden_size=size, embedding_size=size, attention_size=size, dropout=0.0)
    elif name == "adaptive":
        decoder = AdaptiveAttentionDecoder(dims, vocabulary, hidden_size=size, embedding_size=size, attention_size=size, dropout=0.0)
    else:
        decoder = RecurrentDecoder(dims, vocabulary, cell=name, hidden_size=size, embedding_size=size, dropout=0.0)  # type: ignore[arg-type]
    return decoder.to(device)
