"""Metrics against those that everybody quotes."""

import random
import subprocess
import sys

import pytest
import sacrebleu
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from captioning.metrics.bleu import Statistics, bleu
from captioning.metrics.rouge import longest_common, rows_of
from captioning.metrics.score import References, describe, score

WORDS = ["a", "the", "dog", "cat", "runs", "on", "grass", "in", "park", "red", "ball", "with", "man", "two", "women", "white"]


def corpus(images=60):
    draws = random.Random(0)
    sentence = lambda: " ".join(draws.choices(WORDS, k=draws.randint(1, 14)))  # noqa: E731
    references = [[sentence() for _ in range(draws.randint(1, 5))] for _ in range(images)]
    hypotheses = [draws.choice(its) if draws.random() < 0.4 else sentence() for its in references]
    longest = [max(its, key=len) for its in references[:10]]
    with_a_word_no_reference_has = [text.replace(" ", " zebra ", 1) for text in longest]
    return [*hypotheses, *with_a_word_no_reference_has, "", "dog"], [*references, *references[:10], ["a dog"], ["dog"]]


@pytest.mark.parametrize("words", [99, 5])
def test_bleu_rouge_and_cider_equal_cocos(words):
    hypotheses, references = corpus()
    hypotheses = [" ".join(text.split()[:words]) for text in hypotheses]  # five of them are few: BLEU's brevity penalty is felt
    ours = score(hypotheses, references)
    wanted, guessed = dict(enumerate(references)), {key: [text] for key, text in enumerate(hypotheses)}
    theirs, _ = Bleu(4).compute_score(wanted, guessed, verbose=0)
    for n, value in enumerate(theirs, start=1):
        assert ours[f"bleu{n}"] == pytest.approx(value, abs=1e-9)
    assert ours["rouge_l"] == pytest.approx(Rouge().compute_score(wanted, guessed)[0], abs=1e-9)
    assert ours["cider"] == pytest.approx(Cider().compute_score(wanted, guessed)[0], abs=1e-9)


def test_bleu_equals_sacrebleus():
    hypotheses, references = corpus()
    width = max(map(len, references))
    streams = [[its[i] if i < len(its) else None for its in references] for i in range(width)]
    theirs = sacrebleu.corpus_bleu(hypotheses, streams, smooth_method="none", tokenize="none").score
    assert score(hypotheses, references)["bleu4"] == pytest.approx(theirs / 100, abs=1e-7)


def test_a_perfect_caption_scores_one_and_a_foreign_one_nothing():
    references = [["A dog runs on the grass."], ["Two women in a park."]]
    perfect = score(["a dog runs on the grass", "two women in a park"], references)
    assert perfect["bleu4"] == pytest.approx(1) and perfect["rouge_l"] == pytest.approx(1) and perfect["cider"] == pytest.approx(10)
    assert set(score(["xyz"] * 2, references).values()) == {0.0}


def test_unknown_words_never_match():
    assert score(["<unk>"], [["a zyzzyva"]])["bleu1"] == 0


def test_references_prepared_once_score_like_fresh_ones_however_often_they_are_used():
    hypotheses, references = corpus()
    prepared = References(references)
    others = hypotheses[1:] + hypotheses[:1]
    for texts in (hypotheses, others, hypotheses):
        assert prepared.score(texts) == score(texts, references)


def test_scores_of_single_captions_equal_cocos():
    hypotheses, references = corpus()
    prepared = References(references)
    compared = prepared.compare(hypotheses, range(len(references)))
    wanted, guessed = dict(enumerate(references)), {key: [text] for key, text in enumerate(hypotheses)}
    for metric, theirs in ((prepared.rouge_l, Rouge()), (prepared.cider, Cider())):
        assert metric.each(compared) == pytest.approx(theirs.compute_score(wanted, guessed)[1], abs=1e-9)


def test_captions_are_scored_alone_in_any_order_and_any_number_an_image_as_among_all():
    """So CIDEr can reward samples; so BLEU's statistics, drawn again and again, say how sure its value is."""
    hypotheses, references = corpus()
    prepared = References(references)
    images = [5, 3, 40, 5, len(references) - 2, 61]
    some = prepared.compare([hypotheses[image] for image in images], images)
    every = prepared.compare(hypotheses, range(len(references)))
    for metric in (prepared.rouge_l, prepared.cider):
        assert metric.each(some).tolist() == metric.each(every)[images].tolist()
    statistics = Statistics(*(its[images] for its in prepared.bleu.each(every)))
    alone = score([hypotheses[image] for image in images], [references[image] for image in images])
    assert bleu(prepared.bleu.each(some)) == bleu(statistics) == {name: alone[name] for name in bleu(statistics)}
    assert alone["bleu2"] > 0


def plain_longest_common(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, one in enumerate(a):
        for j, other in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if one == other else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


SENTENCE = st.lists(st.sampled_from("abc"), max_size=12) | st.lists(st.sampled_from("abcdefgh"), min_size=60, max_size=70)


@given(SENTENCE, st.lists(SENTENCE, min_size=1, max_size=5))
def test_the_longest_common_subsequence_with_each_reference_is_the_plain_ones(words, references):
    assert longest_common(words, rows_of(references)) == [plain_longest_common(words, reference) for reference in references]


SCORE = """
import random
from captioning.metrics.score import References
draws = random.Random(0)
words, often = [f"word{i}" for i in range(40)], [1 / (i + 1) for i in range(40)]  # rare and frequent, as words are
texts = [" ".join(draws.choices(words, often, k=12)) for _ in range(300)]
references = References([texts[i : i + 5] for i in range(50, 300, 5)])
print(references.score(texts[:50]), references.cider.each(references.compare(texts[:50], range(50))).tolist())
"""


def test_scores_are_the_same_to_the_last_bit_in_every_process():
    """Sums of floats follow the order of words, not of a set: a resumed run compares its best score with one of another process."""
    run = lambda seed: subprocess.run(  # noqa: E731
        [sys.executable, "-c", SCORE], cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
    )
    assert len({run(seed).stdout for seed in "123"}) == 1


def test_captions_and_references_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="no reference for image 1"):
        References([["a dog"], []])
    with pytest.raises(ValueError, match="1 captions for 2 images"):
        score(["a dog"], [["a dog"], ["a cat"]])


def test_a_description_counts():
    about = describe(["a dog", "a dog", "a <unk> cat"])
    assert about["distinct_captions"] == 2 and about["vocabulary_used"] == 4
    assert about["most_common_share"] == pytest.approx(2 / 3) and about["unknown_rate"] == pytest.approx(1 / 7)
