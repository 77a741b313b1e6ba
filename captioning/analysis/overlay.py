"""Where attention looked, as pictures: one tile a word. Knows tensors and pictures, no model."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from captioning.errors import UserError


def attention_strip(picture: Image.Image, words: Sequence[str], attention: Tensor, tile: int = 160, columns: int = 6) -> Image.Image:
    """The picture, then one tile for each word with the cells it looked at left bright.

    picture: what the encoder saw, square. attention: (T, N) with N = side * side cells, row by row.
    """
    side = round(attention.shape[1] ** 0.5)
    if side * side != attention.shape[1]:
        raise UserError(f"attention over {attention.shape[1]} cells: only square grids can be drawn")
    base = picture.resize((tile, tile), Image.Resampling.BICUBIC)
    return sheet([labelled(base, ""), *(labelled(lit(base, row), word) for word, row in zip(words, attention))], columns)


def lit(picture: Image.Image, attention: Tensor) -> Image.Image:
    """The picture with the cells that were looked at left bright; attention (N,), N = side * side cells, row by row."""
    side = round(len(attention) ** 0.5)
    row = attention.float().cpu().numpy()
    light = row.reshape(side, side) / max(float(row.max()), 1e-6)
    mask = Image.fromarray((255 * light).astype(np.uint8)).resize(picture.size, Image.Resampling.BICUBIC)
    bright = 0.15 + 0.85 * np.asarray(mask, dtype=np.float32)[:, :, None] / 255
    return Image.fromarray((np.asarray(picture, dtype=np.float32) * bright).clip(0, 255).astype(np.uint8))


def labelled(picture: Image.Image, text: str, height: int = 24) -> Image.Image:
    tile = Image.new("RGB", (picture.width, picture.height + height), "white")
    tile.paste(picture, (0, 0))
    pen = ImageDraw.Draw(tile)
    pen.text((picture.width / 2, picture.height + height / 2), text, "black", font=ImageFont.load_default(15), anchor="mm")
    return tile


def sheet(tiles: Sequence[Image.Image], columns: int, gap: int = 4) -> Image.Image:
    """Tiles of one size, row by row on white."""
    width, height = tiles[0].size
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    page = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for index, tile in enumerate(tiles):
        page.paste(tile, (gap + index % columns * (width + gap), gap + index // columns * (height + gap)))
    return page


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """One below the other."""
    page = Image.new("RGB", (max(picture.width for picture in pictures), sum(picture.height for picture in pictures)), "white")
    top = 0
    for picture in pictures:
        page.paste(picture, (0, top))
        top += picture.height
    return page
