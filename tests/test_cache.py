"""Laws of the feature cache: what it gives is what the encoder would give, or it is not used."""

import json
import os

import numpy as np
import pytest
import torch
import torchvision
from conftest import SMALL, lively
from safetensors.torch import save_file

from captioning.build.runs import load_run
from captioning.cache.key import CacheSettings, key_of, recipe_of
from captioning.cache.source import FeatureSource
from captioning.data.dataset import ImageSource
from captioning.data.records import Record
from captioning.data.transforms import Transform
from captioning.errors import UserError
from captioning.models.encoders import TorchvisionEncoder

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
        losses.append([float(trainer.step([next(batches)], trainer.progress).means[0]) for _ in range(4)])
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
    from captioning.build.evaluation import evaluate

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
    for decoder, cells in (("attention", 1), ("adaptive", 1), ("lstm", 0), ("gru decoder.injection=read", 1)):
        batch = next(train(*FROZEN, *f"decoder={decoder}".split(), run=tmp_path / decoder[:5]).batches.epoch(0))
        assert batch.images.grid.shape[1] == cells and batch.images.pooled.shape[1] == 512


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


def test_an_evaluation_that_may_not_keep_features_does_without(train, tmp_path, capsys):
    train(*FROZEN, "decoder=lstm", "trainer=smoke").fit()
    (tmp_path / "file").write_text("")
    kept = score(tmp_path / "run", "test")
    live = score(tmp_path / "run", "test", f"cache.dir={tmp_path / 'file'}")
    assert "cannot be written" in capsys.readouterr().out and live["loss"] == pytest.approx(kept["loss"], rel=1e-3)
    with pytest.raises(UserError, match="cannot be written"):
        score(tmp_path / "run", "test", f"cache.dir={tmp_path / 'file'}", "features=on")


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
