"""From image files to features to steps: extraction, reading features, and an epoch with and without a cache."""

import os
import shutil
import statistics
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.baselines import plain_of
from benchmarks.material import DIMS, all_lengths, batch_of, decoder_of, flickr8k_root, lengths_by_image
from benchmarks.measure import DTYPES, Goal, Row, Run, Work, interleaved, row
from benchmarks.steps import our_step, plain_step
from captioning.cache.extract import extract
from captioning.cache.key import CacheSettings, folder_of, recipe_of
from captioning.cache.source import FeatureSource
from captioning.cache.store import FeatureStore
from captioning.data.records import Record
from captioning.data.shapes import draw, scene
from captioning.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Transform
from captioning.models.encoders import Encoder, TorchvisionEncoder
from captioning.models.features import FeatureDims, ImageFeatures

ENCODER, GRID = "resnet50", "layer4"  # with random weights: they do not change the time
EPOCHS = 20


# What of our package these rows touch: here alone, so that a change there is a change here only.


def extracted(
    run: Run, root: Path, encoder: Callable[[], Encoder], records: list[Record], size: int = 224, precision: str = "fp32"
) -> Path:
    """The store of these images, made anew. (The encoder's weights beside it are written once, and are no part of the rate.)"""
    shutil.rmtree(root / "features", ignore_errors=True)
    settings = CacheSettings(dir=str(root))
    recipe = recipe_of({"name": "benchmark"}, "weights", Transform(size), records, settings)
    extract(
        folder_of(recipe, settings),
        recipe,
        encoder,
        records,
        Transform(size),
        device=run.device,
        workers=0,
        arithmetic=lambda: torch.autocast(run.device.type, DTYPES[precision], enabled=precision != "fp32"),
        say=lambda line: None,
        progress=lambda *_: nullcontext(lambda count: None),
    )
    return folder_of(recipe, settings)


def source_of(run: Run, folder: Path, with_grid: bool = True, memory: float = 0.5) -> FeatureSource:
    return FeatureSource(FeatureStore(folder), with_grid=with_grid, device=run.device, memory=memory)


def load_batch(source: FeatureSource, records: list[Record], device: torch.device) -> ImageFeatures:
    return ImageFeatures(*(part.to(device) for part in source.load(records, None)))


class DrawnFeatures(Encoder):
    """Stands in for a CNN where only its output matters: it costs nothing."""

    def __init__(self, cells: int = 49):
        super().__init__()
        self.cells, self.dims = cells, FeatureDims(DIMS.grid, DIMS.pooled)

    def forward(self, images: Tensor) -> ImageFeatures:
        grid = torch.randn(1, self.cells, self.dims.grid).relu_().expand(len(images), -1, -1)
        return ImageFeatures(grid, grid.mean(dim=1))


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder on a real disk, not in memory: `BENCHMARKS_TMP`, or the system's own for temporary files."""
    folder = Path(tempfile.mkdtemp(prefix="benchmarks-", dir=os.environ.get("BENCHMARKS_TMP")))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def photographs(folder: Path, count: int) -> list[Record]:
    """Flickr8k's where they are, else drawings of the same size."""
    root = flickr8k_root()
    if root and (root / "val.tar").is_file():
        with tarfile.open(root / "val.tar") as archive:
            members = [member for member in archive if member.isfile()][:count]
            archive.extractall(folder, members, filter="data")
        paths = [folder / member.name for member in members]
    else:
        paths = [folder / f"{number}.jpg" for number in range(count)]
        for number, path in enumerate(paths):
            draw(scene(Random(number), "train")[0], 224, (240, 240, 230)).save(path, quality=85)
    return [Record(path.name, path, ["a dog"], "benchmarks", [0]) for path in paths]


def tiny_pictures(folder: Path, count: int) -> list[Record]:
    """Files to go with `DrawnFeatures`."""
    image = Image.new("RGB", (8, 8))
    records = [Record(f"{number}.png", folder / f"{number}.png", ["a dog"], "benchmarks", [0]) for number in range(count)]
    for record in records:
        image.save(record.path)
    return records


# Plain ways


def tutorial_cnn(run: Run) -> Callable[[Tensor], Tensor]:
    """torchvision's network without its head, in fp32 and in the layout it comes in -> (B, N, D)."""
    import torchvision

    body = torch.nn.Sequential(*list(torchvision.models.get_model(ENCODER, weights=None).children())[:-2])
    body = body.eval().to(run.device)
    return torch.no_grad()(lambda images: body(images).flatten(2).transpose(1, 2))


def tutorial_picture(path: Path) -> Tensor:
    from torchvision import transforms

    transform = transforms.Compose(
        [transforms.Resize((224, 224)), transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    )
    return transform(Image.open(path).convert("RGB"))  # type: ignore[return-value]


def drop(folder: Path) -> Work:
    """Ask the system to forget these files, so that the next reading is from the disk."""

    def forget() -> None:
        for path in folder.iterdir():
            descriptor = os.open(path, os.O_RDONLY)
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)

    return forget


