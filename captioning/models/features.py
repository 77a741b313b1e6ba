"""What passes between an encoder and a decoder, and the letters used for shapes everywhere.

B images   N grid cells   D grid channels   P pooled channels   T tokens   H hidden   E embedding   V vocabulary   K beams
"""

from typing import NamedTuple

import torch
from torch import Tensor


class FeatureDims(NamedTuple):
    """They differ: VGG16's fc2 has 4096 channels, its grid 512."""

    grid: int
    pooled: int


class ImageFeatures(NamedTuple):
    grid: Tensor  # (B, N, D) one vector per cell, row by row
    pooled: Tensor  # (B, P) one vector per image

    def in_working_precision(self) -> "ImageFeatures":
        """What autocast would make of them at every use, made once; float32 outside of it."""
        kind = self.pooled.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        return ImageFeatures(self.grid.to(dtype), self.pooled.to(dtype))

    def select(self, rows: Tensor) -> "ImageFeatures":
        return ImageFeatures(self.grid[rows], self.pooled[rows])


Inputs = Tensor | ImageFeatures
"""What a model takes: images (B, 3, h, w), or the features that a cache has of them."""
