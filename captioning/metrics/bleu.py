"""Corpus BLEU as COCO computes it (Papineni et al. 2002): no smoothing, the closest reference's length for the brevity penalty."""

import math
from collections import Counter
from collections.abc import Sequence

Tokens = Sequence[str]


def ngrams(tokens: Tokens, longest: int = 4) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for n in range(1, longest + 1) for i in range(len(tokens) - n + 1))


def bleu(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> dict[str, float]:
    """bleu1..bleu4 of the whole corpus: n-gram matches are summed over images before anything is divided."""
    matches, guesses, length, reference_length = [0] * 4, [0] * 4, 0, 0
    for hypothesis, its_references in zip(hypotheses, references, strict=True):
        most: Counter[tuple[str, ...]] = Counter()
        for reference in its_references:
            most |= ngrams(reference)
        for gram, count in ngrams(hypothesis).items():
            matches[len(gram) - 1] += min(count, most[gram])
            guesses[len(gram) - 1] += count
        length += len(hypothesis)
        reference_length += min((abs(len(r) - len(hypothesis)), len(r)) for r in its_references)[1]
    brevity = math.exp(min(0.0, 1 - reference_length / length)) if length else 0.0
    scores, log_sum = {}, 0.0
    for n in range(4):
        log_sum += math.log(matches[n] / guesses[n]) if matches[n] else -math.inf
        scores[f"bleu{n + 1}"] = brevity * math.exp(log_sum / (n + 1))
    return scores
