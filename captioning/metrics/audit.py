"""The same captions under the field's other "BLEU"s: where a figure that does not match may come from."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from captioning.metrics.bleu import Statistics, Sums, bleu
from captioning.metrics.ngrams import LONGEST
from captioning.metrics.score import References
from captioning.metrics.tokenizer import tokenize

EPSILON = 0.1  # nltk's method1 puts it in the place of no match
TUTORIAL_WEIGHTS = ((1.0,), (0.5, 0.5), (0.3, 0.3, 0.3), (0.25,) * 4)


class Variant(NamedTuple):
    name: str
    scores: dict[str, float]  # bleu1..bleu4
    note: str


def audit(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[Variant]:
    """COCO's BLEU first. Raw strings, one hypothesis an image."""
    coco = statistics(hypotheses, references, tokenize)
    every = np.ones((1, len(hypotheses)), dtype=np.int64)
    sums = coco.sums(every)
    at_least_one = np.maximum(1, coco.length[:, None] - np.arange(LONGEST))
    long = sums._replace(reference_length=np.zeros(1))
    ended = statistics(hypotheses, references, lambda text: [*tokenize(text), "<end>"])
    framed = statistics(hypotheses, references, lambda text: ["<start>", *tokenize(text), "<end>"])
    return [
        Variant("COCO", plain(bleu(sums)), "what papers report"),
        Variant("nltk corpus_bleu", plain(bleu(sums._replace(guesses=every @ at_least_one))), "short captions: one n-gram"),
        Variant("<end> counted", plain(bleu(ended.sums(every))), "one sure match"),
        Variant("<start>, <end> counted", plain(bleu(framed.sums(every))), "two sure matches"),
        Variant("punctuation kept", plain(bleu(statistics(hypotheses, references, with_stops).sums(every))), "stops and commas are words"),
        Variant("split at spaces", plain(bleu(statistics(hypotheses, references, str.split).sums(every))), "`Dog.` is not `dog`"),
        Variant("first reference only", plain(bleu(first(hypotheses, references).sums(every))), "others are not looked at"),
        Variant("mean of sentences", sentences(coco, 0.0), "0 without a common 4-gram"),
        Variant("mean of smoothed ones", sentences(coco, EPSILON), f"nltk method1: {EPSILON} for 0"),
        Variant("no brevity penalty", plain(bleu(long)), "NIC; Show, Attend and Tell"),
        Variant("weights .3 .3 .3", tutorial(sums._replace(guesses=every @ at_least_one)), "Keras tutorials' BLEU-3"),
    ]


def statistics(hypotheses: Sequence[str], references: Sequence[Sequence[str]], words: Callable[[str], list[str]]) -> Statistics:
    prepared = References(references, words=words)
    return prepared.bleu.each(prepared.compare(hypotheses, range(len(hypotheses))))


def first(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Statistics:
    return statistics(hypotheses, [its[:1] for its in references], tokenize)


def with_stops(text: str) -> list[str]:
    return re.findall(r"[\w']+|[^\w\s]", text.lower())


def plain(scores: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(value[0]) for name, value in scores.items()}


def sentences(captions: Statistics, epsilon: float) -> dict[str, float]:
    """The mean of every caption's own BLEU. epsilon: matches where there are none, if there is a word in common."""
    alone = captions.sums(np.eye(len(captions.length), dtype=np.int64))
    matches = np.where((alone.matches == 0) & (alone.matches[:, :1] > 0), epsilon, alone.matches)
    scores = bleu(alone._replace(matches=matches, guesses=np.maximum(1, alone.guesses)))
    return {name: float(np.mean(value)) for name, value in scores.items()}


def tutorial(sums: Sums) -> dict[str, float]:
    """(1), (.5, .5), (.3, .3, .3), (.25, .25, .25, .25), with nltk, which they use."""
    matches, guesses = sums.matches[0], sums.guesses[0]
    brevity = float(np.exp(np.minimum(0, 1 - sums.reference_length[0] / max(1, sums.length[0]))))
    return {
        f"bleu{n}": brevity * float(np.prod((matches[:n] / guesses[:n]) ** np.array(weights)))
        for n, weights in enumerate(TUTORIAL_WEIGHTS, start=1)
    }
