"""captions.jsonl: one object a line, appended a batch at a time, so that a job that was killed goes on where it was."""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from captioning.errors import UserError
from captioning.serving.files import Answer

FORMAT = 1


def record_of(name: str, answer: Answer, with_candidates: bool) -> dict[str, Any]:
    if answer.problem:
        return {"image": name, "error": answer.problem.removeprefix(f"{answer.path}: ")}
    best = answer.candidates[0]
    record: dict[str, Any] = {"image": name, "caption": best.caption, "description": best.description, "log_p": rounded(best.log_p)}
    if with_candidates:
        record["candidates"] = [{"caption": its.caption, "log_p": rounded(its.log_p)} for its in answer.candidates]
    return record


def rounded(log_p: float) -> float:
    return round(log_p, 4)  # the digits behind depend on the batch that a picture came in


class CaptionFile:
    """`with CaptionFile(path, made_by) as file`: what is there is read, a torn last line is cut off, and nobody else writes meanwhile.

    made_by: what decides on the captions; it stands beside the file, and other captions are refused.
    captioned, broken: the names of images. A name may have two lines, where it was broken and could be read later: the second counts.
    """

    def __init__(self, path: Path, made_by: dict[str, Any]):
        self.path, self.beside = path, path.parent / f"{path.name}.about.json"
        self.made_by = {"format": FORMAT, **made_by}
        self.captioned: set[str] = set()
        self.broken: set[str] = set()

    def __enter__(self) -> "CaptionFile":
        if os.path.isdir(self.path):
            raise UserError(f"--out {self.path}: is a folder; a file is needed")
        try:
            self.file = open(self.path, "a+b")
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system frees it when its owner dies
            self.refuse_another()
            new = self.beside.with_name(f"{self.beside.name}.new")
            new.write_text(json.dumps(self.made_by, indent=1) + "\n")
            new.replace(self.beside)
            self.file.truncate(whole(self.path))
        except BlockingIOError:
            raise UserError(f"--out {self.path}: another process is writing it") from None
        except OSError as error:
            raise UserError(f"--out {self.path}: cannot be written ({error.strerror})") from None
        for record in self.records():
            self.note(record)
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def refuse_another(self) -> None:
        if self.path.stat().st_size == 0:
            return
        try:
            before = json.loads(self.beside.read_text())
            changed = [key for key, value in self.made_by.items() if before.get(key) != value]
        except (OSError, ValueError, AttributeError):
            raise UserError(
                f"--out {self.path}: there already, and {self.beside.name}, which would say what made it, is not: give another file"
            ) from None
        if changed:
            key = changed[0]
            raise UserError(
                f"--out {self.path}: was made with {key}={before.get(key)}, this is {key}={self.made_by[key]}: give another file"
            )

    def records(self) -> Iterator[dict[str, Any]]:
        with open(self.path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    record = json.loads(line)
                    is_ours = isinstance(record["image"], str) and ("error" in record or isinstance(record["description"], str))
                except (ValueError, KeyError, TypeError):
                    is_ours = False
                if not is_ours:
                    raise UserError(f"--out {self.path}: line {number} is none that this command writes; give another file, or take it out")
                yield record

    def note(self, record: dict[str, Any]) -> bool:
        """Whether it says more than is known."""
        name, is_broken = record["image"], "error" in record
        if name in self.captioned or (is_broken and name in self.broken):
            return False
        self.broken.discard(name)
        (self.broken if is_broken else self.captioned).add(name)
        return True

    def add(self, records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those that are new, now in whole lines in the system's hands."""
        new = [record for record in records if self.note(record)]
        try:
            self.file.write(b"".join(map(line, new)))
            self.file.flush()
        except OSError as error:
            raise UserError(f"--out {self.path}: cannot be written ({error.strerror}); the same command goes on") from None
        return new


def line(record: dict[str, Any]) -> bytes:
    try:
        return (json.dumps(record, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # a file's name that is not UTF-8
        return (json.dumps(record) + "\n").encode()


def whole(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    with open(path, "rb") as file:
        place = file.seek(0, os.SEEK_END)
        while place:
            start = max(0, place - 65536)
            file.seek(start)
            found = file.read(place - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            place = start
        return 0


def still_to_do(names: list[str], file: CaptionFile, batch_size: int) -> list[str]:
    """Images without a line. Before them what else stands in the batch that was interrupted: the same batches give the same digits."""
    there = file.captioned | file.broken
    first = next((number for number, name in enumerate(names) if name not in there), len(names))
    return names[first - first % batch_size : first] + [name for name in names[first:] if name not in there] if first < len(names) else []
