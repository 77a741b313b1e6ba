"""n-grams as numbers: those of the references are numbered once, and any number of captions then counted and matched with arrays."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

LONGEST = 4  # words in the longest n-gram that counts
Words = Sequence[str]


class Counted(NamedTuple):
    """n-grams of one length: one entry (of G) for each caption and each n-gram in it, captions in order."""

    caption: np.ndarray  # (G,) place of the caption
    gram: np.ndarray  # (G,) number of the n-gram
    count: np.ndarray  # (G,) how often the caption has it


class Captions(NamedTuple):
    words: Sequence[Words]
    image: np.ndarray  # (C,) place of the image that each describes
    lengths: np.ndarray  # (C,) in words
    grams: list[Counted]  # words, bigrams ...


class Shared(NamedTuple):
    """One entry (of S) for each n-gram of a caption and each reference of its image that has it too."""

    own: np.ndarray  # (S,) the caption's entry
    other: np.ndarray  # (S,) the reference's


class Compared(NamedTuple):
    captions: Captions
    shared: list[Shared]  # words, bigrams ...


def pair(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two numbers below 2**31 as one, which sorts as they do; `halves` takes them apart."""
    return first << 32 | second


def halves(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return pairs >> 32, pairs & 0xFFFFFFFF


class Lexicon:
    """Numbers for the n-grams of the references. A longer n-gram is a pair: the n-gram without its last word, and that word."""

    def __init__(self, references: Sequence[Words]):
        self.words = {word: number for number, word in enumerate(dict.fromkeys(chain.from_iterable(references)))}
        self.pairs: list[np.ndarray] = []  # of bigrams, trigrams ...: sorted, the place is the number
        words = grams = self.numbers(references)
        for n in range(1, LONGEST):
            known, grams = np.unique(pair(grams[:-1], words[n:]), return_inverse=True)
            self.pairs.append(known)

    def numbers(self, captions: Sequence[Words]) -> np.ndarray:
        """All words in a row. A word that no reference has gets a number behind those that they have, for this once."""
        known = self.words
        new: dict[str, int] = defaultdict(lambda: len(known) + len(new))
        return np.array([known[word] if word in known else new[word] for word in chain.from_iterable(captions)], dtype=np.int64)

    def count(self, captions: Sequence[Words]) -> list[Counted]:
        words = grams = self.numbers(captions)
        caption = np.repeat(np.arange(len(captions)), [len(its) for its in captions])
        counted = []
        for n in range(LONGEST):
            if n:
                grams = find(pair(grams[:-1], words[n:]), self.pairs[n - 1])
            first, last = caption[: len(grams)], caption[n:]  # the captions in which it begins and ends
            entries, counts = np.unique(pair(first, grams)[first == last], return_counts=True)
            counted.append(Counted(*halves(entries), counts))
        return counted


def find(pairs: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The number of each pair: its place among the known ones, which are sorted, or one behind them."""
    places = np.searchsorted(known, pairs)
    new = np.append(known, -1)[places] != pairs
    places[new] = len(known) + np.unique(pairs[new], return_inverse=True)[1]
    return places


class Table:
    """The n-grams of one length in the references, laid out by image."""

    def __init__(self, references: Counted, image: np.ndarray):
        keys = pair(image[references.caption], references.gram)
        self.entries = np.argsort(keys, kind="stable")
        self.keys = keys[self.entries]

    def shared(self, captions: Counted, image: np.ndarray) -> Shared:
        keys = pair(image[captions.caption], captions.gram)
        first, end = np.searchsorted(self.keys, keys), np.searchsorted(self.keys, keys, side="right")
        many = end - first  # references of the image with this n-gram
        own = np.repeat(np.arange(len(keys)), many)
        nth = np.arange(len(own)) - np.repeat(np.cumsum(many) - many, many)  # 0, 1 ... for each n-gram
        return Shared(own, self.entries[first[own] + nth])
