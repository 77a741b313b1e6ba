"""Descriptions where others look for them: a CSV of alt texts, and copies of the pictures that carry theirs within."""

import csv
import os
import shutil
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from captioning.errors import UserError
from captioning.serving.containers import container_of
from captioning.serving.files import writable
from captioning.serving.metadata import Exif, Iptc, Xmp

KINDS = ("exif", "xmp", "iptc")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets take a cell for that begins so


def unfinished(folder: Path) -> Path:
    """For a file until it is whole: a short name, for a picture may have the longest there is, and nobody else's."""
    return folder / f".{uuid.uuid4().hex}.unfinished"


class AltTexts:
    """`image,alt_text` as CSV (RFC 4180, UTF-8), in its place when it is whole."""

    def __init__(self, path: Path):
        self.path, self.unfinished = path, unfinished(path.parent)

    def __enter__(self) -> "AltTexts":
        if os.path.isdir(self.path):
            raise UserError(f"--alt-csv {self.path}: is a folder; a file is needed")
        try:
            self.file = open(self.unfinished, "w", encoding="utf-8", errors="backslashreplace", newline="")
        except OSError as error:
            raise self.unwritten(error) from None
        self.rows = csv.writer(self.file, lineterminator="\n")
        self.rows.writerow(["image", "alt_text"])
        return self

    def add(self, name: str, description: str) -> None:
        """A name that a spreadsheet would take for a formula begins with `./`: it still is the file's."""
        try:
            self.rows.writerow([f"./{name}" if name.startswith(FORMULA) else name, description])
        except OSError as error:
            raise self.unwritten(error) from None

    def __exit__(self, kind: object, *error: object) -> None:
        try:
            self.file.close()
            if kind is None:
                self.unfinished.replace(self.path)
        except OSError as problem:
            raise self.unwritten(problem) from None
        finally:
            with suppress(OSError):
                self.unfinished.unlink()

    def unwritten(self, error: OSError) -> UserError:
        return UserError(f"--alt-csv {self.path}: cannot be written ({error.strerror})")


class Described(NamedTuple):
    content: bytes
    kept: list[str]  # kinds of which the picture has a description of its own
    without: list[str]  # kinds that its format has no place for
    format: str


def described(content: bytes, description: str, kinds: list[str], overwrite: bool = False) -> Described:
    """The picture with its description. Its pixels are never decoded: they, and all that is not said here, stay byte for byte.

    A description of its own is kept unless `overwrite`. Raises UserError, without a name, where nothing can be written.
    """
    container = container_of(content)
    if container is None or not set(kinds) & set(container.kinds):
        formats = "JPEG alone takes" if kinds == ["iptc"] else "JPEG, PNG and WebP take"
        raise UserError(f"no place for {', '.join(kinds)} in this format; {formats} it")
    there, blocks, kept = container.read(content, kinds), {}, []
    for kind in [kind for kind in kinds if kind in container.kinds]:
        if kind == "xmp":
            blocks[kind], keeps = Xmp.read(there.get(kind)).described(description, overwrite)
            kept += [kind] * keeps
            continue
        block = (Exif if kind == "exif" else Iptc).read(there.get(kind))
        if block.description() and not overwrite:
            kept.append(kind)
        else:
            blocks[kind] = block.described(description)
    return Described(container.write(content, blocks), kept, [kind for kind in kinds if kind not in container.kinds], container.name)


class Copies:
    """Copies of pictures with their descriptions, in a folder of their own. What is there already is never touched: no original can be."""

    def __init__(self, folder: Path, kinds: list[str], overwrite: bool):
        self.folder, self.kinds, self.overwrite = folder, kinds, overwrite
        self.written = self.there = self.kept = 0
        self.without: Counter[str] = Counter()
        self.refused: list[str] = []

    def add(self, name: str, path: str, record: dict[str, str]) -> None:
        target = self.folder / name
        if os.path.lexists(target):
            self.there += 1
            return
        try:
            if not record["caption"]:
                raise UserError("the model has no words for it")
            its = described(Path(path).read_bytes(), record["description"], self.kinds, self.overwrite)
        except (UserError, OSError) as error:
            self.refused.append(f"{path}: not copied: {error.strerror if isinstance(error, OSError) else error}")
            return
        self.write(target, its.content, path)
        self.written += 1
        self.kept += bool(its.kept)
        self.without.update(f"{kind} of {its.format}" for kind in its.without)

    def write(self, target: Path, content: bytes, path: str) -> None:
        new = unfinished(target.parent)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(content)
            shutil.copymode(path, new)
            new.replace(target)
        except OSError as error:
            raise UserError(f"--into {self.folder}: {writable(target.name)} cannot be written ({error.strerror})") from None
        finally:
            with suppress(OSError):  # where all went well there is none
                new.unlink()

    def summary(self) -> str:
        parts = [f"{self.written:,} copies with a description in {self.folder}"]
        parts += [f"{self.there:,} were there before"] if self.there else []
        parts += [f"{self.kept:,} keep one of their own (--overwrite replaces it)"] if self.kept else []
        parts += [f"no place for {what} in {count:,}" for what, count in self.without.items()]
        parts += [f"{len(self.refused):,} not copied"] if self.refused else []
        return ", ".join(parts)
