"""The report: what stands on it, that nothing in it is taken for HTML, and that it works in a real browser."""

import re
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from conftest import is_a_good_page, pictures
from PIL import Image

from captioning.analysis import page, plots, results
from captioning.analysis.cards import Pictures, Subject, place, scores
from captioning.analysis.failures import failures
from captioning.analysis.report import by_cider, by_hash, report
from captioning.analysis.results import Evaluated
from captioning.analysis.samples import Looked
from captioning.analysis.texts import given_often, repeated, vocabularies
from captioning.cli import main as captioning_command
from captioning.errors import UserError
from captioning.training.evaluate import grade, prepare

EVIL = '<script>alert("x")</script>'
REFERENCES = {
    "a.jpg": ["a black dog runs on grass", "the black dog is running fast"],
    "b.jpg": ["two red birds sit on a wire", "two birds that are red"],
    "c.jpg": ["a man climbs a steep rock", "a climber on the rock face"],
    f"{EVIL}.jpg": ["a child swims in a pool", f"{EVIL} a boy is in the water"],
}
CAPTIONS = {
    "a.jpg": "a black dog runs on grass",
    "b.jpg": "two green birds sit on a wire",
    "c.jpg": "a dog runs",
    f"{EVIL}.jpg": f"a boy {EVIL} in the pool",
}


def evaluated(captions=CAPTIONS, references=REFERENCES):
    result, said = grade(captions, prepare(references))
    metrics = result.metrics | said | {"split": "test", "images": len(captions), "search": {}, "signatures": result.signatures}
    return Evaluated(metrics, result, captions, references)


def subject(name="one", look=None, **given):
    history = [{"epoch": n, "step": 10 * n, "train_loss": 3 / n, "loss": 4 / n, "cider": 0.1 * n, "bleu4": 0.1} for n in (1, 2, 3)]
    return Subject(name, {"Encoder": "CNN"}, {"seed": name}, history, 20, "cider", evaluated(**given), look)


def other(name="two"):
    return subject(name, captions=CAPTIONS | {"a.jpg": "a cat", "c.jpg": "a man climbs a steep rock"})


@pytest.fixture
def shown(tmp_path) -> Pictures:
    names = ["a.jpg", "b.jpg", "c.jpg"]
    paths = {name: pictures(tmp_path / "shown", *names) / name for name in names}
    Image.effect_noise((640, 480), 90).convert("RGB").save(tmp_path / "evil.jpg")
    return Pictures(paths | {f"{EVIL}.jpg": tmp_path / "evil.jpg"})


def looking(path, caption):
    words = caption.split()
    return Looked(Image.new("RGB", (32, 32)), words, torch.eye(9)[torch.arange(len(words)) % 9])


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def section(text, name):
    return text.split(f'<h2 id="{name}">')[1].split("<h2 ")[0]


def names_in(text):
    return [unescape(name) for name in re.findall(r'<p class="name">([^<]*)</p>', text)]


def test_the_best_captions_are_sorted_by_cider_and_the_worst_from_the_other_end(shown):
    run = subject()
    cider = dict(zip(run.evaluated.result.image_ids, run.evaluated.result.columns["cider"]))
    order = sorted(cider, key=lambda name: -cider[name])
    assert by_cider(scores(run.evaluated.result)) == order and len(set(cider.values())) == 4
    text = report(run, None, shown, 2)
    assert names_in(section(text, "best")) == order[:2] and order[0] == "a.jpg"
    assert names_in(section(text, "worst")) == order[:1:-1]


def test_the_random_images_depend_on_their_names_alone():
    names = [f"{number}.jpg" for number in range(50)]
    assert by_hash(dict.fromkeys(names)) == by_hash(dict.fromkeys(reversed(names), "other")) != names
    assert [name for name in by_hash(dict.fromkeys(names)) if name != "7.jpg"] == by_hash(dict.fromkeys(n for n in names if n != "7.jpg"))


def test_texts_and_names_are_never_html(shown):
    text = report(subject(EVIL, looking), other(f"{EVIL}2"), shown)
    assert "script" not in {tag for tag, _ in Tags(text).tags} and "<script" not in text and text.count("&lt;script&gt;") > 10
    assert not [attributes for _, attributes in Tags(text).tags if any(name.startswith("on") for name in attributes)]


def test_the_file_needs_nothing_else_and_no_id_stands_in_it_twice(shown):
    tags = Tags(report(subject("one", looking), other(), shown)).tags
    links = [attributes[name] for _, attributes in tags for name in ("src", "href", "action", "data", "srcset") if attributes.get(name)]
    assert links and all(link.startswith(("data:image/", "data:,", "#")) for link in links)
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    assert all(attributes.get("aria-label") for tag, attributes in tags if tag == "svg")


