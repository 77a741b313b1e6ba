"""Features of a frozen encoder, extracted once and kept on disk. A cache is found by what its content depends on, so another
weights file, layer or transform never hits it."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from captioning.data.dataset import ImageSource, loader
from captioning.data.records import Record
from captioning.data.transforms import Transform
from captioning.errors import UserError
from captioning.models.encoders import Encoder
from captioning.models.features import FeatureDims, ImageFeatures


def key_of(config: dict[str, Any], encoder: Encoder, transform: Transform, records: Sequence[Record]) -> str:
    """Of the encoder's settings and weights, the transform, and every image's name, size and time of change."""
    digest = hashlib.sha256(json.dumps([config, repr(transform)], sort_keys=True).encode())
    for name, value in encoder.state_dict().items():
        digest.update(name.encode() + np.ascontiguousarray(value.cpu().numpy()).tobytes())
    for record in records:
        stat = record.path.stat()
        digest.update(repr((record.image_id, stat.st_size, stat.st_mtime_ns)).encode())
    return digest.hexdigest()[:20]


class FeatureStore:
    """A folder with `grid.npy` (images, N, D), `pooled.npy` (images, P), both float16, and `index.json` with the images' ids in order."""

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            names = json.loads((folder / "index.json").read_text())
            self.grid, self.pooled = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("grid", "pooled"))
        except (OSError, ValueError) as error:
            raise UserError(f"feature cache {folder}: damaged ({error}); remove the folder to have it made again") from None
        if not len(names) == len(self.grid) == len(self.pooled):
            raise UserError(
                f"feature cache {folder}: {len(names)} names for {len(self.grid)} images; remove the folder to have it made again"
            )
        self.rows = {name: row for row, name in enumerate(names)}
        self.dims = FeatureDims(self.grid.shape[2], self.pooled.shape[1])


class FeatureSource:
    """Gives a batch its features from the store. Decoders that never look at the grid are not given one."""

    in_process = True

    def __init__(self, store: FeatureStore, with_grid: bool):
        self.store, self.with_grid = store, with_grid

    def load(self, records: Sequence[Record], positions: Sequence[tuple] | None) -> ImageFeatures:
        rows = [self.store.rows[record.image_id] for record in records]
        grid = self.store.grid[rows] if self.with_grid else np.zeros((len(rows), 0, self.store.dims.grid), np.float16)
        return ImageFeatures(torch.from_numpy(grid), torch.from_numpy(self.store.pooled[rows]))


class Pictures:
    """The images to extract from, as a data set for a loader: item = number of the record."""

    def __init__(self, records: Sequence[Record], source: ImageSource):
        self.records, self.source = records, source

    def __getitems__(self, rows: Sequence[int]) -> torch.Tensor:
        return self.source.load([self.records[row] for row in rows], None)


@torch.inference_mode()
def extract(
    folder: Path,
    encoder: Encoder,
    records: Sequence[Record],
    transform: Transform,
    *,
    device: torch.device,
    workers: int,
    progress: Callable[[int], None],
    batch_size: int = 32,
) -> None:
    """Write the store of these images. It appears in its place when it is whole; a killed extraction leaves nothing that is found."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    encoder = encoder.to(device).eval()
    batches = [list(range(start, min(start + batch_size, len(records)))) for start in range(0, len(records), batch_size)]
    arrays: dict[str, np.memmap] = {}
    try:
        for rows, images in zip(batches, loader(Pictures(records, ImageSource(transform)), batches, workers)):
            features = encoder(images.to(device))
            for name, part in features._asdict().items():
                if name not in arrays:
                    arrays[name] = new_array(unfinished / f"{name}.npy", (len(records), *part.shape[1:]))
                arrays[name][rows] = part.to(torch.float16).cpu().numpy()
            progress(len(rows))
        for array in arrays.values():
            array.flush()
        (unfinished / "index.json").write_text(json.dumps([record.image_id for record in records]))
        os.rename(unfinished, folder)
    except OSError as error:
        if not folder.exists():  # else another process was first with the same features
            raise UserError(f"feature cache {folder}: cannot be written ({error.strerror}); features=off does without") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def new_array(path: Path, shape: tuple[int, ...]) -> np.memmap:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)


def distinct(records: Iterable[Record]) -> list[Record]:
    return list({record.image_id: record for record in records}.values())
