"""CIDEr as COCO computes it (Vedantam et al. 2015): tf-idf weighted n-gram cosine, with the length penalty of CIDEr-D, times 10."""

import math
from collections import Counter
from collections.abc import Sequence

from captioning.metrics.bleu import Tokens, ngrams

SIGMA = 6.0
Vectors = list[dict[tuple[str, ...], float]]  # one a length of n-gram


def cider(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> dict[str, float]:
    """Document frequencies come from the references given. Of a single image it is 0: every n-gram is in every document."""
    counted = [[ngrams(reference) for reference in its] for its in references]
    frequency: Counter[tuple[str, ...]] = Counter()
    for its in counted:
        frequency.update({gram for counts in its for gram in counts})
    log_images = math.log(max(1, len(references)))

    def weigh(counts: Counter[tuple[str, ...]]) -> tuple[Vectors, list[float], int]:
        vectors: Vectors = [{} for _ in range(4)]
        for gram, count in counts.items():
            vectors[len(gram) - 1][gram] = count * (log_images - math.log(max(1, frequency[gram])))
        norms = [math.sqrt(sum(value * value for value in vector.values())) for vector in vectors]
        return vectors, norms, sum(count for gram, count in counts.items() if len(gram) == 2)

    scores = []
    for hypothesis, its in zip(hypotheses, counted, strict=True):
        vectors, norms, length = weigh(ngrams(hypothesis))
        total = 0.0
        for reference in its:
            other, other_norms, other_length = weigh(reference)
            penalty = math.exp(-((length - other_length) ** 2) / (2 * SIGMA**2))
            for vector, norm, vector_r, norm_r in zip(vectors, norms, other, other_norms):
                overlap = sum(min(value, vector_r[gram]) * vector_r[gram] for gram, value in vector.items() if gram in vector_r)
                total += penalty * overlap / (norm * norm_r) if norm and norm_r else 0.0
        scores.append(10 * total / 4 / max(1, len(its)))
    return {"cider": sum(scores) / max(1, len(scores))}
