"""Captions as the metrics see them: words, and how often each n-gram of them occurs. An image's references are counted together."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

from captioning.metrics.tokenizer import tokenize

LONGEST = 4  # words in the longest n-gram that counts


class Caption(NamedTuple):
    words: Sequence[str]
    counts: Counter[str]  # n-grams of 1 to LONGEST words, in order of appearance: sums over them repeat to the last bit


class Image(NamedTuple):
    references: Sequence[Caption]
    most: dict[str, int]  # of every n-gram in them: how often the reference has it that has it most


def read(text: str) -> Caption:
    words = tokenize(text)
    return Caption(words, Counter(ngrams(words)))


def ngrams(words: Sequence[str]) -> Iterable[str]:
    """Words, bigrams ...: each one string, a space between its words, as no token has any. A string keeps its hash; a tuple would not."""
    tails = [words[n:] for n in range(LONGEST)]
    return chain(words, *(map(" ".join, zip(*tails[:n])) for n in range(2, LONGEST + 1)))


def gather(references: Sequence[Caption]) -> Image:
    most: dict[str, int] = {}
    for reference in references:
        for gram, count in reference.counts.items():
            if count > most.get(gram, 0):
                most[gram] = count
    return Image(references, most)
