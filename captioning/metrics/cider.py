"""CIDEr as COCO computes it (Vedantam et al. 2015): tf-idf weighted n-gram cosine, with the length penalty of CIDEr-D, times 10."""

import math

import numpy as np

from captioning.metrics.ngrams import LONGEST, Captions, Compared, halves, pair

SIGMA = 6.0


class Cider:
    """Document frequencies come from the references given. Of a single image it is 0: every n-gram is in every document."""

    def __init__(self, references: Captions):
        self.references, self.many = references, np.bincount(references.image)  # references of each image
        unseen = math.log(max(1, len(self.many)))  # the weight of an n-gram that no reference has: it stands last
        self.weights = []
        for its in references.grams:
            _, gram = halves(np.unique(pair(references.image[its.caption], its.gram)))
            self.weights.append(np.append(unseen - np.log(np.maximum(1, np.bincount(gram))), unseen))
        self.norms = [self.norm(references, n) for n in range(LONGEST)]

    def weight(self, gram: np.ndarray, n: int) -> np.ndarray:
        return self.weights[n][np.minimum(gram, len(self.weights[n]) - 1)]

    def norm(self, captions: Captions, n: int) -> np.ndarray:
        """(C,) norms of tf-idf vectors; 1 where there is nothing to divide."""
        its = captions.grams[n]
        norm = np.sqrt(np.bincount(its.caption, (its.count * self.weight(its.gram, n)) ** 2, len(captions.words)))
        return np.where(norm > 0, norm, 1.0)

    def each(self, compared: Compared) -> np.ndarray:
        """(C,) in 0..10: a mean over the image's references and over lengths of n-grams."""
        captions, shared = compared
        total = np.zeros(len(captions.words))
        for n, (own, other, both) in enumerate(zip(captions.grams, self.references.grams, shared)):
            caption, reference = own.caption[both.own], other.caption[both.other]
            count, times = own.count[both.own], other.count[both.other]
            dot = np.minimum(count, times) * times * self.weight(own.gram[both.own], n) ** 2
            cosine = dot / (self.norm(captions, n)[caption] * self.norms[n][reference])
            gap = captions.lengths[caption] - self.references.lengths[reference]
            total += np.bincount(caption, cosine * np.exp(-(gap**2) / (2 * SIGMA**2)), len(total))
        return 10 * total / LONGEST / self.many[captions.image]
