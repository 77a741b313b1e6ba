"""What `captioning caption` does with many files: shows their captions, or keeps them."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from captioning.analysis.overlay import stacked
from captioning.analysis.samples import strip
from captioning.errors import Stopped, UserError
from captioning.serving.alt_text import AltTexts, Copies
from captioning.serving.caption_file import CaptionFile, record_of, still_to_do
from captioning.serving.captioner import Asked, Captioner
from captioning.serving.files import Answer, Files, answers, writable
from captioning.training.console import progress, say

MOST_SAID = 10  # sentences about single files; all are counted


def show(captioner: Captioner, files: Files, asked: Asked, batch_size: int, as_json: bool, attention: Path | None) -> None:
    """On standard output, as they come; as JSON all at once."""
    result, strips, broken = {}, [], {}
    for batch in in_batches(captioner, list(files.paths), files, asked, batch_size):
        for name, answer in batch:
            path, found = answer.path, answer.candidates
            if answer.problem:
                broken[name] = answer.problem
                continue
            if answer.shown:
                strips.append(strip(answer.shown, found[0].caption, found[0].attention))
            if as_json:
                its = [{"caption": candidate.caption, "log_p": candidate.log_p} for candidate in found]
                result[path] = its if asked.candidates > 1 else found[0].caption
                continue
            for candidate in found:
                print(f"{writable(path)}: {candidate.caption}" + (f"  ({candidate.log_p:.2f})" if asked.candidates > 1 else ""))
    if as_json:
        print(json.dumps(result, indent=1))
    if attention and strips:
        try:
            stacked(strips).save(attention)
        except (OSError, ValueError) as error:  # Pillow's own have no number
            raise UserError(f"--attention {attention}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
        print(f"{attention} shows where each word looked", file=sys.stderr)
    if len(files.named) < len(files.paths):
        say_some([problem for name, problem in broken.items() if name not in files.named])
        print(f"{len(files.paths) - len(broken):,} captioned, {len(broken):,} broken", file=sys.stderr)
    refuse(files, broken)


def keep(
    captioner: Captioner,
    files: Files,
    asked: Asked,
    batch_size: int,
    *,
    file: CaptionFile | None,
    alt_texts: AltTexts | None,
    copies: Copies | None,
) -> None:
    """In files. What the caption file has already is taken from there; what was broken is tried once more, after all others."""
    names, broken, before, captioned = list(files.paths), {}, 0, 0
    with ExitStack() as stack:
        for context in (its for its in (file, alt_texts) if its is not None):
            stack.enter_context(context)

        def describe(records: Iterable[dict[str, Any]]) -> None:
            for record in (record for record in records if "error" not in record):
                if alt_texts:
                    alt_texts.add(record["image"], record["description"])
                if copies and record["image"] in files.paths:
                    copies.add(record["image"], files.paths[record["image"]], record)

        passes = [names]
        if file:
            passes = [still_to_do(names, file, batch_size), [name for name in names if name in file.broken]]
            captioned = before = sum(name in file.captioned for name in names)
        try:
            if file and (alt_texts or copies):
                describe(file.records())
            with progress("captioning", len(names), before) as advance:
                for batch in (batch for some in passes for batch in in_batches(captioner, some, files, asked, batch_size)):
                    broken.update({name: answer.problem for name, answer in batch if answer.problem})
                    records = [record_of(name, answer, asked.candidates > 1) for name, answer in batch]
                    records = file.add(records) if file else records
                    describe(records)
                    captioned += sum("error" not in record for record in records)
                    advance(len(records), f"{len(broken)} broken" if broken else "")
        except KeyboardInterrupt:
            if not file:
                raise
            raise Stopped(f"stopped; {captioned:,} of {len(names):,} are captioned in {file.path}; the same command goes on") from None
    counts = f"{captioned:,} captioned" + (f" ({before:,} of them before)" if before else "") + f", {len(broken):,} broken"
    say(counts + (f" (listed in {file.path})" if file and broken else ""))
    if not file:
        say_some([problem for name, problem in broken.items() if name not in files.named])
    if copies:
        say(copies.summary())
        say_some(copies.refused)
    refuse(files, broken)


def in_batches(
    captioner: Captioner, names: Sequence[str], files: Files, asked: Asked, batch_size: int
) -> Iterator[list[tuple[str, Answer]]]:
    """Each answer with the name of its image."""
    place = 0
    with enough_memory(batch_size):
        for batch in answers(captioner, [files.paths[name] for name in names], asked, batch_size):
            yield list(zip(names[place : place + len(batch)], batch))
            place += len(batch)


@contextmanager
def enough_memory(batch_size: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(f"--batch-size {batch_size}: the device has no memory for so many pictures at once; give fewer") from None


def say_some(sentences: Sequence[str], write: Callable[[str], Any] = lambda text: print(text, file=sys.stderr)) -> None:
    for sentence in sentences[:MOST_SAID]:
        write(writable(sentence))
    if len(sentences) > MOST_SAID:
        write(f"... and {len(sentences) - MOST_SAID:,} more")


def refuse(files: Files, broken: dict[str, str]) -> None:
    """What was named by hand and has no caption is a mistake; what lay in a folder is only counted."""
    said: list[str] = []
    say_some([*files.problems, *(problem for name, problem in broken.items() if name in files.named)], said.append)
    if said:
        raise UserError("; ".join(said))
