"""What every reader of annotations returns, and the few things that readers share."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from captioning.data.files import checked_caption, checked_name
from captioning.errors import UserError


class Record(NamedTuple):
    """One image and all its captions, as raw strings."""

    image_id: str  # the file's name (or its path below the image folder)
    path: Path
    captions: list[str]
    source: str  # "captions.csv line": with `lines`, where each caption stands
    lines: list[int]

    def where(self, index: int) -> str:
        return f"{self.source} {self.lines[index]}"


Splits = dict[str, list[Record]]


class Captions:
    """Captions collected by image in the order of the file."""

    def __init__(self, path: Path, unit: str = "line"):
        self.path, self.unit, self.source = path, unit, f"{path.name} {unit}"
        self.texts: dict[str, list[str]] = {}
        self.lines: dict[str, list[int]] = {}

    def add(self, image_id: Any, caption: Any, line: int) -> None:
        """UserError, which names file and line, for a caption that is no text, and for a name that is not one of a file below a folder."""
        where = f"{self.path} {self.unit} {line}"
        if not isinstance(image_id, str) or image_id not in self.texts:
            checked_name(image_id, where)
        checked_caption(caption, where)
        self.texts.setdefault(image_id, []).append(caption)
        self.lines.setdefault(image_id, []).append(line)

    def record(self, image_id: str, path: Path) -> Record:
        if image_id not in self.texts:
            raise UserError(f"no caption for image {image_id} in {self.path.name}: is the split file of this data set?")
        return Record(image_id, path, self.texts[image_id], self.source, self.lines[image_id])

    def records(self, image_ids: Iterable[str], folder: Path) -> list[Record]:
        return [self.record(image_id, folder / image_id) for image_id in image_ids]


def find(root: str | Path, *names: str) -> Path:
    """The first of these files or folders below the root; an error that lists what was looked for."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"data.root={root}: no such folder")
    for name in names:
        if (root / name).exists():
            return root / name
        if "*" in name and (found := sorted(root.glob(name))):
            return found[0]
    raise UserError(f"data.root={root}: holds none of {', '.join(names)}")


def split_by_hash(image_ids: Iterable[str], val: float, test: float) -> dict[str, list[str]]:
    """A split that depends on the images' names alone, not on their order or on a random number.

    Names are sorted by their SHA-256; the first `test` are the test split, the next `val` the validation split, the rest
    is for training. Shares below 1 are fractions, from 1 on they are counts of images.
    """
    ordered = sorted(set(image_ids), key=lambda name: hashlib.sha256(name.encode()).digest())
    tests, vals = (round(share * len(ordered)) if share < 1 else int(share) for share in (test, val))
    if tests + vals >= len(ordered):
        raise UserError(f"data.reader.val={val} data.reader.test={test}: nothing of {len(ordered)} images is left for training")
    return {"train": ordered[tests + vals :], "val": ordered[tests : tests + vals], "test": ordered[:tests]}


def with_records(split: Mapping[str, Iterable[str]], captions: Captions, folder: Path) -> Splits:
    return {name: captions.records(image_ids, folder) for name, image_ids in split.items()}
