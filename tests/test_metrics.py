"""Metrics against those that everybody quotes."""

import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
import sacrebleu
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from captioning.metrics.bleu import Statistics, bleu
from captioning.metrics.results import Result, metrics_of
from captioning.metrics.rouge import longest_common, rows_of
from captioning.metrics.score import References, describe, score
from captioning.metrics.tokenizer import tokenize

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
    once = np.ones((1, len(images)), dtype=np.int64)
    drawn = [bleu(its.sums(once)) for its in (prepared.bleu.each(some), statistics)]
    assert drawn[0] == drawn[1] == {name: alone[name] for name in drawn[0]}
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


def test_a_drawing_of_images_scores_as_their_captions_do():
    hypotheses, references = corpus()
    draws = np.random.default_rng(0).integers(len(references), size=(5, len(references)))
    prepared = References(references)
    columns = prepared.columns(hypotheses)
    times = np.stack([np.bincount(row, minlength=len(references)) for row in draws])
    found = metrics_of(columns, times)
    for row, images in enumerate(draws):
        bleus = score([hypotheses[i] for i in images], [references[i] for i in images])
        assert {name: found[name][row] for name in bleus if "bleu" in name} == pytest.approx(
            {n: v for n, v in bleus.items() if "bleu" in n}
        )
        assert found["rouge_l"][row] == pytest.approx(bleus["rouge_l"])
        assert found["cider"][row] == pytest.approx(
            prepared.cider.each(prepared.compare(hypotheses, range(len(references))))[images].mean()
        )


def test_a_result_read_again_gives_the_same_metrics_to_the_last_bit(tmp_path):
    hypotheses, references = corpus()
    result = References(references).result(hypotheses, [f"{i}.jpg" for i in range(len(references))])
    result.save(tmp_path / "scores.json")
    again = Result.load(tmp_path / "scores.json")
    assert again.metrics == result.metrics == score(hypotheses, references)
    assert again.image_ids == result.image_ids and again.signatures == result.signatures


def test_signatures_tell_other_references_apart_and_not_another_order_or_naming():
    hypotheses, references = corpus()
    signed = lambda texts, names: References(texts).result(hypotheses[: len(texts)], names).signatures  # noqa: E731
    first = signed(references, list(map(str, range(len(references)))))
    assert first["bleu4"].startswith("bleu4|tok:ptb-py-1|case:lc|refs:1-5|images:72|data:") and first["bleu4"].endswith(
        "|impl:captioning-0.1"
    )
    assert signed([its[::-1] for its in references[::-1]], ["x"] * len(references)) == first
    assert signed([[*references[0], "one more"], *references[1:]], ["x"] * len(references)) != first
    assert "|df:corpus|" in first["cider"]


def test_captions_and_references_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="no reference for image 1"):
        References([["a dog"], []])
    with pytest.raises(ValueError, match="1 captions for 2 images"):
        score(["a dog"], [["a dog"], ["a cat"]])


GOLDEN = {  # what the Java tokenizer of pycocoevalcap makes of them
    "A man's dog doesn't run.": "a man 's dog does n't run",
    "Two boys (one red-haired) jump , laughing ...": "two boys -lrb- one red-haired -rrb- jump laughing",
    "Mr. Smith's T-shirt costs $3.50!": "mr. smith 's t-shirt costs $ 3.50",
    "They can't; we cannot.": "they ca n't we can not",
    "They cannot stop; gonna wanna gotta go": "they can not stop gon na wan na got ta go",
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
