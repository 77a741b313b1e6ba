"""Extraction: every image through the encoder once. It may be killed and goes on; two that want the same do the work once."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from captioning.cache.key import key_of
from captioning.cache.store import DTYPES, PARTS, UNFINISHED, in_words
from captioning.data.dataset import ImageSource, loader
from captioning.data.records import Record
from captioning.data.transforms import Transform
from captioning.errors import UserError
from captioning.models.encoders import Encoder
from captioning.models.features import ImageFeatures
from captioning.models.weights import sha256

BATCH = 32
SAFE_EVERY = 10.0  # seconds: what is written is then made safe, and a killed extraction goes on from there


class CannotKeep(UserError):
    """There is no room for the features, or no leave to write."""


def extract(
    folder: Path,
    recipe: dict[str, Any],
    encoder: Callable[[], Encoder],
    records: Sequence[Record],
    transform: Transform,
    *,
    device: torch.device,
    workers: int,
    arithmetic: Callable[[], AbstractContextManager],
    say: Callable[[str], None],
    progress: Callable[[str, int, int], AbstractContextManager[Callable[[int], None]]],
) -> None:
    """Make the store `folder` of these images, unless it is there. It appears in its place when it is whole.

    encoder: builds it; not called when the store is there. arithmetic: the precision, as a context.
    Raises UserError where the disk is too small or cannot be written, or a number does not fit the storage type.
    """
    if folder.exists():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(folder, say):
            if folder.exists():  # another process was first
                return
            work = Extraction(folder, recipe, encoder(), records, transform, device, workers, arithmetic)
            work.announce(say)
            with progress("features", len(records), work.done) as advance:
                work.go_on(advance)
    except OSError as error:
        raise CannotKeep(f"feature cache {folder}: cannot be written ({error.strerror or error}); features=off does without") from None


@contextmanager
def alone(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))  # the system frees it when its owner dies
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another process, which is extracting the same features into {folder}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class Extraction:
    def __init__(
        self,
        folder: Path,
        recipe: dict[str, Any],
        encoder: Encoder,
        records: Sequence[Record],
        transform: Transform,
        device: torch.device,
        workers: int,
        arithmetic: Callable[[], AbstractContextManager],
    ):
        self.folder, self.recipe, self.records = folder, recipe, records
        self.unfinished = folder.with_name(f"{folder.name}{UNFINISHED}")
        self.pictures, self.workers = Pictures(records, ImageSource(transform)), workers
        self.device, self.arithmetic, self.dtype = device, arithmetic, DTYPES[recipe["dtype"]]
        self.tensors = {name: value.detach().cpu().clone().contiguous() for name, value in encoder.state_dict().items()}
        self.weights = folder.parents[1] / "encoders" / f"{key_of({name: recipe[name] for name in ('encoder', 'weights')})}.safetensors"
        self.encoder = encoder.eval().fold().to(device)
        shapes = self.encode(self.pictures.__getitems__([0]))
        self.row_bytes = {part: shapes[part].nbytes for part in PARTS}
        self.index = {
            "recipe": recipe,
            "shapes": {part: list(shapes[part].shape[1:]) for part in PARTS},
            "source": str(records[0].path.parent),
            "encoder": self.weights.name,
            "images": [record.image_id for record in records],
        }
        self.done = self.extracted_before()

    def extracted_before(self) -> int:
        """Images, in whole batches, that an extraction which was killed had made safe."""
        try:
            safe = int((self.unfinished / "done").read_text())
            there = [(self.unfinished / part).stat().st_size // self.row_bytes[part] for part in PARTS]
        except (OSError, ValueError):
            return 0
        return min(safe, *there) // BATCH * BATCH

    @torch.inference_mode()
    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, h, w) -> the parts as they are stored."""
        with self.arithmetic():
            features: ImageFeatures = self.encoder(images.to(self.device, non_blocking=True))
        if not all(value.isfinite().all() for value in features):
            raise UserError(f"cache.precision={self.recipe['precision']}: the encoder gives numbers that are not finite")
        parts = {part: value.to(self.dtype).cpu().contiguous() for part, value in features._asdict().items()}
        if not all(value.isfinite().all() for value in parts.values()):
            raise UserError(f"cache.dtype={self.recipe['dtype']}: a feature does not fit it; cache.dtype=fp32 keeps all of them")
        return parts

    def announce(self, say: Callable[[str], None]) -> None:
        """The size, before anything is written. Raises UserError where it is more than the disk has."""
        images, weights = sum(self.row_bytes.values()), sum(value.nbytes for value in self.tensors.values())
        size, left = len(self.records) * images + weights, (len(self.records) - self.done) * images + weights
        free = shutil.disk_usage(self.folder.parent).free
        say(
            f"extracting the features of {len(self.records):,} images, once, into {self.folder}: {in_words(size)}, "
            f"{in_words(free)} are free (features=off does without)"
        )
        if self.done:
            say(f"{self.done:,} of them were extracted before")
        if left > free:
            raise CannotKeep(
                f"cache.dir={self.folder.parents[1]}: the features take {in_words(size)}, only {in_words(free)} are free there; "
                "give another cache.dir=DIR, or features=off"
            )

    def go_on(self, advance: Callable[[int], None]) -> None:
        """Write what is missing, in the images' order; batches are cut at the same places however often this is killed."""
        self.unfinished.mkdir(exist_ok=True)
        save_weights(self.tensors, self.weights)
        (self.unfinished / "index.json").write_text(json.dumps(self.index | {"encoder_sha256": sha256(self.weights)}))
        total, safe_at = len(self.records), time.monotonic()
        batches = [list(range(start, min(start + BATCH, total))) for start in range(self.done, total, BATCH)]
        with ExitStack() as stack:
            files = {part: stack.enter_context(open(self.unfinished / part, "ab")) for part in PARTS}
            for part, file in files.items():
                file.truncate(self.done * self.row_bytes[part])
            for rows, images in zip(batches, loader(self.pictures, batches, self.workers)):
                for part, value in self.encode(images).items():
                    files[part].write(value.flatten().view(torch.uint8).numpy().data)
                advance(len(rows))
                if time.monotonic() - safe_at >= SAFE_EVERY or rows is batches[-1]:
                    for file in files.values():
                        file.flush()
                        os.fsync(file.fileno())
                    (self.unfinished / "done.new").write_text(str(rows[-1] + 1))
                    os.replace(self.unfinished / "done.new", self.unfinished / "done")
                    safe_at = time.monotonic()
        (self.unfinished / "done").unlink()
        os.rename(self.unfinished, self.folder)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what is free there decides on where features are held


class Pictures:
    """The images to extract from, as a data set for a loader: item = number of the record."""

    def __init__(self, records: Sequence[Record], source: ImageSource):
        self.records, self.source = records, source

    def __getitems__(self, rows: Sequence[int]) -> Tensor:
        return self.source.load([self.records[row] for row in rows], None)


def save_weights(tensors: dict[str, Tensor], file: Path) -> None:
    """The encoder's weights beside the features: a run that finds these takes its copy from there, and builds no encoder. Written
    anew whether they are there or not: the same bytes, unless those were damaged."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        save_file(tensors, new)
        new.chmod(0o644)  # safetensors lets nobody else read it
        with open(new, "rb") as content:
            os.fsync(content.fileno())
        new.rename(file)
    except SafetensorError as error:
        raise OSError(str(error)) from None
    finally:
        new.unlink(missing_ok=True)
