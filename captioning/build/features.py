"""Whether a run keeps its encoder's features, and where: from a config to the cache."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import get_class

from captioning.build.objects import make, make_data, make_encoder
from captioning.build.pictures import read_splits
from captioning.build.runs import Run, load_run, read_config, read_env
from captioning.cache.extract import CannotKeep, extract
from captioning.cache.key import CacheSettings, folder_of, recipe_of
from captioning.cache.source import FeatureSource
from captioning.cache.store import FeatureStore, refused
from captioning.data.dataset import ImageSource, Source
from captioning.data.records import Record
from captioning.data.settings import Data
from captioning.data.transforms import Transform
from captioning.errors import UserError
from captioning.models.encoders import Encoder, GivenFeatures
from captioning.models.weights import digest_of, sha256
from captioning.training.console import progress, say
from captioning.training.distributed import World, find_device
from captioning.training.settings import autocast


def weights_of(encoder: dict[str, Any], seed: int, build: Callable[[], Encoder]) -> tuple[str | None, Encoder | None]:
    """What tells the encoder's frozen weights from all others (None: they are trained), and the encoder if it had to be built for that."""
    if known := get_class(encoder["_target_"]).frozen_weights(seed, encoder):
        return known, None
    built = build()
    if not built.is_frozen:
        return None, built
    return digest_of(built.state_dict()), built


def why_not(choice: str, *, is_frozen: bool, is_random: bool) -> str | None:
    """Why features are not kept; None if they are. Raises UserError where they were asked for and would be wrong."""
    reason = None
    if not is_frozen:
        reason = "the encoder is trained: its features change with every step"
    elif is_random:
        reason = "training pictures are augmented (data.transform.flip, data.transform.zoom): every epoch has other features"
    if choice == "on" and reason:
        raise UserError(f"features=on: features cannot be kept while {reason}; allowed: auto, off")
    return "features=off" if choice == "off" else reason


@dataclass(frozen=True)
class Features:
    """The stores of one encoder, one for each set of images.

    encoder: its settings. weights: what tells them from all others. build: makes the encoder; called only to extract.
    """

    settings: CacheSettings
    encoder: dict[str, Any]
    weights: str
    build: Callable[[], Encoder]
    transform: Transform
    workers: int
    world: World

    def store(self, records: Sequence[Record]) -> FeatureStore:
        """The features of these images, extracted now if they are not there. With several processes the first one extracts."""
        records = list({record.image_id: record for record in records}.values())  # a list may name an image twice
        recipe = recipe_of(self.encoder, self.weights, self.transform, records, self.settings)
        folder, problem = folder_of(recipe, self.settings), None
        try:
            if self.world.is_main:
                extract(
                    folder,
                    recipe,
                    self.build,
                    records,
                    self.transform,
                    device=self.world.device,
                    workers=self.workers,
                    arithmetic=lambda: autocast(self.world.device, self.settings.precision),
                    say=say,
                    progress=progress,
                )
        except UserError as error:
            problem = error
        if problem := next(filter(None, self.world.gather(problem)), None):  # the others wait, and end with the first
            raise problem
        return FeatureStore(folder)

    def source(self, store: FeatureStore, with_grid: bool) -> FeatureSource:
        return FeatureSource(store, with_grid=with_grid, device=self.world.device, memory=self.settings.memory)


def open_features(config: dict[str, Any], data: Data, settings: CacheSettings, world: World) -> tuple[str | None, Features | Encoder]:
    """What tells the encoder's frozen weights from others (None: it is trained); and the cache of its features, or the encoder itself
    where they are not kept."""
    build = partial(make_encoder, config, config["seed"])
    weights, built = weights_of(config["encoder"], config["seed"], build)
    if why_not(config["features"], is_frozen=weights is not None, is_random=data.transform.is_random) or weights is None:
        return weights, built or build()
    return weights, Features(settings, config["encoder"], weights, build, data.transform, data.workers, world)


def extract_all(config: dict[str, Any]) -> None:
    """The features of every split, for `captioning extract`."""
    data, settings, world = make_data(config), make("cache", config["cache"]), World(find_device(config["device"]))
    _, features = open_features(config | {"features": "on"}, data, settings, world)
    assert isinstance(features, Features)  # "on" refuses what cannot be kept
    there = data.reader()
    for split, records in read_splits(data, settings, world, *(name for name in there if there[name]))[0].items():
        if records:
            say(f"{split}: {len(records):,} images are in {features.store(records).folder}")


def evaluated_run(
    path: Path, records: Sequence[Record], data: Data, settings: CacheSettings, choice: str, world: World
) -> tuple[Run, Source]:
    """A trained run, and what gives it these images: their kept features, or the pictures themselves."""
    weights = read_env(path)["encoder"]
    if why_not(choice, is_frozen=weights is not None, is_random=False) or weights is None:
        return load_run(path, world.device), ImageSource(data.transform)

    def build() -> Encoder:
        return load_run(path, world.device).model.encoder

    features = Features(settings, read_config(path)["encoder"], weights, build, data.transform, data.workers, world)
    try:
        store = features.store(records)
    except CannotKeep as error:
        if choice == "on":
            raise
        say(f"{error}; the encoder sees every picture instead")
        return load_run(path, world.device), ImageSource(data.transform)
    run = load_run(path, world.device, GivenFeatures(store.dims))
    return run, features.source(store, run.model.decoder.uses_grid)


def copy_weights(store: FeatureStore, file: Path) -> None:
    """A frozen encoder's weights from beside its features into a run directory: as a second name of one file where the disk can."""
    source, digest = store.encoder_weights
    if not source.exists() or sha256(source) != digest:
        raise refused(store.folder, f"the encoder's weights beside it ({source}) are {'damaged' if source.exists() else 'missing'}")
    try:
        os.link(source, file)
    except OSError:
        shutil.copyfile(source, file)
