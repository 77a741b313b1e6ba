"""From a picture to the tensor an encoder sees. The same object trains and serves: it is saved with the run."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from captioning.kinds import Count, Fraction

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Transform:
    """Resize to a square of `size` pixels and normalise.

    fit: `crop` scales the short side to `size` and keeps the centre; `squash` scales both sides and keeps the whole frame.
    flip: the share of training pictures that are mirrored. 0 by default: captions say "left" and "right".
    zoom: training pictures are cropped to between 1 - zoom and 1 of each side before resizing.
    """

    size: Count = 224
    fit: Literal["crop", "squash"] = "crop"
    flip: Fraction = 0.0
    zoom: Fraction = 0.0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def is_random(self) -> bool:
        return self.flip > 0 or self.zoom > 0

    def picture(self, image: Image.Image) -> Image.Image:
        """What the encoder sees, as a picture: for overlays and samples."""
        if self.fit == "squash":
            return image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return ImageOps.fit(image, (self.size, self.size), Image.Resampling.BICUBIC)

    def __call__(self, image: Image.Image, generator: torch.Generator | None = None) -> Tensor:
        """(3, size, size), normalised. Augmented only when a generator is given: in training."""
        if generator is not None and self.is_random:
            image = self.augment(image, generator)
        pixels = torch.from_numpy(np.array(self.picture(image), dtype=np.float32)).permute(2, 0, 1) / 255
        return (pixels - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]

    def augment(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        mirror, scale, left, top = torch.rand(4, generator=generator).tolist()
        width, height = (max(1, round(side * (1 - self.zoom * scale))) for side in image.size)
        x, y = round(left * (image.width - width)), round(top * (image.height - height))
        image = image.crop((x, y, x + width, y + height))
        return ImageOps.mirror(image) if mirror < self.flip else image
