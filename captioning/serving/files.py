"""Picture files by the thousand: which of them are meant, and their captions in batches. Knows no format that captions are kept in."""

import fnmatch
import glob
import os
import unicodedata
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image
from torch import Tensor

from captioning.data.formats import SUFFIXES
from captioning.errors import UserError
from captioning.serving.captioner import Asked, Candidate, Captioner

THREADS = min(4, os.cpu_count() or 1)
AHEAD = 2  # batches of pictures that are read while the model has another
Item = TypeVar("Item")
Result = TypeVar("Result")


class Files(NamedTuple):
    """What was asked for: pictures below one folder, each once, in an order that is always the same."""

    folder: str  # absolute; all are below it
    paths: dict[str, str]  # name below the folder -> path as it was given or found
    named: set[str]  # names of files that were given one by one
    problems: list[str]  # sentences about what was given and is not there


def find(given: Sequence[str], without: Path | None = None) -> Files:
    """Files as they are named; of folders and of what globs match the files that end like pictures, sorted by name, subfolders among them.

    Passed over in folders and by globs: what begins with a dot (unless the pattern does), a folder that was walked before (a link may lead
    back), and the folder `without`.
    """
    if "" in given:
        raise UserError("'': no name; a picture, a folder or a pattern is needed")
    folder = os.path.commonpath([os.path.abspath(fixed_part(text)) for text in given])
    files = Files(folder, {}, set(), [])
    closed = identity(without) if without else None
    for text in given:
        if is_pattern(text):
            tops = sorted(matches(fixed_part(text), pattern_parts(text), closed, set()), key=lambda path: path.split(os.sep))
        elif os.path.isdir(text):
            tops = [text]
        else:
            files.named.add(name_below(folder, text))
            files.paths.setdefault(name_below(folder, text), str(Path(text)))
            continue
        seen, count = {closed}, 0
        for path in (path for top in tops for path in walk(top, seen, files.problems)):
            files.paths.setdefault(name_below(folder, path), path)
            count += 1
        if not count:
            is_closed = closed is not None and identity(text) == closed
            reason = "the copies go there; they need a folder of their own" if is_closed else f"no picture there ({' '.join(SUFFIXES)})"
            files.problems.append(f"{text}: {reason}")
    return files


def is_pattern(text: str) -> bool:
    return glob.has_magic(text) and not os.path.lexists(text)  # `[1].jpg` may be a file


def fixed_part(text: str) -> str:
    """The folder in which one looks for it."""
    if not is_pattern(text):
        return text if os.path.isdir(text) else os.path.dirname(text) or "."
    parts = Path(text).parts
    return str(Path(*parts[: len(parts) - len(pattern_parts(text))]))


def pattern_parts(text: str) -> tuple[str, ...]:
    parts = Path(text).parts
    return parts[next(number for number, part in enumerate(parts) if glob.has_magic(part)) :]


def name_below(folder: str, path: str) -> str:
    return os.path.abspath(path)[len(folder.rstrip(os.sep)) + 1 :].replace(os.sep, "/")


def identity(path: str | Path) -> tuple[int, int] | None:
    try:
        about = os.stat(path)
    except OSError:
        return None
    return about.st_dev, about.st_ino


def refuse_overwriting(outputs: dict[str, Path | None], paths: Iterable[str]) -> None:
    """An output (by its option) is neither a picture that is read nor another output, under whatever name."""
    taken: dict[tuple[int, int] | str, str] = {}
    for option, path in outputs.items():
        if path and (other := taken.setdefault(identity(path) or os.path.realpath(path), option)) != option:
            raise UserError(f"{option} {path}: is the file of {other} too; each needs its own")
    for path in paths if any(isinstance(its, tuple) for its in taken) else ():  # a new file is none
        if option := taken.get(identity(path) or ""):
            raise UserError(f"{option} {outputs[option]}: is one of the pictures ({writable(path)}); they are never written")


