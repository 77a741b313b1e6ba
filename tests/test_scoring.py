"""`captioning score`: anybody's captions in anybody's format."""

import json
import shutil

import pytest

from captioning.analysis import scoring
from captioning.cli import main as captioning_command
from captioning.data.captions import read_captions
from captioning.errors import UserError
from captioning.metrics.results import Result

WANTED = {"1": ["A dog runs.", "The dog is running, fast."], "2": ["Two cats"]}
FORMATS = {
    "plain.json": json.dumps(WANTED),
    "coco.json": json.dumps({"annotations": [{"id": 7, "image_id": int(i), "caption": text} for i, its in WANTED.items() for text in its]}),
    "rows.json": json.dumps([{"image_id": int(i), "caption": text} for i, its in WANTED.items() for text in its]),
    "karpathy.json": json.dumps({"images": [{"filename": i, "sentences": [{"raw": t} for t in its]} for i, its in WANTED.items()]}),
    "lines.jsonl": "".join(json.dumps({"image": i, "caption": text}) + "\n" for i, its in WANTED.items() for text in its),
    "table.csv": 'image,caption\n1,A dog runs.\n1,"The dog is running, fast."\n2,Two cats\n',
    "flickr.token": "1#0\tA dog runs.\n1#1\tThe dog is running, fast.\n2#0\tTwo cats\n",
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_alike_with_ids_as_strings(name, tmp_path):
    (tmp_path / name).write_text(FORMATS[name])
    assert read_captions(tmp_path / name) == WANTED


@pytest.mark.parametrize(
    ("content", "reason"),
    {
        "{": "line 1: not JSON",
        "3": "no captions at ''",
        '{"a": 3}': "no captions at 'a'",
        '{"a": []}': "no captions at 'a'",
        '[{"image_id": 3}]': "item 0: no image id",
        '[["a", "b"]]': "item 0: no image id",
        '{"images": [{"filename": "a", "sentences": [{}]}]}': "item 0: no image id",
        '{"images": [1]}': "item 0: no image id",
        '{"images": [{"filename": "a", "sentences": null}]}': "item 0: no image id",
        '{"images": [{"filename": "a", "sentences": ["x"]}]}': "item 0: no image id",
        "[" * 100_000: "nested too deeply",
    }.items(),
)
def test_what_is_no_captions_file_is_refused_with_what_is_allowed(content, reason, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=f"x.json.*{reason}"):
        read_captions(tmp_path / "x.json")


@pytest.mark.parametrize(("said", "wanted"), [
    ({"a.jpg": "x"}, {"images": [{"id": 7, "file_name": "a.jpg"}], "annotations": [{"image_id": 7, "caption": "a dog"}]}),
    ([{"image_id": 7, "caption": "x"}], {"images": [{"cocoid": 7, "filename": "a.jpg", "sentences": [{"raw": "a dog"}]}]}),
])  # fmt: skip
def test_an_image_may_go_by_its_file_name_here_and_by_its_number_there(said, wanted, tmp_path):
    (tmp_path / "said.json").write_text(json.dumps(said))
    (tmp_path / "wanted.json").write_text(json.dumps(wanted))
    given, notes = scoring.read(tmp_path / "said.json", tmp_path / "wanted.json")
    assert given.candidates == [["x"]] and given.references == [["a dog"]] and notes == []


@pytest.fixture
def files(tmp_path):
    texts = {f"{i}.jpg": [f"a dog number {i} runs on grass", f"the dog {i} in a park"] for i in range(6)}
    (tmp_path / "refs.json").write_text(json.dumps(texts))
    (tmp_path / "caps.json").write_text(json.dumps({name: f"a dog {i} runs on the grass" for i, name in enumerate(texts)}))
    return tmp_path


def score(capsys, *arguments):
    captioning_command(["score", *map(str, arguments)])
    return capsys.readouterr()


def test_the_scores_have_the_keys_of_metrics_json_and_a_signature_each(files, capsys):
    found = json.loads(score(capsys, files / "caps.json", files / "refs.json", "--json", "--training", files / "refs.json").out)
    assert {"bleu1", "bleu4", "rouge_l", "cider", "length", "distinct1", "repeats", "novelty", "images", "signatures"} <= found.keys()
    assert (
        found["images"] == 6
        and found["novelty"] == 1
        and found["signatures"].keys() == {"bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider"}
    )
    assert "|refs:2|images:6|" in found["signatures"]["bleu4"]


def test_each_images_part_is_written_and_gives_the_same_metrics(files, capsys):
    found = json.loads(score(capsys, files / "caps.json", files / "refs.json", "--json", "--per-image", files / "scores.json").out)
    assert Result.load(files / "scores.json").metrics.items() <= found.items()


def test_kept_document_frequencies_make_few_images_score_as_among_all(files, capsys):
    text = score(capsys, files / "caps.json", files / "refs.json", "--save-cider-df", files / "df.json.gz")
    assert "note: CIDEr's document frequencies are of 6 images" in text.err
    few = {"3.jpg": "a dog 3 runs on the grass"}
    (files / "few.json").write_text(json.dumps(few))
    found = score(
        capsys, files / "few.json", files / "refs.json", "--json", "--cider-df", files / "df.json.gz", "--per-image", files / "few.out"
    )
    whole = scoring.score(scoring.read(files / "caps.json", files / "refs.json")[0])
    assert json.loads(found.out)["cider"] == pytest.approx(whole.result.columns["cider"][3]) != 0
    assert "1 of the 6 images" in found.err and "|df:corpus|" not in json.loads(found.out)["signatures"]["cider"]


def test_the_audit_fits_on_one_screen(files, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = score(capsys, files / "caps.json", files / "refs.json", "--audit").out.splitlines()
    table = lines[next(i for i, line in enumerate(lines) if "other definitions" in line) :]
    assert len(table) <= 18 and any(line.strip().startswith("weights .3 .3 .3") for line in table)


def test_candidates_are_scored_by_the_first_and_compared_among_each_other(files, capsys):
    several = {name: [f"a dog {i} runs on the grass", "a red cat"] for i, name in enumerate(json.loads((files / "refs.json").read_text()))}
    (files / "several.json").write_text(json.dumps(several))
    one, all_ = (json.loads(score(capsys, files / name, files / "refs.json", "--json").out) for name in ("caps.json", "several.json"))
    assert one.items() <= all_.items() and all_["mbleu4"] < 1e-9 and 0.5 < all_["self_cider"] <= 1


@pytest.mark.skipif(shutil.which("java") is not None, reason="Java is here")
def test_without_java_the_reason_is_named(files, capsys):
    assert "METEOR is left out: there is no java" in score(capsys, files / "caps.json", files / "refs.json", "--java").err


MISTAKES = {
    "a caption of an unknown image": (["bad.json", "refs.json"], ["bad.json", "image 'x.jpg'", "no reference", "'0.jpg'"]),
    "a file that is not there": (["none.json", "refs.json"], ["none.json", "No such file"]),
    "no frequencies": (["caps.json", "refs.json", "--cider-df", "refs.json"], ["--cider-df", "not document frequencies"]),
    "a place that cannot be written": (["caps.json", "refs.json", "--per-image", "no/x.json"], ["x.json", "cannot be written"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(name, files, capsys, monkeypatch):
    monkeypatch.chdir(files)
    (files / "bad.json").write_text('{"x.jpg": "a dog"}')
    arguments, words = MISTAKES[name]
    with pytest.raises(SystemExit) as exit:
        captioning_command(["score", *arguments])
    text = capsys.readouterr().err
    assert exit.value.code == 2 and text.count("\n") == 1 and all(word in text for word in words), text