def test_pictures_that_are_missing_are_said_and_the_rest_stands(tmp_path):
    text = report(subject("one", looking), None, Pictures({}, "data.root=gone: no such folder"))
    assert "data.root=gone: no such folder" in text and "--data-root" in text and "<img" not in text
    assert text.count("is not shown: the data was not found") >= 4 and CAPTIONS["a.jpg"] in text
    (tmp_path / "b.jpg").write_bytes(b"broken")
    text = report(subject(), None, Pictures({"a.jpg": tmp_path / "a.jpg", "b.jpg": tmp_path / "b.jpg"}))
    assert "a.jpg: no such file" in text and "b.jpg: not an image" in text and "the data has no such image" in text


def test_another_run_with_other_images_or_references_is_refused_by_name(shown):
    fewer = [{name: its[name] for name in ("a.jpg", "b.jpg")} for its in (CAPTIONS, REFERENCES)]
    with pytest.raises(UserError, match=r"two: evaluated on other images than one \(.*is in one and not in two; 2 such"):
        report(subject(), subject("two", captions=fewer[0], references=fewer[1]), shown)
    with pytest.raises(UserError, match=r"two: has other references than one for image b\.jpg"):
        report(subject(), subject("two", references=REFERENCES | {"b.jpg": ["two birds"]}), shown)


def test_two_runs_are_shown_where_they_differ_in_both_directions(shown):
    text = section(report(subject(), other(), shown), "apart")
    first, second = text.split("<h3>")[1:]
    assert first.startswith("one is better") and names_in(first)[0] == "a.jpg" and "a cat" in first
    assert second.startswith("two is better") and names_in(second)[0] == "c.jpg" and first.count("<img") == len(names_in(first))


def test_values_are_subtracted_only_under_one_signature(shown):
    two = other()
    changed = two.evaluated.metrics["signatures"] | {"cider": "cider|df:coco"}
    two = two._replace(evaluated=two.evaluated._replace(metrics=two.evaluated.metrics | {"signatures": changed}))
    rows = re.findall(r"<tr><th scope=\"row\">([\w-]+)</th>(.*?)</tr>", section(report(subject(), two, shown), "summary"), flags=re.DOTALL)
    assert [name for name, cells in rows if "not comparable" in cells] == ["CIDEr"]


def test_a_model_sees_only_the_pictures_whose_attention_is_drawn(shown):
    seen = []

    def look(path, caption):
        seen.append(caption)
        return looking(path, caption)

    many = {f"{number}.jpg": "a dog" for number in range(60)}
    run = subject("one", look, captions=many, references={name: ["a black dog"] for name in many})
    report(run, None, Pictures(dict.fromkeys(many, next(iter(shown.paths.values())))))
    assert len(seen) == 8


def test_a_decoder_without_attention_is_said_to_have_none(shown):
    assert "has no attention to show" in section(report(subject(), None, shown), "attention")
    text = section(report(subject("one", looking), None, shown), "attention")
    assert "has no attention" not in text and "looked most at the upper left" in text


def test_places_in_a_grid_are_told_in_words():
    assert [place(cell, 3) for cell in range(9)] == [
        *("upper left", "upper", "upper right"),
        *("left", "centre", "right"),
        *("lower left", "lower", "lower right"),
    ]
    assert place(0, 7) == "upper left" and place(24, 7) == "centre" and place(0, 1) == "centre"


@pytest.mark.parametrize(
    ("category", "caption", "references", "is_one"),
    [
        ("Nothing in common", "a cat on the sofa", ["a dog on the grass"], True),
        ("Nothing in common", "a dog on the sofa", ["the dogs", "the dog"], False),
        ("Another number", "three dogs", ["two dogs", "2 dogs run", "dogs"], True),
        ("Another number", "three dogs", ["two dogs", "dogs", "dogs", "some dogs"], False),  # one of four says two
        ("Another number", "two dogs", ["a dog", "the dog"], False),  # nothing is counted
        ("Another number", "three dogs", ["two dogs", "two dogs", "three dogs"], False),
        ("Another colour", "a red ball", ["a blue ball", "the blue ball", "a ball"], True),
        ("Another colour", "a red and blue ball", ["a blue ball", "the blue ball"], False),
        ("Another colour", "a grey ball", ["a gray ball", "a gray ball"], False),
        ("Another colour", "a red ball", ["a blue ball", "a green ball"], False),  # they do not agree
        ("Repeated phrase", "a dog and a dog and a cat", ["x"], True),
        ("Repeated phrase", "a man in a hat in a car", ["x"], False),
        ("Unfinished", "a dog on the", ["x"], True),
        ("Unfinished", "a dog on the grass", ["x"], False),
        ("Unknown word", "a <unk> dog", ["x"], True),
        ("Unknown word", "an unk dog", ["x"], False),
        ("Too short", "", ["a dog"], True),
        ("Too short", "dog", ["a b c", "a b c d e f"], True),
        ("Too short", "a dog", ["a b c d"], False),
        ("Too long", "a b c d", ["a b", "a"], True),
        ("Too long", "a b c", ["a b", "a"], False),
    ],
)
def test_failures_are_found_by_their_rules(category, caption, references, is_one):
    found = {failure.category.name: failure.images for failure in failures({"x": caption}, {"x": references})}
    assert (set(found[category]) == {"x"}) == is_one, found


