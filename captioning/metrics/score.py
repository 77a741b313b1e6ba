"""All metrics at once, from raw strings to floats; and what the captions themselves look like."""

from collections import Counter
from collections.abc import Sequence

from captioning.metrics.bleu import bleu
from captioning.metrics.cider import cider
from captioning.metrics.rouge import rouge_l
from captioning.metrics.tokenizer import tokenize


def score(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """bleu1..bleu4, rouge_l and cider, as fractions of 1 (CIDEr may exceed it).

    hypotheses: one raw string an image. references: raw strings, all of the image's; never decoded ids, whose <unk>
    would match a hypothesis's.
    """
    guessed = [tokenize(text) for text in hypotheses]
    wanted = [[tokenize(text) for text in its] for its in references]
    return bleu(guessed, wanted) | rouge_l(guessed, wanted) | cider(guessed, wanted)


def describe(captions: Sequence[str], unknown: str = "<unk>") -> dict[str, float]:
    """Mean length in words, words used, distinct captions, the largest share of images with one caption, share of <unk>."""
    words = [word for caption in captions for word in caption.split()]
    same = Counter(captions).most_common(1)[0][1] if captions else 0
    return {
        "length": len(words) / max(1, len(captions)),
        "vocabulary_used": len(set(words)),
        "distinct_captions": len(set(captions)),
        "most_common_share": same / max(1, len(captions)),
        "unknown_rate": sum(word == unknown for word in words) / max(1, len(words)),
    }
