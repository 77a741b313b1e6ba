"""Caption files as text: each is read right, or refused in one sentence that names the file and the line. Knows no format of a data set."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from captioning.errors import UserError

MAX_CAPTION = 100_000  # characters: the 10,000 words of a long text are read, a whole file in an unclosed quote is not
MAX_NAME = 255  # bytes of a file's name: what file systems take


def read_text(path: Path) -> str:
    """UTF-8, with or without a byte order mark."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path} line {line}: not UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def read_lines(path: Path) -> list[str]:
    """Lines end at \\n alone: U+2028, form feeds and the like may stand inside a caption."""
    text = read_text(path)
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def plain_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of a format without quotes, where a lone carriage return is a line's end of another system, and hides a line."""
    for number, line in enumerate(read_lines(path), start=1):
        if "\r" in line:
            raise UserError(f"{path} line {number}: a carriage return inside the line; lines end with \\n or \\r\\n")
        yield number, line


def csv_rows(path: Path, *columns: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, row) of a CSV file with a header that has at least these columns."""
    rows, header = csv.reader(io.StringIO(read_text(path), newline=""), strict=True), None
    while True:
        line = rows.line_num + 1  # a quoted caption may span lines: a row is named by its first
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise UserError(f"{path} line {line}: not CSV ({error})") from None
        if header is None:
            header = [name.strip() for name in row or []]
            if absent := [column for column in columns if column not in header]:
                raise UserError(f"{path} line 1: no column {', '.join(absent)}; the header is {shown(','.join(header))}")
            if len(set(header)) < len(header):
                raise UserError(f"{path} line 1: a column stands there twice; the header is {shown(','.join(header))}")
        elif row is None:
            return
        elif row:
            if len(row) != len(header):
                raise UserError(f"{path} line {line}: {len(row)} fields where the header has {len(header)}; quote a caption with commas")
            yield line, dict(zip(header, row))


def csv_header(path: Path) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader(io.StringIO(read_text(path), newline="")), [])]
    except csv.Error as error:
        raise UserError(f"{path} line 1: not CSV ({error})") from None


def parsed(path: Path, text: str, line: int = 1) -> Any:
    """What this JSON says, which begins on this line. A key twice in an object is refused: one of the two would be lost unseen."""
    try:
        return json.loads(text, object_pairs_hook=without_doubles, parse_constant=no_number)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {line + error.lineno - 1}: not JSON ({error.msg})") from None
    except DoubleKey as error:
        (key,) = error.args
        again = text.count("\n", 0, second(text, json.dumps(key), json.dumps(key, ensure_ascii=False)))
        raise UserError(f"{path} line {line + again}: the key {shown(key)} stands twice in one object") from None
    except RecursionError:
        raise UserError(f"{path} line {line}: nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{path} line {line}: not JSON ({error})") from None


class DoubleKey(Exception):
    """Not a ValueError: what json raises itself has a line."""


def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DoubleKey(next(key for key in keys if keys.count(key) > 1))
    return result


def second(text: str, *spellings: str) -> int:
    """Where a key stands for the second time; the text's beginning where it stands there oftener, in many objects."""
    for spelling in spellings:
        if text.count(spelling) == 2:
            return text.rindex(spelling)
    return 0


def no_number(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON's")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    content = parsed(path, read_text(path))
    absent = [key for key in keys if key not in content] if isinstance(content, dict) else list(keys)
    if absent:
        raise UserError(f"{path}: not of the expected format, without the key {', '.join(absent)}")
    for key in keys:
        if not isinstance(content[key], list):
            raise UserError(f"{path}: {key} is no list")
    return content


def checked_caption(caption: Any, where: str) -> str:
    """The caption as it is. Refused is what could not be written again as UTF-8, and what is not text."""
    if not isinstance(caption, str):
        raise UserError(f"{where}: the caption is {shown(caption)}, which is no text")
    if problem := unwritable(caption):
        raise UserError(f"{where}: the caption holds {problem}")
    if len(caption) > MAX_CAPTION:
        raise UserError(f"{where}: a caption of {len(caption):,} characters; at most {MAX_CAPTION:,}. Is a quote not closed?")
    return caption


def checked_name(name: Any, where: str) -> str:
    """The name of an image, below the folder of images: a file of captions must not have other files read."""
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{where}: the image's name is {shown(name)}; a file's name is needed")
    if problem := unwritable(name):
        raise UserError(f"{where}: the image's name holds {problem}")
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or any(letter < " " for letter in name):
        raise UserError(f"{where}: image {shown(name)}; a name below the folder of images is needed, without .., \\ or control characters")
    if any(len(part.encode()) > MAX_NAME for part in parts) or len(name) > 1000:
        raise UserError(f"{where}: image {shown(name)}: the name is too long")
    return name


def unwritable(text: str) -> str:
    if "\0" in text:
        return "a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a character (\\u{ord(text[error.start]):04x}, a lone surrogate)"
    return ""


def shown(value: Any) -> str:
    """In a message: short, in quotes, and of one line."""
    text = ascii(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 62 else f"{text[:60]}..."
