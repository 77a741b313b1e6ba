"""Laws of `data.broken`: what cannot be read ends the job, or is counted, named and left out or replaced; nothing else changes."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import CNN, SMALL
from PIL import Image
from test_mistakes import run as run_program

from captioning.build.compose import as_dict, composed
from captioning.build.jobs import Training
from captioning.build.pictures import read_splits
from captioning.build.schema import check
from captioning.cache.key import CacheSettings
from captioning.cli import main as captioning_command
from captioning.data.images import read_image
from captioning.data.settings import Data
from captioning.data.transforms import Transform
from captioning.errors import MachineError, UserError
from captioning.training.checkpoint import find
from captioning.training.distributed import World

ALONE = World(torch.device("cpu"))
BROKEN = {"t1.png", "t4.png", "v0.png", "e2.png"}


def data_set(root: Path) -> Path:
    """Six training, three validation and three test images with two captions each; one of each split and one more is broken."""
    (root / "images").mkdir(parents=True)
    rows = ["image,caption,split"]
    for split, letter, count in (("train", "t", 6), ("val", "v", 3), ("test", "e", 3)):
        for number in range(count):
            name = f"{letter}{number}.png"
            Image.new("RGB", (40, 30), (ord(letter), 40 * number, 0)).save(root / "images" / name)
            rows += [f"{name},a thing {letter}{number},{split}", f"{name},again a thing,{split}"]
    (root / "captions.csv").write_text("\n".join(rows) + "\n")
    whole = (root / "images" / "t1.png").read_bytes()
    (root / "images" / "t1.png").write_bytes(whole[:60])
    (root / "images" / "v0.png").write_text("not a picture")
    (root / "images" / "e2.png").write_bytes(b"")
    (root / "images" / "t4.png").unlink()
    return root


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path / "cache"))
    return data_set(tmp_path / "own")


def data_of(root: Path, broken: str, **more) -> Data:
    from captioning.data.annotations import table

    return Data(lambda: table(root), Transform(16), str(root), broken=broken, **more)


def words(root: Path, *more: str) -> list[str]:
    tiny = ["data.min_count=1", "data.transform.size=16", "data.workers=0", "data.batch_size=4", "logger=none", "device=cpu"]
    return ["data=own", f"data.root={root}", *tiny, *CNN, *SMALL, "decoder=lstm", "trainer=smoke", "trainer.samples=2", *more]


def trained(root: Path, run: Path, *more: str) -> Path:
    config = as_dict(composed("train", words(root, f"run={run}", *more)))
    check(config)
    Training(config).start()
    return run


def settings(root: Path) -> CacheSettings:
    return CacheSettings(str(root.parent / "cache"))


def without_broken(root: Path, there: Path) -> Path:
    """The same data set, as it would be if the broken images had never been in it."""
    shutil.copytree(root, there)
    lines = (root / "captions.csv").read_text().splitlines()
    (there / "captions.csv").write_text("\n".join(line for line in lines if line.split(",")[0] not in BROKEN) + "\n")
    return there


def weights(run: Path) -> bytes:
    folder = find(run / "last")
    assert folder
    return (folder / "model.safetensors").read_bytes()


def test_by_default_the_first_broken_image_ends_the_job_and_nothing_is_looked_at_ahead(own, tmp_path):
    with pytest.raises(UserError, match="t4.png: no such file"):
        trained(own, tmp_path / "run")
    Image.new("RGB", (8, 8)).save(own / "images" / "t4.png")
    with pytest.raises(UserError, match=r"t1\.png: cannot be decoded"):
        trained(own, tmp_path / "run")
    assert not (tmp_path / "cache" / "pictures").exists()


def test_skip_trains_and_evaluates_as_if_the_broken_images_had_never_been_there(own, tmp_path, capsys):
    run = trained(own, tmp_path / "run", "data.broken=skip")
    text = capsys.readouterr().out
    assert "data.broken=skip: 2 of 6 train images cannot be read and are left out: t1.png (" in text
    assert "t4.png (no such file)" in text and "1 of 3 val images" in text and "4 training images, 8 captions; 2 validation images" in text
    clean = trained(without_broken(own, tmp_path / "clean"), tmp_path / "clean-run")
    assert weights(run) == weights(clean)
    about, expected = (json.loads((path / "env.json").read_text()) for path in (run, clean))
    assert about["data"] == expected["data"] and expected["broken"] == {}
    assert about["broken"]["train"]["images"] == 6 and about["broken"]["train"]["reasons"].keys() == {"t1.png", "t4.png"}


def evaluated(run: Path, out: Path, monkeypatch, *more: str) -> tuple[dict, dict, dict]:
    from captioning.build.evaluation import evaluate

    evaluate(composed("eval", [f"run={run}", "split=test", "device=cpu", "show=2", f"out={out}", "search.beam_size=1", *more]))
    return tuple(json.loads((out / f"{name}.json").read_text()) for name in ("metrics", "captions", "references"))  # type: ignore[return-value]


def test_metrics_say_what_they_are_about(own, tmp_path, monkeypatch, capsys):
    run = trained(own, tmp_path / "run", "data.broken=skip")
    metrics, captions, references = evaluated(run, tmp_path / "skip", monkeypatch)
    assert metrics["images"] == 2 and metrics["skipped_images"] == ["e2.png"]
    assert captions.keys() == references.keys() == {"e0.png", "e1.png"}
    assert "2 of 3 images of test (1 cannot be read: data.broken=skip)" in capsys.readouterr().out
    metrics, captions, references = evaluated(run, tmp_path / "replace", monkeypatch, "data.broken=replace")
    assert metrics["images"] == 3 and metrics["replaced_images"] == ["e2.png"] and "skipped_images" not in metrics
    assert captions.keys() == references.keys() == {"e0.png", "e1.png", "e2.png"}
    with pytest.raises(UserError, match=r"e2\.png: is empty"):
        evaluated(run, tmp_path / "error", monkeypatch, "data.broken=error")


def test_replace_shows_a_grey_picture_and_keeps_every_caption(own, tmp_path, capsys):
    splits, broken = read_splits(data_of(own, "replace"), settings(own), ALONE, "train", "val")
    assert len(splits["train"]) == 6 and all(len(record.captions) == 2 for record in splits["train"])
    assert broken["train"].reasons.keys() == {"t1.png", "t4.png"}
    paths = {record.image_id: record.path for record in splits["train"]}
    assert paths["t1.png"] == paths["t4.png"] and paths["t0.png"] == own / "images" / "t0.png"
    colours = read_image(paths["t1.png"]).getcolors()
    assert colours and len(colours) == 1
    about = json.loads((trained(own, tmp_path / "run", "data.broken=replace") / "env.json").read_text())
    whole = json.loads((trained(own, tmp_path / "other", "data.broken=skip") / "env.json").read_text())
    assert about["data"] != whole["data"] and about["broken"]["val"]["policy"] == "replace"
    assert "2 of 6 train images cannot be read and are shown as a grey picture" in capsys.readouterr().out


def test_a_warm_start_reads_no_picture_again_but_one_that_changed(own, tmp_path, monkeypatch):
    data, read = data_of(own, "skip"), []
    original = Transform.read
    monkeypatch.setattr(Transform, "read", lambda self, path: read.append(Path(path).name) or original(self, path))
    first = read_splits(data, settings(own), ALONE, "train", "val")
    assert sorted(read) == sorted(["t0.png", "t1.png", "t2.png", "t3.png", "t4.png", "t5.png", "v0.png", "v1.png", "v2.png"])
    read.clear()
    assert read_splits(data, settings(own), ALONE, "train", "val") == first
    assert read == ["t4.png"]  # what is not there may come back without a trace
    (own / "images" / "t2.png").write_bytes(b"broken since")
    Image.new("RGB", (8, 8)).save(own / "images" / "t1.png")
    os.utime(own / "images" / "t5.png", (1, 1))  # touched
    read.clear()
    splits, broken = read_splits(data, settings(own), ALONE, "train", "val")
    assert sorted(read) == ["t1.png", "t2.png", "t4.png", "t5.png"] and broken["train"].reasons.keys() == {"t2.png", "t4.png"}
    read.clear()
    assert read_splits(data_of(own, "skip", workers=0), settings(own), ALONE, "train", "val") == (splits, broken)
    (next((tmp_path / "cache" / "pictures").glob("*.json"))).write_text('{"a": 1}')  # damaged: all are looked at again
    assert read_splits(data, settings(own), ALONE, "train", "val") == (splits, broken) and len(read) > 6


def test_a_survey_that_was_killed_goes_on(own, monkeypatch):
    from captioning.cache import survey

    monkeypatch.setattr(survey, "SAFE_EVERY", 0.0)
    monkeypatch.setattr(survey, "GROUP", 2)
    original, read = Transform.read, []

    def dying(self, path):
        read.append(Path(path).name)
        if len(read) > 5:
            raise KeyboardInterrupt
        return original(self, path)

    monkeypatch.setattr(Transform, "read", dying)
    with pytest.raises(KeyboardInterrupt):
        read_splits(data_of(own, "skip", workers=1), settings(own), ALONE, "train", "val")
    monkeypatch.setattr(Transform, "read", lambda self, path: read.append(Path(path).name) or original(self, path))
    read.clear()
    read_splits(data_of(own, "skip"), settings(own), ALONE, "train", "val")
    assert sorted(read) == ["t4.png", "t5.png", "v0.png", "v1.png", "v2.png"]  # two groups of two were safe; t4 is not there


def test_a_failing_disk_is_no_broken_picture(own, monkeypatch):
    original = Transform.read

    def failing(self, path):
        if Path(path).name == "t3.png":
            raise MachineError(f"{path}: cannot be read (Input/output error)")
        return original(self, path)

    monkeypatch.setattr(Transform, "read", failing)
    with pytest.raises(MachineError, match="t3.png"):
        read_splits(data_of(own, "skip"), settings(own), ALONE, "train")


def test_a_picture_for_which_there_was_no_memory_is_no_broken_one(own, monkeypatch):
    def none_left(*arguments, **more):
        raise MemoryError

    monkeypatch.setattr(Image, "open", none_left)
    with pytest.raises(MachineError, match="no memory left"):
        read_splits(data_of(own, "skip"), settings(own), ALONE, "train")
    monkeypatch.undo()
    monkeypatch.setenv("CAPTIONING_CACHE", str(own.parent / "cache"))
    assert set(read_splits(data_of(own, "skip"), settings(own), ALONE, "train")[1]["train"].reasons) == {"t1.png", "t4.png"}


def test_an_image_that_a_list_names_twice_is_counted_once(own, capsys):
    from captioning.data.annotations import table

    twice = {split: [*records, *records] for split, records in table(own).items()}
    data = Data(lambda: twice, Transform(16), str(own), broken="skip")
    broken = read_splits(data, settings(own), ALONE, "val")[1]["val"]
    assert (broken.images, set(broken.reasons)) == (3, {"v0.png"}) and "1 of 3 val images" in capsys.readouterr().out


def test_a_split_without_one_good_picture_is_refused(own):
    for path in (own / "images").glob("v*.png"):
        path.write_text("broken")
    for policy in ("skip", "replace"):
        with pytest.raises(UserError, match=f"data.broken={policy}: none of 3 val images can be read: .*v0.png: not an image"):
            read_splits(data_of(own, policy), settings(own), ALONE, "train", "val")


def test_a_picture_that_breaks_after_the_survey_is_an_error_by_name(own):
    from captioning.data.dataset import ImageSource

    splits, _ = read_splits(data_of(own, "skip"), settings(own), ALONE, "train")
    splits["train"][0].path.write_text("broken since")
    with pytest.raises(UserError, match="t0.png: not an image"):
        ImageSource(Transform(16)).load(splits["train"], None)


def test_the_others_learn_what_the_first_process_found(own):
    """Rank 1 looks at nothing: it gets the first one's answer, be it a mistake."""
    found = {str(own / "images" / "t2.png"): "as the first says"}

    class Second(World):
        answer = (None, found)

        def gather(self, value):
            assert value == (None, {})
            return [self.answer, value]

    world = Second(torch.device("cpu"), rank=1, size=2)
    splits, broken = read_splits(data_of(own, "skip"), settings(own), world, "train")
    assert broken["train"].reasons == {"t2.png": "as the first says"} and len(splits["train"]) == 5
    Second.answer = (UserError("no room"), {})
    with pytest.raises(UserError, match="no room"):
        read_splits(data_of(own, "skip"), settings(own), world, "train")


