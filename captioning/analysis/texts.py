"""What captions look like as texts, beside the references: words, lengths, repeats. Words are the metrics' tokens."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from captioning.metrics.diversity import UNKNOWN
from captioning.metrics.tokenizer import tokenize


def listed(words: str) -> list[str]:
    return words.split()


FUNCTION = frozenset(
    listed("""a an the this that these those some any all another other each both
    in on at of to for from by with without into onto over under through up down out off near next as and or but while
    is are was were be being been am has have had do does did it its he she they them his her their him who which there""")
)  # words that say nothing of the picture by themselves


def said(text: str) -> list[str]:
    """Its words; <unk> is one word."""
    return tokenize(text.replace(UNKNOWN, "unk"))


class WordUse(NamedTuple):
    word: str
    captions: float  # times among a thousand words of the captions
    references: float

    @property
    def difference(self) -> float:
        return self.captions - self.references


class Vocabularies(NamedTuple):
    used: int  # different words in the captions
    in_references: int  # different words in the references
    shared: int  # in both
    over: list[WordUse]  # used more than in the references, the largest difference first
    under: list[WordUse]


def vocabularies(captions: Iterable[str], references: Iterable[str], most: int = 15) -> Vocabularies:
    ours, theirs = (Counter(word for text in texts for word in said(text)) for texts in (captions, references))
    our_total, their_total = max(1, ours.total()), max(1, theirs.total())
    uses = [WordUse(word, 1000 * ours[word] / our_total, 1000 * theirs[word] / their_total) for word in ours.keys() | theirs.keys()]
    uses.sort(key=lambda use: (-use.difference, use.word))
    over = [use for use in uses if use.difference > 0][:most]
    under = [use for use in reversed(uses) if use.difference < 0][:most]
    return Vocabularies(len(ours), len(theirs), len(ours.keys() & theirs.keys()), over, under)


def lengths(texts: Iterable[str]) -> Counter[int]:
    """How many texts have so many words."""
    return Counter(len(said(text)) for text in texts)


def given_often(captions: Mapping[str, str]) -> list[tuple[str, int]]:
    """Captions given to several images, the most frequent first."""
    return [(text, times) for text, times in Counter(captions.values()).most_common() if times > 1]


def repeated(words: Sequence[str]) -> str | None:
    """The first phrase that a caption repeats: words said twice in a row, three words in a row that come twice, or two words, none of
    them a function word, that come twice. None where there is none."""
    for size in (3, 2, 1):
        for start in range(len(words) - 2 * size + 1):
            if words[start : start + size] == words[start + size : start + 2 * size]:
                return " ".join(words[start : start + size])
    for size in (3, 2):
        seen = set()
        for start in range(len(words) - size + 1):
            phrase = tuple(words[start : start + size])
            if phrase in seen and (size == 3 or not FUNCTION & set(phrase)):
                return " ".join(phrase)
            seen.add(phrase)
    return None


def repeated_phrases(captions: Iterable[str]) -> list[tuple[str, int]]:
    """Phrases that captions repeat within themselves, with the number of captions that do."""
    return Counter(phrase for text in captions if (phrase := repeated(said(text)))).most_common()
