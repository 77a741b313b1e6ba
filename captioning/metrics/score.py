"""All metrics at once, from raw strings to floats."""

from collections.abc import Callable, Sequence

import numpy as np

from captioning.metrics.bleu import Bleu
from captioning.metrics.cider import Cider, Frequencies
from captioning.metrics.ngrams import LONGEST, Captions, Compared, Lexicon, Table
from captioning.metrics.results import Columns, Result, about, metrics_of, signatures_of
from captioning.metrics.rouge import RougeL
from captioning.metrics.tokenizer import tokenize


class References:
    """The references of a set of images, read once and scored against as often as one likes: at every validation, say.

    texts: raw strings, all of each image's; never decoded ids, whose <unk> would match a hypothesis's.
    ValueError for an image without any. frequencies: CIDEr's document frequencies; None takes those of these references.
    words: the tokenizer; another than COCO's gives other figures than COCO's.

    For scores of single captions give `bleu.each`, `rouge_l.each` or `cider.each` what `compare` returns.
    """

    def __init__(
        self,
        texts: Sequence[Sequence[str]],
        frequencies: Frequencies | None = None,
        words: Callable[[str], list[str]] = tokenize,
    ):
        if not all(texts):
            raise ValueError(f"no reference for image {[len(its) for its in texts].index(0)} (the first is 0)")
        self.tokenize, tokens = words, [words(text) for its in texts for text in its]
        more = [gram.split(" ") for gram in frequencies.counts] if frequencies else []
        self.images, self.lexicon, self.about = len(texts), Lexicon([*map(respaced, tokens), *more]), about(texts)
        self.frequencies = frequencies.digest if frequencies else "corpus"  # as signatures have it
        references = self.read(tokens, np.repeat(np.arange(len(texts)), [len(its) for its in texts]))
        self.tables = [Table(grams, references.image) for grams in references.grams]
        self.bleu, self.rouge_l = Bleu(references), RougeL(references)
        self.cider = Cider(references, self.lexicon, frequencies)

    def read(self, words: list[list[str]], image: np.ndarray) -> Captions:
        spaced = list(map(respaced, words))
        return Captions(words, image, np.array([len(its) for its in spaced], dtype=np.int64), self.lexicon.count(spaced))

    def compare(self, texts: Sequence[str], images: Sequence[int]) -> Compared:
        """Raw captions beside the references of their images, which are named by place: all of them, or some, or one many times."""
        captions = self.read([self.tokenize(text) for text in texts], np.array(images, dtype=np.int64))
        return Compared(captions, [table.shared(grams, captions.image) for table, grams in zip(self.tables, captions.grams)])

    def columns(self, hypotheses: Sequence[str]) -> Columns:
        """What each image contributes to the metrics.

        hypotheses: one raw string an image, in the order of the references; ValueError when there are more or fewer.
        """
        if len(hypotheses) != self.images:
            raise ValueError(f"{len(hypotheses)} captions for {self.images} images: one each")
        compared = self.compare(hypotheses, range(self.images))
        matches, length, reference_length = self.bleu.each(compared)
        counts = {f"matches{n + 1}": matches[:, n] for n in range(LONGEST)} | {"length": length, "reference_length": reference_length}
        return counts | {"rouge_l": self.rouge_l.each(compared), "cider": self.cider.each(compared)}

    def score(self, hypotheses: Sequence[str]) -> dict[str, float]:
        """bleu1..bleu4, rouge_l and cider, as fractions of 1 (CIDEr may exceed it)."""
        return self.result(hypotheses, [""] * len(hypotheses)).metrics

    def result(self, hypotheses: Sequence[str], image_ids: Sequence[str], more: Columns | None = None) -> Result:
        """The metrics, each image's part in them, and their signatures. more: columns of other metrics, METEOR's say."""
        columns = self.columns(hypotheses) | (more or {})
        metrics = metrics_of(columns, np.ones((1, self.images)))
        return Result(list(image_ids), columns, signatures_of(metrics, self.about, self.frequencies))


def respaced(words: list[str]) -> list[str]:
    """As COCO's BLEU and CIDEr see them: a token with a no-break space ("3 1/2") is two words to them, and one to ROUGE-L."""
    text = " ".join(words)
    return words if text.isascii() else text.split()


def score(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """`References(references).score(hypotheses)`, for those who score once."""
    return References(references).score(hypotheses)