def test_a_policy_may_not_change_while_a_run_goes_on_and_hides_nothing_from_check_data(own, tmp_path, monkeypatch, capsys):
    run = trained(own, tmp_path / "run", "data.broken=skip")
    code, message = run_program("train", words(own, f"run={run}", "data.broken=replace", "trainer.max_steps=3"), monkeypatch, capsys)
    assert code == 2 and "was trained with data.broken=skip, this is data.broken=replace" in message
    for policy in ("error", "skip", "replace"):
        with pytest.raises(SystemExit) as exit:
            captioning_command(["check-data", *words(own, f"data.broken={policy}")[:5]])
        text = capsys.readouterr().out
        assert exit.value.code == 1 and "broken image: 3" in text and "missing image: 1" in text


@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_a_run_whose_broken_pictures_are_others_by_now_is_refused(policy, own, tmp_path):
    run = trained(own, tmp_path / "run", f"data.broken={policy}")
    trained(own, run, f"data.broken={policy}", "trainer.max_steps=3")  # goes on
    Image.new("RGB", (8, 8)).save(own / "images" / "t1.png")  # mended
    with pytest.raises(UserError, match="was trained with other images or captions"):
        trained(own, run, f"data.broken={policy}", "trainer.max_steps=4")


@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_a_run_that_would_be_validated_on_other_pictures_by_now_is_refused(policy, own, tmp_path):
    """Else the best of its checkpoints would be that of two denominators."""
    trained(own, tmp_path / "run", f"data.broken={policy}")
    (own / "images" / "v1.png").write_bytes(b"broken by now")
    with pytest.raises(UserError, match="was trained with other images or captions"):
        trained(own, tmp_path / "run", f"data.broken={policy}", "trainer.max_steps=3")


def test_extract_takes_the_policy_too(own, capsys):
    given = ["data=own", f"data.root={own}", "data.transform.size=32", "data.workers=0", "data.broken=skip", "device=cpu"]
    captioning_command(["extract", *given, "encoder=resnet18", "encoder.weights=none"])
    text = capsys.readouterr().out
    assert "train: 4 images are in" in text and "test: 2 images are in" in text
