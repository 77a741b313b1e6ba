"""What every reader of annotations returns, and the few things that readers share."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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

    def __init__(self, source: str):
        self.source = source
        self.texts: dict[str, list[str]] = {}
        self.lines: dict[str, list[int]] = {}

    def add(self, image_id: str, caption: str, line: int) -> None:
        self.texts.setdefault(image_id, []).append(caption)
        self.lines.setdefault(image_id, []).append(line)

    def record(self, image_id: str, path: Path) -> Record:
        if image_id not in self.texts:
            raise UserError(f"no caption for image {image_id} in {self.source.split()[0]}: is the split file of this data set?")
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


def read_text(path: Path) -> str:
    """UTF-8, with or without a byte order mark."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(f"{path} line {line}: not UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def read_lines(path: Path) -> list[str]:
    """Lines end at \\n alone: U+2028, form feeds and the like may stand inside a caption."""
    text = read_text(path)
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {error.lineno}: not JSON ({error.msg})") from None
    absent = [key for key in keys if key not in content] if isinstance(content, dict) else list(keys)
    if absent:
        raise UserError(f"{path}: not of the expected format, without the key {', '.join(absent)}")
    return content


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
