"""Metrics against those that everybody quotes."""

import random
import shutil

import pytest
import sacrebleu
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from captioning.metrics.score import describe, score
from captioning.metrics.tokenizer import tokenize

WORDS = ["a", "the", "dog", "cat", "runs", "on", "grass", "in", "park", "red", "ball", "with", "man", "two", "women", "white"]


def corpus(images=60):
    draws = random.Random(0)
    sentence = lambda: " ".join(draws.choices(WORDS, k=draws.randint(1, 14)))  # noqa: E731
    references = [[sentence() for _ in range(draws.randint(1, 5))] for _ in range(images)]
    hypotheses = [draws.choice(its) if draws.random() < 0.4 else sentence() for its in references]
    return [*hypotheses, "", "dog"], [*references, ["a dog"], ["dog"]]


def test_bleu_rouge_and_cider_equal_cocos():
    hypotheses, references = corpus()
    ours = score(hypotheses, references)
    wanted, guessed = dict(enumerate(references)), {key: [text] for key, text in enumerate(hypotheses)}
    bleu, _ = Bleu(4).compute_score(wanted, guessed, verbose=0)
    for n, value in enumerate(bleu, start=1):
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


GOLDEN = {  # what the Java tokenizer of pycocoevalcap makes of them
    "A man's dog doesn't run.": "a man 's dog does n't run",
    "Two boys (one red-haired) jump , laughing ...": "two boys -lrb- one red-haired -rrb- jump laughing",
    "Mr. Smith's T-shirt costs $3.50!": "mr. smith 's t-shirt costs $ 3.50",
    "They can't; we cannot.": "they ca n't we can not",
    '"Stop" - the sign says': "stop the sign says",
    "A 3:30 game in the U.S. today": "a 3:30 game in the u.s. today",
}


@pytest.mark.parametrize("caption", GOLDEN)
def test_tokens_are_those_of_the_java_tokenizer(caption):
    assert " ".join(tokenize(caption)) == GOLDEN[caption]


@pytest.mark.skipif(shutil.which("java") is None, reason="no Java here")
def test_the_golden_tokens_come_from_java():
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    theirs = PTBTokenizer().tokenize({i: [{"caption": caption}] for i, caption in enumerate(GOLDEN)})
    assert [theirs[i][0] for i in range(len(GOLDEN))] == list(GOLDEN.values())


def test_a_description_counts():
    about = describe(["a dog", "a dog", "a <unk> cat"])
    assert about["distinct_captions"] == 2 and about["vocabulary_used"] == 4
    assert about["most_common_share"] == pytest.approx(2 / 3) and about["unknown_rate"] == pytest.approx(1 / 7)
