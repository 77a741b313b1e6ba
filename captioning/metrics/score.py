"""All metrics at once, from raw strings to floats; and what the captions themselves look like."""

from collections import Counter
from collections.abc import Sequence

from captioning.metrics.bleu import Bleu
from captioning.metrics.captions import gather, read
from captioning.metrics.cider import Cider
from captioning.metrics.rouge import RougeL


class References:
    """The references of a set of images, read once and scored against as often as one likes: at every validation, say.

    texts: raw strings, all of each image's; never decoded ids, whose <unk> would match a hypothesis's.
    ValueError for an image without any. About 25 kB of memory an image with five of them.

    `bleu`, `rouge_l` and `cider` also tell of single captions: `references.cider.of(read(text), place)`.
    """

    def __init__(self, texts: Sequence[Sequence[str]]):
        if not all(texts):
            raise ValueError(f"no reference for image {[len(its) for its in texts].index(0)} (the first is 0)")
        self.images = [gather([read(text) for text in its]) for its in texts]
        self.bleu, self.rouge_l, self.cider = Bleu(self.images), RougeL(self.images), Cider(self.images)

    def score(self, hypotheses: Sequence[str]) -> dict[str, float]:
        """bleu1..bleu4, rouge_l and cider, as fractions of 1 (CIDEr may exceed it).

        hypotheses: one raw string an image, in the order of the references; ValueError when there are more or fewer.
        """
        if len(hypotheses) != len(self.images):
            raise ValueError(f"{len(hypotheses)} captions for {len(self.images)} images: one each")
        captions = [read(text) for text in hypotheses]
        return self.bleu(captions) | self.rouge_l(captions) | self.cider(captions)


def score(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """`References(references).score(hypotheses)`, for those who score once."""
    return References(references).score(hypotheses)


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
