"""Laws of the feature cache: what it gives is what the encoder would give, or it is not used."""

import json
import os
import shutil
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from conftest import SMALL, lively
from safetensors.torch import save_file

from captioning.build.features import Features, copy_weights
from captioning.build.runs import load_run
from captioning.cache.extract import extract
from captioning.cache.key import CacheSettings, folder_of, key_of, recipe_of
from captioning.cache.source import FeatureSource
from captioning.cache.store import FeatureStore, entries, remove
from captioning.data.dataset import ImageSource
from captioning.data.records import Record
from captioning.data.shapes import shapes
from captioning.data.transforms import Transform
from captioning.errors import UserError
from captioning.models.encoders import SmallCNN, TorchvisionEncoder
from captioning.training.distributed import World

HIDDEN = ["decoder.attention_size=8"]
FROZEN = ["encoder=resnet18", "encoder.weights=none", *SMALL]


def folders(tmp_path):
    return sorted((tmp_path / "cache" / "features").glob("*/"))


@pytest.mark.parametrize("decoder", ["lstm", "attention"])
def test_cached_and_live_features_give_the_same_loss_to_the_precision_of_their_storage(train, tmp_path, decoder):
    network = lively(torchvision.models.resnet18())
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, tmp_path / "resnet18.safetensors")
    frozen = ["encoder=resnet18", f"encoder.weights={tmp_path / 'resnet18.safetensors'}", *SMALL]
    trainers = [train(*frozen, f"decoder={decoder}", f"features={choice}", run=tmp_path / choice) for choice in ("on", "off")]
    assert isinstance(trainers[0].batches.captions.source, FeatureSource) and isinstance(trainers[1].batches.captions.source, ImageSource)
    losses = []
    for trainer in trainers:
        batches = trainer.batches.epoch(0)
        losses.append([float(trainer.train_step([next(batches)])[0]) for _ in range(4)])
    np.testing.assert_allclose(*losses, rtol=2e-3)
    assert losses[0] != losses[1]  # stored in half precision: exactly equal would mean that one was not used


def test_features_are_extracted_once_for_each_split(train, tmp_path):
    train(*FROZEN, "decoder=lstm", run=tmp_path / "a")
    before = [os.stat(folder / "grid").st_mtime_ns for folder in folders(tmp_path)]
    train(*FROZEN, "decoder=attention", run=tmp_path / "b")
    assert len(before) == 2 and [os.stat(folder / "grid").st_mtime_ns for folder in folders(tmp_path)] == before


def test_a_warm_cache_spares_the_building_of_the_encoder(train, tmp_path, monkeypatch):
    train(*FROZEN, "decoder=attention", *HIDDEN, run=tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr("captioning.models.encoders.cut_open", lambda *_: pytest.fail("the CNN was built"))
        train(*FROZEN, "decoder=lstm", "trainer=smoke", run=tmp_path / "b").fit()
        evaluated = score(tmp_path / "b", "val")
    run = load_run(tmp_path / "b", torch.device("cpu"))  # and the run directory has the encoder all the same
    assert isinstance(run.model.encoder, TorchvisionEncoder)
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path / "none"))
    assert score(tmp_path / "b", "val", "features=off")["loss"] == pytest.approx(evaluated["loss"], rel=1e-3)


def score(run, split, *overrides):
    from captioning.build.compose import composed
    from captioning.build.jobs import evaluate

    evaluate(composed("eval", [f"run={run}", f"split={split}", "show=0", "device=cpu", *overrides]))
    return json.loads((run / "metrics.json").read_text())


def test_evaluation_keeps_the_features_of_its_split_too(train, tmp_path):
    train(*FROZEN, "decoder=lstm", "trainer=smoke").fit()
    assert len(folders(tmp_path)) == 2
    kept = score(tmp_path / "run", "test")
    assert len(folders(tmp_path)) == 3
    live = score(tmp_path / "run", "test", "features=off")
    assert kept["loss"] == pytest.approx(live["loss"], rel=1e-3)


@pytest.mark.parametrize(
    "change", ["seed=2", "data.transform.fit=crop", "encoder.grid=layer3", "cache.dtype=bf16", "cache.precision=bf16"]
)  # seed: of random weights
def test_other_weights_transforms_layers_and_precisions_never_hit(train, tmp_path, change):
    train(*FROZEN, "decoder=lstm", run=tmp_path / "a")
    train(*FROZEN, "decoder=lstm", change, run=tmp_path / "b")
    assert len(folders(tmp_path)) == 4


def test_the_key_follows_the_weights_and_the_images_not_where_they_lie(tmp_path):
    torch.manual_seed(0)
    tensors = {name: value.contiguous() for name, value in torchvision.models.resnet18().state_dict().items()}
    for name in ("a", "b"):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    save_file(tensors | {"fc.bias": tensors["fc.bias"] + 1}, tmp_path / "c.safetensors")
    asked = [{"name": "resnet18", "weights": str(tmp_path / f"{name}.safetensors")} for name in "abc"]
    a, b, c = (TorchvisionEncoder.frozen_weights(0, settings) for settings in asked)
    assert a == b != c
    assert TorchvisionEncoder.frozen_weights(0, asked[0] | {"finetune": "all"}) is None

    def key(**changes):
        return key_of(recipe_of(asked[0], a, Transform(**changes), [record], CacheSettings()))

    record = Record("1", tmp_path / "a.safetensors", ["one"], "", [1])
    before = key()
    assert key(flip=0.5) == before != key(size=96)  # mirroring is of training: what is kept was never augmented
    os.utime(record.path, (1, 1))
    assert key() != before


