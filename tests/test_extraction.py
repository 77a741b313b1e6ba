"""Laws of extraction and of the store on disk: killed, crowded, too small, damaged."""

import shutil
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from captioning.build.features import Features, copy_weights
from captioning.cache.extract import extract
from captioning.cache.key import CacheSettings, folder_of, recipe_of
from captioning.cache.source import FeatureSource
from captioning.cache.store import FeatureStore, entries, remove
from captioning.data.dataset import ImageSource
from captioning.data.shapes import shapes
from captioning.data.transforms import Transform
from captioning.errors import UserError
from captioning.models.encoders import SmallCNN
from captioning.training.distributed import World


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
    with pytest.raises(UserError, match=f"{reason}.*cache remove {folder.name} --dir {folder.parents[1]}`"):
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


def test_an_image_that_is_listed_twice_is_extracted_once(drawings, tmp_path):
    first, second = shapes(drawings, train=150, val=1, test=1, size=32)["train"][:2]
    records, world, settings = [first, second, first], World(torch.device("cpu")), CacheSettings(dir=str(tmp_path / "twice"))
    features = Features(settings, {"name": "small"}, "w", lambda: SmallCNN(16).requires_grad_(False), Transform(size=32), 0, world)
    store = features.store(records)
    assert len(store.rows) == 2
    given = features.source(store, True).load(records, None)
    assert torch.equal(given.grid[0], given.grid[2]) and not torch.equal(given.grid[0], given.grid[1])


def test_features_that_are_being_extracted_are_not_removed(drawn, tmp_path):
    def removing(images):
        with pytest.raises(UserError, match="a process is extracting it"):
            remove(tmp_path / "cache", [entries(tmp_path / "cache")[0].key])

    FeatureStore(drawn.run(progress=lambda *_: nullcontext(removing)))
