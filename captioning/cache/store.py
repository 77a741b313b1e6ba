"""Features on disk: one folder for one encoder and one set of images, refused when it is not what it says it is."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from captioning.cache.key import FORMAT, key_of
from captioning.errors import UserError
from captioning.models.features import FeatureDims

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
PARTS = ("grid", "pooled")
UNFINISHED = ".unfinished"  # what an extraction that was killed has left, and goes on from


class FeatureStore:
    """A folder with the raw numbers of `grid` (images, N, D) and `pooled` (images, P), and `index.json`: what they are of.

    Raises UserError, with the reason, for a folder that is not whole or was made for something else.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            self.index = json.loads((folder / "index.json").read_text())
            recipe, shapes, names = self.index["recipe"], self.index["shapes"], self.index["images"]
            self.dtype = DTYPES[recipe["dtype"]]
            self.shapes = {part: tuple(shapes[part]) for part in PARTS}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise refused(folder, f"its index.json is damaged ({error})") from None
        if recipe.get("format") != FORMAT or key_of(recipe) != folder.name:
            raise refused(folder, f"it is of something else (format {recipe.get('format')}, key {key_of(recipe)})")
        for part in PARTS:
            file = folder / part
            there, due = file.stat().st_size if file.exists() else 0, len(names) * self.row_bytes(part)
            if there != due:
                raise refused(folder, f"{part} has {there:,} bytes instead of {due:,}")
        self.rows = {name: row for row, name in enumerate(names)}
        self.dims = FeatureDims(self.shapes["grid"][1], self.shapes["pooled"][0])
        self.encoder_weights = (folder.parents[1] / "encoders" / self.index["encoder"], self.index["encoder_sha256"])

    def row_bytes(self, part: str) -> int:
        return torch.Size(self.shapes[part]).numel() * self.dtype.itemsize

    def map(self, part: str) -> Tensor:
        """(images, ...) as stored, mapped into memory: read from disk when it is touched, shared by all processes that do."""
        shape = (len(self.rows), *self.shapes[part])
        return torch.from_file(str(self.folder / part), size=torch.Size(shape).numel(), dtype=self.dtype).view(shape)

    def numbers_of(self, names: Sequence[str]) -> Tensor:
        """(B,) the rows of these images."""
        return torch.tensor([self.rows[name] for name in names])


def refused(folder: Path, reason: str) -> UserError:
    advice = f"`captioning cache remove {folder.name} --dir {folder.parents[1]}` has it made again, features=off does without"
    return UserError(f"feature cache {folder}: {reason}; {advice}")


class Entry(NamedTuple):
    """A line of `captioning cache list`."""

    key: str
    what: str
    images: int
    bytes: int
    state: str
    index: dict[str, Any]


def entries(root: Path) -> list[Entry]:
    found = []
    for folder in sorted((root / "features").glob("*/")):
        key, size = folder.name.removesuffix(UNFINISHED), 0
        try:
            size = sum(file.stat().st_size for file in folder.iterdir())
            index = json.loads((folder / "index.json").read_text())
            encoder, images = index["recipe"]["encoder"], len(index["images"])
            settings = " ".join(str(value) for name, value in encoder.items() if name != "_target_")
            what = f"{settings}, {index['recipe']['dtype']}, images of {index['source']}"
            state = "unfinished" if folder.name != key else "whole"
            if state == "whole":
                FeatureStore(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError):
            index, images, what, state = {}, 0, "?", "damaged"
        found.append(Entry(key, what, images, size, state, index))
    return found


def remove(root: Path, keys: Sequence[str]) -> int:
    """Delete these stores, and the encoders' weights that no other store needs. Returns the bytes set free."""
    known = entries(root)
    for key in keys:
        if key not in {entry.key for entry in known}:
            raise UserError(f"captioning cache remove {key}: no such features in {root}; `captioning cache list` shows what there is")
    freed = sum(entry.bytes for entry in known if entry.key in keys)
    for key in keys:
        try:
            with FileLock(root / "features" / f"{key}.lock", timeout=0):
                for folder in (root / "features").glob(f"{key}*/"):
                    shutil.rmtree(folder)
        except Timeout:
            raise UserError(f"captioning cache remove {key}: a process is extracting it; remove it when that has ended") from None
    needed = {entry.index.get("encoder") for entry in known if entry.key not in keys}
    for file in (root / "encoders").glob("*.safetensors"):
        if file.name not in needed:
            freed += file.stat().st_size
            file.unlink()
    return freed


def in_words(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