def writable(text: str) -> str:
    """For a terminal: a file's name may be no text, or a command to the terminal."""
    text = "".join(f"\\x{ord(its):02x}" if unicodedata.category(its) == "Cc" else its for its in text)
    return text.encode(errors="backslashreplace").decode()


def entries(folder: str) -> list[tuple[str, bool]]:
    """(name, is it a folder), sorted; hidden ones too."""
    with os.scandir(folder) as found:
        return sorted((entry.name, entry.is_dir()) for entry in found)


def walk(top: str, seen: set[tuple[int, int] | None], problems: list[str]) -> Iterator[str]:
    """Files below this folder that end like pictures; the file itself where it is none. `seen`: folders not to walk, and those walked."""
    pending = [(top, os.path.isdir(top))]
    while pending:
        path, is_folder = pending.pop()
        if not is_folder:
            if path.lower().endswith(SUFFIXES):
                yield path
        elif (its := identity(path)) not in seen:
            seen.add(its)
            try:
                found = [(str(Path(path, name)), is_folder) for name, is_folder in entries(path) if not name.startswith(".")]
            except OSError as error:
                problems.append(f"{path}: the folder cannot be read ({error.strerror})")
                continue
            pending += reversed(found)


def matches(folder: str, parts: Sequence[str], closed: tuple[int, int] | None, seen: set) -> Iterator[str]:
    """What a pattern matches below this folder: files and folders, `**` for any number of folders."""
    head, rest = parts[0], parts[1:]
    if (its := identity(folder)) in (None, closed) or (its, len(parts)) in seen:
        return
    seen.add((its, len(parts)))
    if head == "**" and not rest:
        yield folder
        return
    if head == "**":
        yield from matches(folder, rest, closed, seen)
    try:
        found = entries(folder)
    except OSError:
        return
    for name, is_folder in found:
        path = str(Path(folder, name))
        if name.startswith(".") and not head.startswith("."):
            continue
        if head == "**":
            if is_folder:
                yield from matches(path, parts, closed, seen)
        elif fnmatch.fnmatchcase(name, head):
            if not rest:
                yield path
            elif is_folder:
                yield from matches(path, rest, closed, seen)


class Answer(NamedTuple):
    """To one file: candidates, or the reason why there are none."""

    path: str
    candidates: list[Candidate]  # best first
    problem: str  # a sentence that names the file; empty where there are candidates
    shown: Image.Image | None  # what the encoder saw; only where it is asked where words looked


class Prepared(NamedTuple):
    pixels: Tensor | None
    shown: Image.Image | None
    problem: str


def answers(captioner: Captioner, paths: Sequence[str], asked: Asked, batch_size: int) -> Iterator[list[Answer]]:
    """A batch at a time, in order. A few threads read ahead: no more than AHEAD + 1 batches of pictures are held."""

    def prepare(path: str) -> Prepared:
        try:
            image = captioner.read(Path(path))
            return Prepared(captioner.prepare(image), captioner.transform.picture(image) if asked.looks else None, "")
        except UserError as error:
            return Prepared(None, None, str(error))

    with closing(ahead(prepare, paths, AHEAD * batch_size)) as prepared:
        for start in range(0, len(paths), batch_size):
            batch = list(islice(prepared, batch_size))
            pixels = [its.pixels for its in batch if its.pixels is not None]
            found = iter(captioner(pixels, asked) if pixels else [])
            yield [
                Answer(path, [] if its.problem else next(found), its.problem, its.shown)
                for path, its in zip(paths[start : start + batch_size], batch)
            ]


def ahead(work: Callable[[Item], Result], items: Iterable[Item], most: int) -> Generator[Result, None, None]:
    """`map` in threads, with at most so many results that nobody has taken yet."""
    pool, waiting = ThreadPoolExecutor(THREADS, "reading"), deque[Future[Result]]()
    try:
        for item in items:
            if len(waiting) == most:
                yield waiting.popleft().result()
            waiting.append(pool.submit(work, item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