@pytest.mark.parametrize("change", ["data.transform.zoom=0.2", "encoder.finetune=all"])
def test_features_that_change_are_never_kept(train, change):
    trainer = train(*FROZEN, "decoder=lstm", change)
    assert isinstance(trainer.batches.captions.source, ImageSource)
    with pytest.raises(UserError, match="features=on: features cannot be kept while"):
        train(*FROZEN, "decoder=lstm", change, "features=on")


def test_a_decoder_that_looks_at_the_grid_is_given_it(train, tmp_path):
    from captioning.models.decoders.base import Decoder

    assert Decoder.uses_grid
    for decoder, cells in (("attention", 1), ("adaptive", 1), ("lstm", 0)):
        batch = next(train(*FROZEN, f"decoder={decoder}", run=tmp_path / decoder).batches.epoch(0))
        assert batch.images.grid.shape[1] == cells and batch.images.pooled.shape[1] == 512


@pytest.fixture
def drawn(drawings, tmp_path):
    """Everything `extract` asks for, on five batches of drawings."""
    records = shapes(drawings, train=150, val=1, test=1, size=32)["train"]
    settings, builds, said = CacheSettings(dir=str(tmp_path / "cache")), [], []
    encoder = SmallCNN(16).requires_grad_(False)
    recipe = recipe_of({"name": "small"}, "weights", Transform(size=32), records, settings)

    def run(folder=None, dtype="fp16", progress=None):
        def build():
            builds.append(1)
            return encoder

        its = recipe | {"dtype": dtype}
        folder = folder_of(its, settings)
        extract(folder, its, build, records, Transform(size=32), device=torch.device("cpu"), workers=0, arithmetic=nullcontext,
                say=said.append, progress=progress or (lambda *_: nullcontext(lambda _: None)))  # fmt: skip
        return folder

    return SimpleNamespace(run=run, records=records, builds=builds, said=said, encoder=encoder)


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_an_extraction_that_was_killed_goes_on_and_ends_with_the_same_bytes(drawn, monkeypatch):
    whole = drawn.run()
    expected = content(whole)
    shutil.rmtree(whole)
    monkeypatch.setattr("captioning.cache.extract.SAFE_EVERY", 0.0)
    seen = []

    def dying(images):
        seen.append(images)
        if sum(seen) == 96:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drawn.run(progress=lambda *_: nullcontext(dying))
    assert not whole.exists()
    (part,) = whole.parent.glob("*.unfinished")
    with open(part / "grid", "ab") as file:
        file.write(b"half a row")  # what a kill within a write leaves
    assert content(drawn.run(progress=lambda *_: nullcontext(seen.append))) == expected
    assert sum(seen) == 96 + 150 - 64  # the third batch had not been made safe when it died


def test_two_that_want_the_same_features_extract_them_once(drawn):
    start = threading.Barrier(2)

    def job():
        start.wait()
        drawn.run()

    threads = [threading.Thread(target=job) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawn.builds) == 1
    assert sum("waiting for another process" in line for line in drawn.said) <= 1


def test_the_size_is_said_and_held_against_the_disk_before_anything_is_written(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=40_000))
    with pytest.raises(UserError, match=r"the features take 0\.1 MB, only 0\.0 MB are free there"):
        drawn.run()
    assert "150 images" in drawn.said[0] and "0.1 MB" in drawn.said[0]
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file() and file.suffix != ".lock"]


def test_a_number_too_large_for_its_storage_is_refused(drawn):
    with torch.no_grad():
        drawn.encoder.where.bias.fill_(1e5)
    with pytest.raises(UserError, match="cache.dtype=fp16: a feature does not fit"):
        drawn.run()
    drawn.run(dtype="bf16")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "grid").write_bytes((folder / "grid").read_bytes()[:-400]), "grid has .* bytes instead of"),
        (lambda folder: (folder / "index.json").write_text("{"), "index.json is damaged"),
        (lambda folder: (folder / "index.json").write_text((folder / "index.json").read_text().replace("fp16", "fp32")), "something else"),
        (lambda folder: (folder / "pooled").unlink(), "pooled has 0 bytes"),
    ],
)
def test_a_truncated_damaged_or_foreign_store_is_refused_with_the_reason(drawn, damage, reason):
    folder = drawn.run()
    FeatureStore(folder)
    damage(folder)
    with pytest.raises(UserError, match=f"{reason}.*cache remove {folder.name}"):
        FeatureStore(folder)


