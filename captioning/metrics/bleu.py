"""Corpus BLEU as COCO computes it (Papineni et al. 2002): hardly any smoothing, the closest reference's length for the brevity penalty."""

from typing import NamedTuple

import numpy as np

from captioning.metrics.ngrams import LONGEST, Captions, Compared

TINY, SMALL = 1e-15, 1e-9  # COCO's: nothing is divided by zero, and no match is nearly 0


class Sums(NamedTuple):
    """What BLEU is made of. R sets of captions: one, or as many as were drawn from them to see how sure a value is."""

    matches: np.ndarray  # (R, LONGEST)
    guesses: np.ndarray  # (R, LONGEST) n-grams in the captions
    length: np.ndarray  # (R,) in words
    reference_length: np.ndarray  # (R,)


class Statistics(NamedTuple):
    """What BLEU needs to know of each caption. BLEU is a function of their sums: it has no mean over captions."""

    matches: np.ndarray  # (C, LONGEST)
    length: np.ndarray  # (C,) in words
    reference_length: np.ndarray  # (C,)

    def sums(self, times: np.ndarray) -> Sums:
        """times (R, C): how often each caption is in each set."""
        guesses = np.maximum(0, self.length[:, None] - np.arange(LONGEST))
        return Sums(times @ self.matches, times @ guesses, times @ self.length, times @ self.reference_length)


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


def bleu(sums: Sums) -> dict[str, np.ndarray]:
    """bleu1..bleu4, each (R,) in 0..1: n-gram matches are summed over captions before anything is divided."""
    ratio = (sums.length + TINY) / (sums.reference_length + SMALL)
    brevity = np.exp(np.minimum(0, 1 - 1 / ratio))
    precision = (sums.matches + TINY) / (sums.guesses + SMALL)
    means = precision.cumprod(axis=1) ** (1 / np.arange(1, LONGEST + 1))  # geometric, over 1, 2 ... lengths of n-grams
    return {f"bleu{n + 1}": brevity * means[:, n] for n in range(LONGEST)}
