"""Corpus BLEU as COCO computes it (Papineni et al. 2002): no smoothing, the closest reference's length for the brevity penalty."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from captioning.metrics.captions import LONGEST, Caption, Image


class Statistics(NamedTuple):
    """What BLEU needs to know of an image. BLEU is a function of their sums: it has no mean over images."""

    matches: list[int]  # one a length of n-gram
    length: int  # in words
    reference_length: int


class Bleu:
    """BLEU against references prepared once."""

    def __init__(self, images: Sequence[Image]):
        self.most = [image.most for image in images]
        self.lengths = [sorted({len(reference.words) for reference in image.references}) for image in images]

    def of(self, caption: Caption, place: int) -> Statistics:
        """Sufficient statistics of a caption of the image at this place: matches clipped to the reference that has most (section 2.1)."""
        most, matches, length = self.most[place], [0] * LONGEST, len(caption.words)
        for gram, count in caption.counts.items():
            if gram in most:
                matches[gram.count(" ")] += min(count, most[gram])
        closest = min(self.lengths[place], key=lambda other: abs(other - length))  # of two as close the shorter: it comes first
        return Statistics(matches, length, closest)

    def __call__(self, captions: Sequence[Caption]) -> dict[str, float]:
        """bleu1..bleu4 of the whole corpus: n-gram matches are summed over images before anything is divided."""
        return bleu([self.of(caption, place) for place, caption in enumerate(captions)])


def bleu(statistics: Sequence[Statistics]) -> dict[str, float]:
    """bleu1..bleu4, in 0..1, from the statistics of any images: all of them, or a bootstrap's draw."""
    length = sum(its.length for its in statistics)
    reference_length = sum(its.reference_length for its in statistics)
    brevity = math.exp(min(0.0, 1 - reference_length / length)) if length else 0.0
    scores, log_sum = {}, 0.0
    for n in range(LONGEST):
        matches = sum(its.matches[n] for its in statistics)
        guesses = sum(max(0, its.length - n) for its in statistics)
        log_sum += math.log(matches / guesses) if matches else -math.inf
        scores[f"bleu{n + 1}"] = brevity * math.exp(log_sum / (n + 1))
    return scores
