"""The gallery: which images stand on it, what is said below them, and that the page needs nothing else."""

import hashlib
import re
import shutil
from html import unescape

import numpy as np
import pytest
from conftest import is_a_good_page
from PIL import Image

from captioning.analysis import page, results
from captioning.analysis.cards import Pictures
from captioning.analysis.gallery import GalleryRun, gallery
from captioning.analysis.grouping import Member, grouped, labels
from captioning.analysis.page import number
from captioning.analysis.results import Evaluated
from captioning.build.compose import composed
from captioning.build.evaluation import evaluate
from captioning.cli import main as captioning_command
from captioning.errors import UserError
from captioning.training.evaluate import grade, prepare

EVIL = '<script>alert("x")</script>'
REFERENCES = {f"{place}.jpg": [f"a dog sees {place} birds {more}" for more in ("", "fly", "now", "there", EVIL)] for place in range(30)}
GOOD = {name: texts[0] for name, texts in REFERENCES.items()}
BAD = {name: f"a cat sees {name[:-4]} birds there" for name in REFERENCES}


def told(label, captions, references=REFERENCES):
    result, said = grade(captions, prepare(references))
    return GalleryRun(label, f"runs/{label}", "Beam", Evaluated(result.metrics | said | {"split": "test"}, result, captions, references))


@pytest.fixture
def shown(tmp_path):
    """Thirty times one picture, as smooth and as rough as a photograph."""
    draws = np.random.default_rng(0)
    coarse, fine = (Image.fromarray(draws.integers(0, 256, (side * 3, side * 4, 3), dtype=np.uint8)) for side in (12, 160))
    Image.blend(coarse.resize((640, 480), Image.Resampling.BICUBIC), fine, 0.25).save(tmp_path / "picture.jpg")
    return Pictures(dict.fromkeys(REFERENCES, tmp_path / "picture.jpg"))


NONE = Pictures({}, "data.root=gone: no such folder")


def names_in(text):
    return [unescape(name) for name in re.findall(r'<p class="name">([^<]*)</p>', text)]


