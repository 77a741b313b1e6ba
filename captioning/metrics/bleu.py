"""Corpus BLEU as COCO computes it (Papineni et al. 2002): no smoothing, the closest reference's length for the brevity penalty."""

import math
from typing import NamedTuple

import numpy as np

from captioning.metrics.ngrams import LONGEST, Captions, Compared


class Statistics(NamedTuple):
    """What BLEU needs to know of each caption. BLEU is a function of their sums: it has no mean over captions."""

    matches: np.ndarray  # (C, LONGEST)
    length: np.ndarray  # (C,) in words
    reference_length: np.ndarray  # (C,)


class Bleu:
    def __init__(self, references: Captions):
        self.grams = references.grams
        self.lengths: list[set[int]] = [set() for _ in range(references.image.max(initial=-1) + 1)]
        for image, length in zip(references.image.tolist(), references.lengths.tolist()):
            self.lengths[image].add(length)

    def each(self, compared: Compared) -> Statistics:
        """Matches are clipped to the count of the reference that has the n-gram most often (section 2.1)."""
        captions, shared = compared
        matches = np.zeros((len(captions.words), LONGEST), dtype=np.int64)
        for n, (own, other, both) in enumerate(zip(captions.grams, self.grams, shared)):
            clipped = np.zeros_like(own.count)
            np.maximum.at(clipped, both.own, np.minimum(own.count[both.own], other.count[both.other]))
            np.add.at(matches[:, n], own.caption, clipped)
        closest = [
            min((abs(other - length), other) for other in self.lengths[image])[1]
            for image, length in zip(captions.image.tolist(), captions.lengths.tolist())
        ]
        return Statistics(matches, captions.lengths, np.array(closest, dtype=np.int64))


def bleu(statistics: Statistics) -> dict[str, float]:
    """bleu1..bleu4, in 0..1, of any captions: n-gram matches are summed over them before anything is divided."""
    matches, length, reference_length = (its.sum(axis=0).tolist() for its in statistics)
    brevity = math.exp(min(0.0, 1 - reference_length / length)) if length else 0.0
    scores, log_sum = {}, 0.0
    for n in range(LONGEST):
        guesses = int(np.maximum(0, statistics.length - n).sum())
        log_sum += math.log(matches[n] / guesses) if matches[n] else -math.inf
        scores[f"bleu{n + 1}"] = brevity * math.exp(log_sum / (n + 1))
    return scores


def sentence_bleu(statistics: Statistics) -> np.ndarray:
    """(C,) BLEU-4 of every caption alone, as the field's code for rewards takes it from COCO's: 0 without a common 4-gram, but for a
    trace (1e-15 matches) that orders captions which have common words."""
    guesses = np.maximum(0, statistics.length[:, None] - np.arange(LONGEST))
    ratio = (statistics.length + 1e-15) / (statistics.reference_length + 1e-9)
    precision = ((statistics.matches + 1e-15) / (guesses + 1e-9)).prod(axis=1)
    return precision ** (1 / LONGEST) * np.exp(np.minimum(0, 1 - 1 / ratio))
