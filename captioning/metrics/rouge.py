"""ROUGE-L as COCO computes it (Lin 2004): an F measure of the longest common subsequence, beta = 1.2, mean over images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from captioning.metrics.ngrams import Captions, Compared, Words

BETA = 1.2
NOTHING: Words = [""]  # one empty word stands for no words, as in pycocoevalcap, so that nothing equals nothing


class Rows(NamedTuple):
    """All references of an image in one integer, a bit a word, and an empty bit behind each reference to end its carry."""

    places: dict[str, int]  # word -> the bits where it stands
    full: int  # every word's bit
    spans: list[tuple[int, int]]  # of each reference: its first bit, its words


class RougeL:
    def __init__(self, references: Captions):
        its: list[list[Words]] = [[] for _ in range(references.image.max(initial=-1) + 1)]
        for image, words in zip(references.image.tolist(), references.words):
            its[image].append(words or NOTHING)
        self.rows = [rows_of(sentences) for sentences in its]

    def each(self, compared: Compared) -> np.ndarray:
        """(C,) in 0..1."""
        captions = compared.captions
        return np.array([rouge_of(words or NOTHING, self.rows[image]) for words, image in zip(captions.words, captions.image.tolist())])


def rouge_of(words: Words, rows: Rows) -> float:
    """The best precision and the best recall over the references, each on its own, as pycocoevalcap has it."""
    common = longest_common(words, rows)
    precision = max(common) / len(words) if words else 0.0
    recall = max(shared / length if length else 0.0 for shared, (_, length) in zip(common, rows.spans))
    if not (precision and recall):
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def rows_of(references: Sequence[Words]) -> Rows:
    places: dict[str, int] = {}
    spans, full, first = [], 0, 0
    for reference in references:
        for place, word in enumerate(reference, start=first):
            places[word] = places.get(word, 0) | 1 << place
        spans.append((first, len(reference)))
        full |= ((1 << len(reference)) - 1) << first
        first += len(reference) + 1
    return Rows(places, full, spans)


def longest_common(words: Words, rows: Rows) -> list[int]:
    """Length of the longest common subsequence with each reference, all in one pass over the words (Hyyro 2004)."""
    places, full, row = rows.places, rows.full, rows.full
    for word in words:
        if word in places:
            hit = row & places[word]
            row = (row + hit | row - hit) & full
    matched = full & ~row
    return [(matched >> first & (1 << length) - 1).bit_count() for first, length in rows.spans]