def test_a_caption_given_to_one_in_a_hundred_images_and_to_five_is_generic():
    def generic(images, times):
        captions = {str(n): "a dog" if n < times else f"dog {n}" for n in range(images)}
        its = failures(captions, {name: ["a dog"] for name in captions})
        return len(next(failure for failure in its if failure.category.name == "Generic").images)

    assert (generic(100, 4), generic(100, 5), generic(1000, 9), generic(1000, 10)) == (0, 5, 0, 10)


def test_phrases_words_and_captions_are_counted():
    assert repeated(["a", "red", "dog", "and", "a", "red", "dog"]) == "a red dog" and repeated(["dog", "dog"]) == "dog"
    assert repeated(["black", "dog", "near", "black", "dog"]) == "black dog" and repeated(["in", "a", "hat", "in", "a", "car"]) is None
    assert given_often({"1": "a dog", "2": "a dog", "3": "a cat"}) == [("a dog", 2)]
    its = vocabularies(["a dog"], ["a cat", "the cat"])
    assert (its.used, its.in_references, its.shared) == (2, 3, 1)
    assert [use.word for use in its.over] == ["dog", "a"] and its.under[0].word == "cat" and its.under[0].references == 500


def test_every_image_is_in_one_group_of_lengths_and_none_is_too_small():
    references = {str(n): ["word " * (1 + n % 9)] for n in range(40)}
    groups = plots.length_groups(references, 7)
    assert sorted(name for group in groups for name in group.image_ids) == sorted(references)
    assert min(len(group.image_ids) for group in groups) >= 7 and groups[0].low == 1 and groups[-1].high == 9


def test_a_figures_colours_are_the_pages_and_its_label_is_escaped():
    curves = plots.learning_curves({"$a$ <b>": subject().history, "_c": subject().history}, ("cider",), {"_c": 20})
    text = page.svg(curves, 'what "it" <shows>')
    assert not re.findall(r"#[0-9a-f]{6}\b", re.sub(r'(id=|#)"?[mp][0-9a-f]{10}', "", text)), "a colour that is of no scheme"
    assert (
        "var(--series-2)" in text
        and ">$a$ &lt;b&gt;</text>" in text
        and "_c</text>" in text
        and "&lt;shows&gt;" in text
        and "<style" not in text
    )


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_colour_of_text_and_of_lines_has_enough_contrast_in_both_schemes():
    style = (Path(page.__file__).parent / "templates" / "page.css").read_text()
    schemes = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in style.split("@media")[:2]]
    assert len(schemes) == 2 and schemes[0].keys() == schemes[1].keys()
    for colours in schemes:
        for name in colours.keys() - {"ground", "raised", "line"}:
            for ground in ("ground", "raised"):
                low, high = sorted((luminance(colours[name]), luminance(colours[ground])))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground)


def test_a_run_is_reported_by_the_command_alone(evaluated_run, drawings, tmp_path, capsys):
    run = evaluated_run
    captioning_command(["report", str(run), "--device", "cpu", "--examples", "3"])
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    text = (run / "report.html").read_text()
    captions = results.read(run).captions
    cards = names_in(section(text, "random"))
    assert cards == by_hash(captions)[:3] and len(text) < 5e6
    strips = section(text, "attention").split('<p class="strip-head">')[1:]
    words = [re.search(r"<strong>(.*?)</strong>", its)[1].split() for its in strips]
    assert strips and [its.count("<img") for its in strips] == [1 + len(its) for its in words]
    assert "SoftAttentionDecoder" in text and results.read(run).metrics["signatures"]["cider"] in text

    again = shutil.copytree(run, tmp_path / "again")
    captioning_command(["report", str(run), str(again), "--out", str(tmp_path / "two.html"), "--data-root", str(tmp_path / "none")])
    text = (tmp_path / "two.html").read_text()
    assert "none: no such folder" in text and "<img" not in text and not (tmp_path / "none").exists()


def test_a_run_that_is_not_evaluated_is_answered_with_the_command(finished, capsys, tmp_path):
    for arguments, sentence in [
        ([str(finished)], f"{finished}: not evaluated yet (no scores.json): python eval.py run={finished}"),
        ([str(finished), str(finished)], "same run twice"),
        ([str(tmp_path)], "not a run directory"),
        ([str(finished), "--examples", "0"], "--examples 0: at least 1"),
    ]:
        with pytest.raises(SystemExit) as exit:
            captioning_command(["report", *arguments])
        error = capsys.readouterr().err
        assert exit.value.code == 2 and sentence in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("what", "scheme"), [("one run", "dark"), ("two runs without pictures", "light"), ("two runs", "light"), ("two runs", "dark")]
)
def test_in_a_browser_it_is_quiet_accessible_and_as_narrow_as_a_phone(chromium, shown, tmp_path, scheme, what):
    its = Pictures({}, "data.root=gone: no such folder") if "without" in what else shown
    file = tmp_path / "report.html"
    page.write(file, report(subject(EVIL, looking), None if what == "one run" else other("a-long-name-" * 9), its))
    is_a_good_page(chromium, file, scheme)
