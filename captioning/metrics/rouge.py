"""ROUGE-L as COCO computes it (Lin 2004): an F measure of the longest common subsequence, beta = 1.2, mean over images."""

from collections.abc import Sequence
from typing import NamedTuple

from captioning.metrics.captions import Caption, Image

BETA = 1.2


class Rows(NamedTuple):
    """All references of an image in one integer, a bit a word, and an empty bit behind each reference to end its carry."""

    places: dict[str, int]  # word -> the bits where it stands
    full: int  # every word's bit
    spans: list[tuple[int, int]]  # of each reference: its first bit, its words


class RougeL:
    """ROUGE-L against references prepared once."""

    def __init__(self, images: Sequence[Image]):
        self.rows = [rows_of([reference.words for reference in image.references]) for image in images]

    def of(self, caption: Caption, place: int) -> float:
        """In 0..1: the best precision and the best recall over the references, each on its own, as pycocoevalcap has it."""
        rows = self.rows[place]
        common = longest_common(caption.words, rows)
        precision = max(common) / len(caption.words) if caption.words else 0.0
        recall = max(shared / words if words else 0.0 for shared, (_, words) in zip(common, rows.spans))
        if not (precision and recall):
            return 0.0
        return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)

    def __call__(self, captions: Sequence[Caption]) -> dict[str, float]:
        scores = [self.of(caption, place) for place, caption in enumerate(captions)]
        return {"rouge_l": sum(scores) / max(1, len(scores))}


def rows_of(references: Sequence[Sequence[str]]) -> Rows:
    places: dict[str, int] = {}
    spans, full, first = [], 0, 0
    for reference in references:
        for place, word in enumerate(reference, start=first):
            places[word] = places.get(word, 0) | 1 << place
        spans.append((first, len(reference)))
        full |= ((1 << len(reference)) - 1) << first
        first += len(reference) + 1
    return Rows(places, full, spans)


def longest_common(words: Sequence[str], rows: Rows) -> list[int]:
    """Length of the longest common subsequence with each reference, all in one pass over the words (Hyyro 2004)."""
    places, full, row = rows.places, rows.full, rows.full
    for word in words:
        if word in places:
            hit = row & places[word]
            row = (row + hit | row - hit) & full
    matched = full & ~row
    return [(matched >> first & (1 << length) - 1).bit_count() for first, length in rows.spans]
