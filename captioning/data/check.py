"""What is wrong with a data set, before anybody trains on it: each problem with file and line."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import NamedTuple

from captioning.data.images import read_image
from captioning.data.records import Record, Splits
from captioning.data.vocabulary import Vocabulary, words
from captioning.errors import UserError


class Problem(NamedTuple):
    kind: str
    where: str  # file and line, or the image
    what: str
    is_fatal: bool  # training would be wrong


def check_splits(splits: Splits, progress: Callable[[int], None] = lambda images: None) -> list[Problem]:
    """Missing or broken images, empty or duplicate captions, images that two splits share (by name or by content)."""
    problems = []
    seen: dict[bytes, list[tuple[str, Record]]] = defaultdict(list)
    names: dict[str, str] = {}
    for split, records in splits.items():
        for record in records:
            if names.setdefault(record.image_id, split) != split:
                what = f"image {record.image_id} is in {names[record.image_id]} and in {split}"
                problems.append(Problem("shared image", record.where(0) if record.lines else str(record.path), what, True))
            problems += check_captions(record)
            try:
                read_image(record.path)
                seen[hashlib.sha256(record.path.read_bytes()).digest()].append((split, record))
            except UserError as error:
                kind = "broken image" if os.path.exists(record.path) else "missing image"
                where = record.where(0) if record.lines else str(record.path)
                problems.append(Problem(kind, where, str(error), True))
            progress(1)
    for same in seen.values():
        paths = sorted({(split, str(record.path)) for split, record in same})
        if len({record.image_id for _, record in same}) > 1:  # one id in two splits is said above; two ids may be spellings of one path
            shared = len({split for split, _ in paths}) > 1
            what = "the same bytes: " + ", ".join(f"{path} ({split})" for split, path in paths[:4])
            problems.append(Problem("shared image" if shared else "duplicate image", paths[0][1], what, shared))
    return problems


def check_captions(record: Record) -> list[Problem]:
    if not any(caption.strip() for caption in record.captions):
        where = record.where(0) if record.lines else str(record.path)
        return [Problem("no caption", where, f"image {record.image_id} has no caption", True)]
    problems = []
    first: dict[str, str] = {}
    for index, caption in enumerate(record.captions):
        where = record.where(index)
        if not words(caption):
            problems.append(Problem("empty caption", where, f"no words in {caption!r} of image {record.image_id}", False))
        elif caption in first:
            what = f"image {record.image_id} has {caption[:40]!r} already in {first[caption]}"
            problems.append(Problem("duplicate caption", where, what, False))
        first.setdefault(caption, where)
    return problems


def summary(splits: Splits, min_count: int) -> list[str]:
    """Counts of every split, and what the vocabulary would be."""
    lines = []
    for split, records in splits.items():
        captions = [caption for record in records for caption in record.captions]
        lengths = [len(words(caption)) for caption in captions]
        each = Counter(len(record.captions) for record in records)
        number = "/".join(str(count) for count in sorted(each)) or "0"
        mean = sum(lengths) / max(1, len(lengths))
        counts = f"{split:6} {len(records):7,} images  {len(captions):8,} captions ({number} each)"
        lines.append(f"{counts}  {mean:.1f} words, at most {max(lengths, default=0)}")
    texts = {split: [caption for record in records for caption in record.captions] for split, records in splits.items()}
    if texts.get("train"):
        vocabulary = Vocabulary.build(texts["train"], min_count)
        unknown = ", ".join(f"{vocabulary.unknown_rate(its):.1%} of {split}" for split, its in texts.items() if its)
        lines.append(f"vocabulary of train with min_count={min_count}: {len(vocabulary):,}; unknown words: {unknown}")
    return lines
