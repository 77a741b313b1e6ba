"""Metrics against those that everybody quotes."""

import gzip
import random
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import sacrebleu
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate import bleu_score
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from captioning.metrics.audit import audit
from captioning.metrics.bleu import Statistics, bleu
from captioning.metrics.cider import Frequencies
from captioning.metrics.diversity import describe, diversity, novelty, self_cider
from captioning.metrics.java import java_columns, package
from captioning.metrics.meteor import PARTS, meteor, meteor_columns
from captioning.metrics.results import Result, metrics_of
from captioning.metrics.rouge import longest_common, rows_of
from captioning.metrics.score import References, score
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


def test_a_token_with_a_no_break_space_is_two_words_to_bleu_and_cider_and_one_to_rouge_as_cocos():
    hypotheses, references = ["a 3 1/2 cup of tea", "a dog"], [["a 3 1/4 cup of tea"], ["a dog"]]
    ours = score(hypotheses, references)
    wanted, guessed = (
        {i: [" ".join(tokenize(text)) for text in its] for i, its in enumerate(texts)} for texts in (references, [[t] for t in hypotheses])
    )
    theirs, _ = Bleu(4).compute_score(wanted, guessed, verbose=0)
    assert [ours[f"bleu{n}"] for n in range(1, 5)] == pytest.approx(theirs, abs=1e-9)
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
    assert all(value == pytest.approx(0, abs=1e-9) for value in score(["xyz"] * 2, references).values())


def test_unknown_words_never_match():
    assert score(["<unk>"], [["a zyzzyva"]])["bleu1"] == pytest.approx(0, abs=1e-9)


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


def test_a_description_counts():
    about = describe(["a dog", "a dog", "a a <unk> cat"])
    assert about["distinct_captions"] == 2 and about["vocabulary_used"] == 4 and about["length"] == pytest.approx(8 / 3)
    assert about["most_common_share"] == pytest.approx(2 / 3) and about["unknown_rate"] == pytest.approx(1 / 8)
    assert about["distinct1"] == 4 / 8 and about["distinct2"] == 4 / 5 and about["repeats"] == pytest.approx(1 / 3)


def test_candidates_without_a_weighted_word_say_nothing_of_diversity():
    """All n-grams of a single image are in every document, and weigh nothing."""
    assert diversity([["a dog", "a dog"]], References([["a dog"]])).keys() == {"mbleu4"}
    some = diversity([["", ""], ["a cat", "a cat"]], References([["a dog"], ["a cat"]]))
    assert some["self_cider"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("content", "reason"), {
    b'{"images": 3, "counts": {"a": 4}}': "'a' is said to be in 4 of 3 images",
    b'{"images": 3, "counts": {"a": null}}': "'a' is said to be in None",
    b'{"images": -5, "counts": {}}': "expected",
    b'{"images": 3': "delimiter",
    gzip.compress(b'{"images": 3, "counts": {}}')[:-9]: "not whole",
}.items())  # fmt: skip
def test_document_frequencies_that_cannot_be_are_refused(content, reason, tmp_path):
    path = tmp_path / ("df.json.gz" if content[:1] == b"\x1f" else "df.json")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        Frequencies.load(path)


def test_nothing_equals_nothing_to_rouge_as_to_cocos():
    hypotheses, references = [".", "a dog", "."], [["."], ["."], ["a dog"]]
    wanted, guessed = (
        {i: [" ".join(tokenize(t)) for t in its] for i, its in enumerate(texts)} for texts in (references, [[t] for t in hypotheses])
    )
    assert References(references).columns(hypotheses)["rouge_l"] == pytest.approx(Rouge().compute_score(wanted, guessed)[1])


def test_a_caption_is_new_unless_a_training_caption_has_its_words():
    assert novelty(["a dog runs", "a cat"], ["A dog runs.", "the cat"]) == 1 / 2


def test_candidates_that_are_alike_have_no_diversity_and_those_that_share_nothing_have_all():
    references = References([["a dog runs", "a hound"], ["two cats"], ["a man sits down"]])
    alike = diversity([["a dog runs on grass"] * 3, ["two cats sit on a red mat"] * 3, ["x"]], references)
    assert alike["mbleu4"] == pytest.approx(1) and alike["self_cider"] == pytest.approx(0, abs=1e-6)
    apart = diversity([["a dog", "two cats", "red mats"], ["x y", "u v", "s t"], ["x"]], references)
    assert apart["mbleu4"] == pytest.approx(0, abs=1e-9) and apart["self_cider"] == pytest.approx(1)
    assert diversity([["one"], ["two"], ["three"]], references) == {}


def test_self_cider_is_that_of_the_plain_matrix():
    """Wang and Chan 2019: cosines of tf-idf vectors, written out."""
    hypotheses, texts = corpus()
    candidates = [[text, *its[:2]] for text, its in zip(hypotheses, texts)]
    found = self_cider(candidates, References(texts))
    frequencies = Frequencies.of([[text.split() for text in its] for its in texts])
    for image in (0, 7, len(texts) - 1):
        kernel = np.zeros((len(candidates[image]),) * 2)
        for n in range(1, 5):
            vectors = []
            for text in candidates[image]:
                words = text.split()
                grams = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
                vectors.append({g: c * np.log(len(texts) / max(1, frequencies.counts.get(g, 0))) for g, c in grams.items()})
            norms = [max(1e-30, sum(v * v for v in its.values())) ** 0.5 for its in vectors]
            for i, one in enumerate(vectors):
                for j, other in enumerate(vectors):
                    kernel[i, j] += sum(v * other.get(g, 0) for g, v in one.items()) / norms[i] / norms[j] / 4
        roots = np.sqrt(np.linalg.eigvalsh(kernel).clip(min=0))
        assert found[image] == pytest.approx(-np.log(roots.max() / roots.sum()) / np.log(len(kernel)), abs=1e-9)