def test_the_images_are_the_first_by_the_sha256_of_their_ids_whatever_was_said_of_them():
    first = sorted(REFERENCES, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    turned = dict(reversed(REFERENCES.items()))
    for run in (told("good", GOOD), told("bad", BAD), told("turned", {name: GOOD[name] for name in turned}, turned)):
        assert names_in(gallery([run], NONE)) == first[:24] != sorted(first)[:24]
    assert names_in(gallery([told("good", GOOD)], NONE, 5)) == first[:5] and names_in(gallery([told("bad", BAD)], NONE, 99)) == first


def test_the_rule_stands_on_the_page_with_the_numbers_of_images():
    rule = re.search(r"The rule: .*?\.</p>", gallery([told("good", GOOD)], NONE))[0]
    assert "the 30 evaluated images of test" in rule and "SHA-256" in rule and "the first 24" in rule and "--images 24" in rule


def test_below_each_picture_stands_what_every_run_says_with_its_own_score_and_the_references_are_folded(shown):
    runs = [told("good", GOOD), told("bad", BAD)]
    text = gallery(runs, shown, 4)
    for name, card in zip(names_in(text), text.split('<img class="picture"')[1:], strict=True):
        assert re.findall(r'</span>(\w+)</p>\s*<p class="said">(.*?)</p>', card) == [("good", GOOD[name]), ("bad", BAD[name])]
        its = [dict(zip(run.evaluated.result.image_ids, run.evaluated.result.columns["cider"]))[name] for run in runs]
        assert re.findall(r"CIDEr&nbsp;([\d.]+)", card) == [number(value, 2) for value in its] and its[0] > its[1] > 0
        details = re.search(r"<details><summary>5 references</summary>(.*?)</details>", card, flags=re.DOTALL)[1]
        assert [unescape(line) for line in re.findall(r"<li>(.*?)</li>", details)] == REFERENCES[name]


def test_a_picture_is_not_described_by_what_is_to_be_judged(shown):
    alts = re.findall(r'<img[^>]* alt="([^"]*)"', gallery([told("good", GOOD)], shown, 3))
    assert len(alts) == 3 and all(re.fullmatch(r"Picture \d+\.jpg", alt) for alt in alts)


def test_means_are_of_the_images_shown_and_of_all():
    run = told("good", GOOD | {name: "" for name in list(GOOD)[:9]})
    text = gallery([run], NONE, 6)
    cider = dict(zip(run.evaluated.result.image_ids, run.evaluated.result.columns["cider"]))
    means = [np.mean([cider[name] for name in names]) for names in (names_in(text), cider)]
    assert re.findall(r'<td class="n">([\d.]+)</td>', text)[:2] == [number(mean) for mean in means] and means[0] != means[1]


def test_runs_of_other_images_or_references_are_refused_by_their_directories():
    runs = [told("one", GOOD), told("two", BAD)]
    fewer = [{name: its[name] for name in list(its)[:20]} for its in (GOOD, REFERENCES)]
    with pytest.raises(UserError, match=r"runs/three: evaluated on other images than runs/one \(.*; 10 such images\): evaluate both on"):
        gallery([*runs, told("three", *fewer)], NONE)
    with pytest.raises(UserError, match=r"runs/three: has other references than runs/one for image 3\.jpg"):
        gallery([*runs, told("three", GOOD, REFERENCES | {"3.jpg": ["a dog"]})], NONE)


def test_texts_are_never_html_and_nothing_is_asked_for(shown):
    text = gallery([told(EVIL, GOOD | dict.fromkeys(list(GOOD)[::2], EVIL)), told("b", BAD)], shown)
    assert "<script" not in text and text.count("&lt;script&gt;") > 24 and "default-src 'none'" in text
    links = re.findall(r'\b(?:src|href|action|srcset)="([^"]*)"', text)
    assert len(links) > 24 and all(link.startswith(("data:image/", "data:,", "#")) for link in links) and "url(" not in text


def test_24_photographs_take_less_than_2_megabytes(shown):
    text = gallery([told("good", GOOD), told("bad", BAD)], shown)
    assert text.count("data:image/jpeg") == 24 and 200_000 < len(text.encode()) < 2_000_000


def test_what_was_not_made_alike_is_said():
    one, two = told("good", GOOD), told("bad", BAD)
    changed = two.evaluated.result._replace(signatures=two.evaluated.result.signatures | {"cider": "cider|df:coco"})
    two = two._replace(evaluated=two.evaluated._replace(metrics=two.evaluated.metrics | {"search": "greedy"}, result=changed))
    assert "not made alike" not in gallery([one, told("bad", BAD)], NONE)
    assert "not made alike: search differs" in gallery([one, two], NONE) and "not comparable: cider|" in gallery([one, two], NONE)


def test_runs_are_shown_by_the_command_without_a_model_and_are_told_apart_by_their_settings(evaluated_run, tmp_path, capsys, monkeypatch):
    for module in ("report", "compare"):
        monkeypatch.setattr(f"captioning.build.{module}.load_run", None)
    captioning_command(["gallery", str(evaluated_run), "--images", "3"])
    assert capsys.readouterr().out.strip() == str(evaluated_run / "gallery.html")
    text = (evaluated_run / "gallery.html").read_text()
    first = sorted(results.read(evaluated_run).captions, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:3]
    assert names_in(text) == first and text.count("<img") == 3 and "Beam: beam_size 3" in text

    other, seed = (shutil.copytree(evaluated_run, tmp_path / name) for name in ("other", "seed"))
    for path, old, new in [(other, "attention_size: 8", "attention_size: 9"), (seed, "\nseed: 1", "\nseed: 2")]:
        config = (path / "config.yaml").read_text()
        assert config.count(old) == 1
        (path / "config.yaml").write_text(config.replace(old, new))
    out = tmp_path / "all.html"
    captioning_command(["gallery", *map(str, (other, evaluated_run, seed)), "--out", str(out), "--data-root", str(tmp_path / "none")])
    text = out.read_text()
    who = re.findall(r'<p class="who">.*?</span>(.*?)</p>', text)
    assert who[:3] == ["attention_size=9", "attention_size=8 seed=1", "attention_size=8 seed=2"]
    assert "none: no such folder" in text and "--data-root" in text and "<img" not in text


def test_a_run_and_another_search_of_it_stand_below_one_picture(evaluated_run, tmp_path):
    run = shutil.copytree(evaluated_run, tmp_path / "run")
    evaluate(composed("eval", [f"run={run}", f"out={run}/beam1", "search.beam_size=1", "show=0", "device=cpu"]))
    captioning_command(["gallery", str(run / "beam1"), str(run), "--images", "2"])
    text = (run / "beam1" / "gallery.html").read_text()
    assert re.findall(r'<p class="who">.*?</span>(.*?)</p>', text)[:2] == ["beam_size=1", "beam_size=3"]
    assert text.count("<img") == 2 and "Beam: beam_size 1" in text


def test_no_two_runs_have_one_label():
    its = told("good", GOOD).evaluated
    runs = [
        Member(path, path, seed, {"decoder": cell}, {}, its, {}, "")
        for path, seed, cell in zip("abcd", (1, 1, 2, 1), ("gru", "gru", "gru", "rnn"))
    ]
    assert labels(grouped(runs)) == {"a": "gru seed=1 (a)", "b": "gru seed=1 (b)", "c": "gru seed=2", "d": "rnn"}


def test_what_cannot_be_shown_is_answered_in_a_sentence(evaluated_run, finished, tmp_path, capsys):
    for arguments, sentence in [
        ([str(finished)], f"{finished}: not evaluated yet"),
        ([str(evaluated_run), f"{evaluated_run}/../{evaluated_run.name}"], "is the same run twice"),
        ([str(tmp_path)], "not a run directory"),
        ([str(evaluated_run), "--images", "0"], "--images 0: at least 1"),
    ]:
        with pytest.raises(SystemExit) as exit:
            captioning_command(["gallery", *arguments])
        error = capsys.readouterr().err
        assert exit.value.code == 2 and sentence in error and error.count("\n") == 1


@pytest.mark.parametrize(("count", "scheme"), [(1, "light"), (2, "dark"), (5, "light")])
def test_in_a_browser_it_is_quiet_accessible_and_as_narrow_as_a_phone(chromium, shown, tmp_path, scheme, count):
    runs = [told(f"{place}-a-long-name-" * 9, BAD if place else GOOD) for place in range(count)]
    page.write(tmp_path / "gallery.html", gallery(runs, shown))
    is_a_good_page(chromium, tmp_path / "gallery.html", scheme)
