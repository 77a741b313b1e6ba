"""Bad caption files: each is read right, or refused in one sentence that names the file and the line."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.faults.outcome import Outcome
from captioning.data import annotations
from captioning.data.captions import read_captions
from captioning.data.records import Splits
from captioning.errors import UserError

LONG = " ".join(["word"] * 10_000)
SURROGATE = chr(0xD800)  # as JSON's \ud800 is read


class Case(NamedTuple):
    """Two images, each with one caption; the second caption, or what stands around it, is bad.

    read: the second image's caption; None where the file must be refused, with these words and this line in the message.
    """

    file: str
    content: bytes
    read: str | None
    words: str = ""
    line: int = 0


def rows(*captions: str, image: str = "b.jpg", more: str = "") -> bytes:
    """CSV, quoted where it must be."""
    quoted = ['"' + text.replace('"', '""') + '"' for text in captions]
    return f"image,caption{more}\na.jpg,a dog{more}\n{image},{quoted[0]}{more}\n".encode()


def lines(caption: str, image: str = "b.jpg", ascii: bool = False) -> bytes:
    """JSON lines, with every character that JSON lets stand as it is."""
    said = [{"image": "a.jpg", "caption": "a dog"}, {"image": image, "caption": caption}]
    return "".join(json.dumps(row, ensure_ascii=ascii) + "\n" for row in said).encode()


def tokens(caption: str) -> bytes:
    return f"a.jpg#0\ta dog\nb.jpg#0\t{caption}\n".encode()


CASES = {
    "a carriage return in quotes": Case("captions.csv", rows("a\rcat"), "a\rcat"),
    "a carriage return without quotes": Case("captions.csv", b"image,caption\na.jpg,a dog\nb.jpg,a\rcat\n", None, "1 fields", 4),
    "carriage returns as the ends of lines": Case("captions.token", b"a.jpg#0\ta dog\rb.jpg#0\ta cat\r", None, "carriage return", 1),
    "U+2028": Case("captions.token", tokens("a\u2028cat"), "a\u2028cat"),
    "U+0085 and a form feed": Case("captions.jsonl", lines("a\u0085cat\fruns"), "a\u0085cat\fruns"),
    "NUL": Case("captions.jsonl", lines("a\0cat", ascii=True), None, "NUL", 2),
    "NUL in a CSV": Case("captions.csv", rows("a\0cat"), None, "NUL", 3),
    "10,000 words": Case("captions.csv", rows(LONG), LONG),
    "200,000 characters": Case("captions.jsonl", lines("ab " * 66_667), None, "200,001 characters; at most 100,000", 2),
    "quotes, commas and line breaks in quotes": Case("captions.csv", rows('a "big", fat\ncat'), 'a "big", fat\ncat'),
    "a quote that is not closed": Case("captions.csv", b'image,caption\na.jpg,a dog\nb.jpg,"a cat\nc.jpg,a cow\n', None, "not CSV", 3),
    "text and marks from right to left": Case("captions.token", tokens("\u200fكلب يجري\u202e abc\u202c"), "\u200fكلب يجري\u202e abc\u202c"),
    "only punctuation": Case("captions.token", tokens("?! ..."), "?! ..."),
    "an empty caption": Case("captions.csv", rows(""), ""),
    "a byte order mark": Case("captions.csv", b"\xef\xbb\xbf" + rows("a cat"), "a cat"),
    "UTF-16": Case("captions.csv", rows("a cat").decode().encode("utf-16"), None, "not UTF-8", 1),
    "Latin-1": Case("captions.csv", "image,caption\na.jpg,a dog\nb.jpg,un café\n".encode("latin-1"), None, "not UTF-8", 3),
    "half a character": Case("captions.jsonl", lines(f"a {SURROGATE} cat", ascii=True), None, "\\ud800, a lone surrogate", 2),
    "a key twice in an object": Case(
        "captions.jsonl", lines("a cat").replace(b'"caption": "a cat"', b'"caption": "x", "caption": "y"'), None, "stands twice", 2
    ),
    "a caption that is no text": Case("captions.jsonl", lines("a cat").replace(b'"a cat"', b"NaN"), None, "NaN", 2),
    "a nest of lists": Case("captions.jsonl", lines("a cat") + b"[" * 100_000 + b"\n", None, "nested too deeply", 3),
    "no column for captions": Case("captions.csv", b"image,sentence\na.jpg,a dog\nb.jpg,a cat\n", None, "no column caption", 1),
    "more fields than the header has": Case("captions.csv", b"image,caption\na.jpg,a dog\nb.jpg,a cat, big\n", None, "3 fields", 3),
    "a name outside the folder of images": Case("captions.csv", rows("a cat", image="../../etc/passwd"), None, "below the folder", 3),
    "an absolute name": Case("captions.csv", rows("a cat", image="/etc/passwd"), None, "below the folder", 3),
}
WORDS_OF_SCORE = {"below the folder"}  # no file is opened by an image's id there


def bad_captions(folder: Path, count: int = len(CASES)) -> Outcome:
    """Each file is read by the reader of training and by that of `captioning score`; passed if both do as they must."""
    passed, read, failed = 0, 0, []
    for number, (name, case) in enumerate(list(CASES.items())[:count]):
        place = folder / f"case-{number:02}"
        (place / "images").mkdir(parents=True)
        (place / case.file).write_bytes(case.content)
        problems = [problem for reader in (for_training, for_score) if (problem := what_is_wrong(reader, place, case))]
        passed += not problems
        read += case.read is not None
        failed += [f"{name} ({problems[0]})"] if problems else []
    note = f"{read} read right, {min(count, len(CASES)) - read} refused with file and line, by training and by `captioning score`"
    return Outcome(
        "bad captions files", min(count, len(CASES)), passed, note + (f"; not as it must be: {', '.join(failed)}" if failed else "")
    )


def for_training(place: Path, file: str) -> dict[str, list[str]]:
    if file.endswith(".token"):
        return annotations.token_file(place / file).texts
    splits: Splits = annotations.table(place, file, val=0, test=0)
    return {record.image_id: record.captions for record in splits["train"]}


def for_score(place: Path, file: str) -> dict[str, list[str]]:
    return read_captions(place / file)


def what_is_wrong(reader: Callable[[Path, str], dict[str, list[str]]], place: Path, case: Case) -> str:
    """Empty where the reader does as it must."""
    try:
        texts = reader(place, case.file)
    except UserError as error:
        said = str(error)
        if case.read is not None:
            return f"refused: {said}"
        good = (
            case.words in said and re.search(rf"{re.escape(case.file)} line {case.line}\b", said) and "\n" not in said and len(said) < 600
        )
        return "" if good else said
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if case.read is None and reader is for_score and case.words in WORDS_OF_SCORE:
        return ""
    return "" if texts == {"a.jpg": ["a dog"], "b.jpg": [case.read]} else f"read as {str(texts)[:80]}"
