"""ROUGE-L as COCO computes it (Lin 2004): an F measure of the longest common subsequence, beta = 1.2, mean over images."""

from collections.abc import Sequence

Tokens = Sequence[str]


def rouge_l(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> dict[str, float]:
    scores = [rouge_of(hypothesis, its) for hypothesis, its in zip(hypotheses, references, strict=True)]
    return {"rouge_l": sum(scores) / max(1, len(scores))}


def rouge_of(hypothesis: Tokens, references: Sequence[Tokens], beta: float = 1.2) -> float:
    """The best precision and the best recall over the references, each on its own, as pycocoevalcap has it."""
    common = [longest_common(hypothesis, reference) for reference in references]
    precision = max((c / len(hypothesis) for c in common), default=0.0) if hypothesis else 0.0
    recall = max((c / len(reference) for c, reference in zip(common, references) if reference), default=0.0)
    if not (precision and recall):
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def longest_common(a: Tokens, b: Tokens) -> int:
    """Length of the longest common subsequence: one bit a word of `a`, one pass over `b` (Hyyro 2004)."""
    places: dict[str, int] = {}
    for index, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << index
    row, full = (1 << len(a)) - 1, (1 << len(a)) - 1
    for word in b:
        hit = row & places.get(word, 0)
        row = ((row + hit) | (row - hit)) & full
    return len(a) - row.bit_count()