@pytest.mark.parametrize(("dtype", "precision"), [("fp32", 0), ("fp16", 2**-11), ("bf16", 2**-8)])
def test_a_store_gives_what_the_encoder_gives_held_or_streamed(drawn, dtype, precision):
    store = FeatureStore(drawn.run(dtype=dtype))
    some = [drawn.records[row] for row in (7, 140, 7, 0)]
    with torch.inference_mode():
        live = drawn.encoder(ImageSource(Transform(size=32)).load(some, None))
    for memory in (1.0, 0.0):
        source = FeatureSource(store, with_grid=True, device=torch.device("cpu"), memory=memory)
        assert source.is_held == bool(memory)
        for kept, expected in zip(source.load(some, None), live):
            assert kept.dtype == store.dtype
            torch.testing.assert_close(kept.float(), expected, rtol=precision, atol=1e-6)


def test_cache_remove_deletes_what_is_named_and_the_weights_nobody_needs(drawn, tmp_path):
    root = tmp_path / "cache"
    keys = [drawn.run(dtype=dtype).name for dtype in ("fp16", "fp32")]
    assert sorted(entry.key for entry in entries(root)) == sorted(keys) and {entry.state for entry in entries(root)} == {"whole"}
    with pytest.raises(UserError, match="no such features"):
        remove(root, ["x"])
    remove(root, keys[:1])
    assert [entry.key for entry in entries(root)] == keys[1:] and len(list((root / "encoders").iterdir())) == 1
    remove(root, keys[1:])
    assert entries(root) == [] and not list((root / "encoders").iterdir())


def test_a_run_whose_encoder_weights_have_changed_does_not_go_on(train, tmp_path):
    file = tmp_path / "w.safetensors"
    commands = ["encoder=resnet18", f"encoder.weights={file}", *SMALL, "decoder=lstm"]
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_file({name: value.contiguous() for name, value in torchvision.models.resnet18().state_dict().items()}, file)
        if seed == 0:
            train(*commands)
    with pytest.raises(UserError, match="encoder.weights=.* was trained with others"):
        train(*commands)


def test_damaged_weights_beside_the_features_are_refused_and_made_again(drawn, tmp_path):
    store = FeatureStore(drawn.run())
    file = store.encoder_weights[0]
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="damaged.*cache remove"):
        copy_weights(store, tmp_path / "copy")
    drawn.run(dtype="bf16")  # of the same encoder: writes them anew
    copy_weights(store, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == whole


def test_an_image_that_is_listed_twice_is_extracted_once(train, drawings, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(next(drawings.glob("40-8-8-32px*")) / "images", data / "images")
    names = sorted(path.name for path in (data / "images").iterdir())
    lines = [f"{name},a red square,{name.split('-')[0]}" for name in names]
    (data / "captions.csv").write_text("\n".join(["image,caption,split", *lines]) + "\n")
    records = [Record(names[row], data / "images" / names[row], ["a"], "", [1]) for row in (0, 1, 0)]
    world, settings = World(torch.device("cpu")), CacheSettings(dir=str(tmp_path / "twice"))
    features = Features(settings, {"name": "small"}, "w", lambda: SmallCNN(16).requires_grad_(False), Transform(size=32), 0, world)
    store = features.store(records)
    assert len(store.rows) == 2
    given = features.source(store, True).load(records, None)
    assert torch.equal(given.grid[0], given.grid[2]) and not torch.equal(given.grid[0], given.grid[1])


def test_an_evaluation_that_may_not_keep_features_does_without(train, tmp_path, capsys):
    train(*FROZEN, "decoder=lstm", "trainer=smoke").fit()
    (tmp_path / "file").write_text("")
    kept = score(tmp_path / "run", "test")
    live = score(tmp_path / "run", "test", f"cache.dir={tmp_path / 'file'}")
    assert "cannot be written" in capsys.readouterr().out and live["loss"] == pytest.approx(kept["loss"], rel=1e-3)
    with pytest.raises(UserError, match="cannot be written"):
        score(tmp_path / "run", "test", f"cache.dir={tmp_path / 'file'}", "features=on")


def test_features_that_are_being_extracted_are_not_removed(drawn, tmp_path):
    def removing(images):
        with pytest.raises(UserError, match="a process is extracting it"):
            remove(tmp_path / "cache", [entries(tmp_path / "cache")[0].key])

    FeatureStore(drawn.run(progress=lambda *_: nullcontext(removing)))


def test_a_run_on_cached_features_captions_pictures_by_itself(train, tmp_path):
    from captioning.search import Beam

    trainer = train(*FROZEN, "decoder=attention", "trainer=smoke")
    trainer.fit()
    run = load_run(tmp_path / "run", torch.device("cpu"))
    records = trainer.evaluator.batches.images.records
    images = ImageSource(run.transform).load(records, None)
    assert isinstance(run.transform, Transform)
    found = run.model.generate(images, Beam(3))
    captions = [run.vocabulary.decode(ids) for ids in found.tokens[:, 0].tolist()]
    made = trainer.evaluator(trainer.model).captions
    assert sum(made[r.image_id] == c for r, c in zip(records, captions)) >= len(records) - 1  # half precision may turn one