# Rows


def extraction(run: Run) -> Iterator[Row]:
    with workplace() as folder:
        records = photographs(folder, 4 if run.quick else 96)
        cnn, build = tutorial_cnn(run), lambda: deepcopy(encoder)
        encoder = TorchvisionEncoder(ENCODER, GRID, weights="none")

        def plain() -> None:
            for record in records[: len(records) // 4]:  # one after another: all take four times as long
                grid = cnn(tutorial_picture(record.path)[None].to(run.device))
                np.save(folder / "one.npy", grid.cpu().numpy())

        ways = {name: partial(extracted, run, folder / "store", build, records, precision=name) for name in DTYPES}
        times = interleaved(run, {"plain": plain, **ways})
        for name, goal in (("fp32", Goal()), ("bf16", Goal(3))):
            work = f"extraction {name}, {ENCODER}, {len(records)} images"
            yield row(work, "torchvision fp32, one image at a time", [4 * seconds for seconds in times["plain"]], times[name], goal=goal)


def feature_batch(run: Run) -> Iterator[Row]:
    """64 images at random out of many, 7x7x2048."""
    with workplace() as folder:
        for part in ("pictures", "files"):
            (folder / part).mkdir()
        records = tiny_pictures(folder / "pictures", 128 if run.quick else 1024)
        store = extracted(run, folder / "store", DrawnFeatures, records, size=8)
        for record in records:
            torch.save(torch.randn(49, DIMS.grid), folder / "files" / f"{record.image_id}.pt")
        draws, sources = torch.Generator().manual_seed(0), [source_of(run, store)]

        def some() -> list[Record]:
            return [records[index] for index in torch.randint(len(records), (64,), generator=draws).tolist()]

        def plain() -> None:
            files = [folder / "files" / f"{record.image_id}.pt" for record in some()]
            torch.stack([torch.load(file, weights_only=True) for file in files]).to(run.device)

        def ours() -> None:
            load_batch(sources[0], some(), run.device)

        def reopen() -> None:
            sources.clear()  # pages that are mapped are not forgotten
            drop(store)()
            sources.append(source_of(run, store, memory=0.0))  # too many for the memory: read from disk

        for name, before, goal in (("warm", {}, 15), ("cold", {"plain": drop(folder / "files"), "ours": reopen}, 4)):
            times = interleaved(run, {"plain": plain, "ours": ours}, before=before)
            yield row(
                f"a feature batch of 64, 7x7x2048, {name}",
                "torch.load of one file an image",
                times["plain"],
                times["ours"],
                goal=Goal(goal),
            )


def epochs(run: Run) -> Iterator[Row]:
    """20 epochs of Flickr8k, put together from measured parts: extraction an image once and our step on cached features, against
    the plain step with the CNN before it, an encoder pass a caption."""
    captions, images = len(all_lengths()), len(lengths_by_image())
    with workplace() as folder:
        records = photographs(folder, 32)
        encoder = TorchvisionEncoder(ENCODER, GRID, weights="none")
        cnn, build = tutorial_cnn(run), lambda: deepcopy(encoder)
        store = extracted(run, folder / "store", build, records)
        for name, goal in (("attention", 20), ("lstm", 60)):
            material = batch_of(64, 49, run.device)
            decoder = decoder_of(name, run.device)
            source = source_of(run, store, decoder.uses_grid)
            step, plain = our_step(decoder, material, "bf16"), plain_step(plain_of(decoder), material)
            batch = (records * 64)[: len(material.tokens)]

            def see(records: list[Record] = records[:8]) -> None:
                cnn(torch.stack([tutorial_picture(record.path) for record in records]).to(run.device))

            def cached(source: FeatureSource = source, step: Work = step, batch: list[Record] = batch) -> None:
                load_batch(source, batch, run.device)
                step()

            def extraction() -> None:
                extracted(run, folder / "again", build, records, precision="bf16")

            times = interleaved(run, {"see": see, "plain": plain, "cached": cached, "extract": extraction})
            steps = EPOCHS * captions / 64
            theirs = [steps * (64 / 8 * see + step) for see, step in zip(times["see"], times["plain"])]
            ours = [steps * step + images / len(records) * once for step, once in zip(times["cached"], times["extract"])]
            work = f"{EPOCHS} epochs of Flickr8k, {name} bf16, {ENCODER}"
            share = images / len(records) * statistics.median(times["extract"]) / statistics.median(ours)
            note = f"put together from parts measured in turn; extraction is {share:.0%} of ours"
            yield row(work, "the CNN in the loop, fp32", theirs, ours, goal=Goal(goal), note=note)
