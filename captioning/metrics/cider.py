"""CIDEr as COCO computes it (Vedantam et al. 2015): tf-idf weighted n-gram cosine, with the length penalty of CIDEr-D, times 10."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from captioning.metrics.captions import LONGEST, Caption, Image

SIGMA = 6.0


class Vector(NamedTuple):
    counts: dict[str, int]
    norms: list[float]  # of their tf-idf weights, one a length of n-gram
    bigrams: int  # COCO's code takes them for the length: one word is as long as none


class Cider:
    """CIDEr against references prepared once.

    Document frequencies come from the references given. Of a single image it is 0: every n-gram is in every document.
    """

    def __init__(self, images: Sequence[Image]):
        self.most = [image.most for image in images]
        frequency = Counter(chain.from_iterable(self.most))
        self.unseen = math.log(max(1, len(images)))  # the weight of an n-gram that no reference has
        self.weights = {gram: self.unseen - math.log(documents) for gram, documents in frequency.items()}
        self.vectors = [[self.vector(reference) for reference in image.references] for image in images]

    def vector(self, caption: Caption) -> Vector:
        squares, weight, unseen = [0.0] * LONGEST, self.weights.get, self.unseen
        for gram, count in caption.counts.items():
            value = count * weight(gram, unseen)
            squares[gram.count(" ")] += value * value
        return Vector(caption.counts, [math.sqrt(square) for square in squares], max(0, len(caption.words) - 1))

    def of(self, caption: Caption, place: int) -> float:
        """In 0..10, for a caption of the image at this place: a mean over its references and over lengths of n-grams."""
        most, weights, (own, norms, bigrams) = self.most[place], self.weights, self.vector(caption)
        shared = []  # with some reference; usually few
        for gram, count in own.items():
            if gram in most and weights[gram]:
                n = gram.count(" ")
                shared.append((gram, count, n, weights[gram] ** 2 / norms[n]))
        total = 0.0
        for theirs, their_norms, their_bigrams in self.vectors[place]:
            cosine = 0.0
            for gram, count, n, value in shared:
                if gram in theirs:
                    times = theirs[gram]
                    cosine += min(count, times) * times * value / their_norms[n]
            total += cosine * math.exp(-((bigrams - their_bigrams) ** 2) / (2 * SIGMA**2))
        return 10 * total / LONGEST / len(self.vectors[place])

    def __call__(self, captions: Sequence[Caption]) -> dict[str, float]:
        scores = [self.of(caption, place) for place, caption in enumerate(captions)]
        return {"cider": sum(scores) / max(1, len(scores))}