def test_given_document_frequencies_weigh_as_those_of_their_references(tmp_path):
    hypotheses, texts = corpus()
    whole, few = References(texts), slice(20, 40)
    expected = whole.cider.each(whole.compare(hypotheses, range(len(texts))))[few]
    for name in ("df.json", "df.json.gz"):
        Frequencies.of([[text.split() for text in its] for its in texts]).save(tmp_path / name)
        some = References(texts[few], Frequencies.load(tmp_path / name))
        assert some.columns(hypotheses[few])["cider"] == pytest.approx(expected, abs=1e-12)
    assert References(texts[few]).columns(hypotheses[few])["cider"] != pytest.approx(expected, abs=1e-3)
    assert (
        some.result(hypotheses[few], texts[few]).signatures["cider"]
        != References(texts[few]).result(hypotheses[few], []).signatures["cider"]
    )


def test_the_audit_says_what_nltk_says():
    hypotheses, references = corpus()
    found = {variant.name: variant.scores for variant in audit(hypotheses, references)}
    guessed, wanted = [text.split() for text in hypotheses], [[text.split() for text in its] for its in references]
    smooth = bleu_score.SmoothingFunction().method1
    assert found["COCO"] == {name: value for name, value in score(hypotheses, references).items() if "bleu" in name}
    for n in range(1, 5):
        weights = (1 / n,) * n
        assert found["nltk corpus_bleu"][f"bleu{n}"] == pytest.approx(bleu_score.corpus_bleu(wanted, guessed, weights))
        each = [bleu_score.sentence_bleu(w, g, weights, smooth) for w, g in zip(wanted, guessed)]
        assert found["mean of smoothed ones"][f"bleu{n}"] == pytest.approx(sum(each) / len(each))
    three = bleu_score.corpus_bleu(wanted, guessed, (0.3, 0.3, 0.3, 0))
    assert found["weights .3 .3 .3"]["bleu3"] == pytest.approx(three) and found["COCO"]["bleu3"] < three
    with_end = [text + " <end>" for text in hypotheses], [[text + " <end>" for text in its] for its in references]
    theirs, _ = Bleu(4).compute_score(dict(enumerate(with_end[1])), {i: [text] for i, text in enumerate(with_end[0])}, verbose=0)
    assert list(found["<end> counted"].values()) == pytest.approx(theirs, abs=1e-9)


def test_meteors_formula_is_the_one_of_its_program():
    """The aligner's lines, and the scores that meteor-1.5.jar gave them and, last, all of them together."""
    lines = """9 7 4 3 0 0 2 2 0 0 0 0 0 0 0 0 0 0 0 0 2 2 2
19 12 9 5 5 5 4 4 0 0 0 0 0 0 0 0 1 1 0 1 3 10 11
7 7 3 3 4 4 3 3 0 0 0 0 0 0 0 0 0 0 0 0 1 7 7
0 14 0 7 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0"""
    columns = meteor_columns(np.array([line.split() for line in lines.splitlines()], dtype=float))
    each = meteor(tuple(columns[part] for part in PARTS))
    assert each == pytest.approx([0.05128205128205128, 0.40562693030390645, 1.0, 0.0], abs=1e-12)


@pytest.mark.slow  # twice the start of METEOR's paraphrase table
@pytest.mark.skipif(shutil.which("java") is None, reason="no Java here")
def test_meteor_is_pycocoevalcaps_alone_and_together_and_leaves_nothing_behind():
    from pycocoevalcap.meteor.meteor import Meteor

    hypotheses, references = corpus(6)
    hypotheses[1] = references[1][0]
    hypotheses[2] = "a dog\nruns ||| fast"  # pycocoevalcap's would raise and hang ever after
    before = {path: path.stat().st_mtime for path in package().rglob("*")}
    columns, notes = java_columns(hypotheses, references)
    assert {path: path.stat().st_mtime for path in package().rglob("*")} == before
    assert len(notes) == 1 and notes[0].startswith("SPICE is left out: ") and "stanford-corenlp-3.6.0" in notes[0]
    hypotheses[2] = "a dog runs | | | fast"  # its tokens
    theirs, each = Meteor().compute_score(dict(enumerate(references)), {i: [text] for i, text in enumerate(hypotheses)})
    assert meteor(tuple(columns[part] for part in PARTS)) == pytest.approx(each, abs=1e-9)
    result = References(references).result(hypotheses, hypotheses).extended(columns, "refs:1")
    assert result.metrics["meteor"] == pytest.approx(theirs, abs=1e-9) and result.signatures["meteor"].endswith("impl:meteor-1.5")


def test_without_java_or_in_time_metrics_are_left_out_by_name(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert java_columns(["a dog"], [["a cat"]])[1][0] == "METEOR is left out: there is no java on the PATH"
    slow = tmp_path / "java"
    slow.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    slow.chmod(0o755)
    assert java_columns(["a dog"], [["a cat"]], seconds=0.2)[1][0] == "METEOR is left out: java took more than 0 s"
    slow.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    assert java_columns(["a dog"], [["a cat"]])[1][0] == "METEOR is left out: java ended with 3 (broken)"
