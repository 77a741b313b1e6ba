"""Batches of cached features: gathered in memory where all of them fit, else read from disk ahead of their use."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch
from torch import Tensor

from captioning.cache.store import FeatureStore, refused
from captioning.data.records import Record
from captioning.models.features import ImageFeatures

READS = 8  # at once: a disk is quickest with several to choose from


class FeatureSource:
    """Gives a batch its features. Decoders that never look at the grid are not given one.

    memory: the share of the free memory (of the GPU, or else of the machine) that the features may take.
    """

    def __init__(self, store: FeatureStore, *, with_grid: bool, device: torch.device, memory: float):
        self.store, self.device = store, device
        self.parts = ("grid", "pooled") if with_grid else ("pooled",)
        size = sum(len(store.rows) * store.row_bytes(part) for part in self.parts)
        self.is_held = size <= memory * free_memory(device)
        place = f"in the memory of {device}" if device.type == "cuda" else "in memory"
        self.about = f"features held {place}" if self.is_held else "features read from disk"
        self.reading: Literal["workers", "ahead", "inline"] = "inline" if self.is_held else "ahead"
        kind = Held if self.is_held else Streamed
        self.readers = {part: kind(store, part, device) for part in self.parts}

    def load(self, records: Sequence[Record], positions: Sequence[tuple] | None) -> ImageFeatures:
        rows = self.store.numbers_of([record.image_id for record in records])
        pooled = self.readers["pooled"](rows)
        grid = self.readers["grid"](rows) if "grid" in self.readers else pooled.new_zeros(len(rows), 0, self.store.dims.grid)
        return ImageFeatures(grid, pooled)


class Held:
    """All rows in the GPU's memory, or mapped into the machine's: there the processes of a sweep share them."""

    def __init__(self, store: FeatureStore, part: str, device: torch.device):
        if hasattr(os, "posix_fadvise"):
            with open(store.folder / part, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)  # all of it will be needed: begin to read
        self.rows = store.map(part).to(device)

    def __call__(self, rows: Tensor) -> Tensor:
        return self.rows.index_select(0, rows.to(self.rows.device, non_blocking=True))


class Streamed:
    """Rows read straight from the file, several at once and in the file's order. A map would be read page by page as it is touched,
    which is 2-3 times slower from a cold disk, and would count as this process's memory."""

    def __init__(self, store: FeatureStore, part: str, device: torch.device):
        self.store, self.part, self.pinned = store, part, device.type == "cuda"
        self.file = open(store.folder / part, "rb", buffering=0)  # noqa: SIM115 - open as long as the source is
        self.pool = ThreadPoolExecutor(READS)

    def __call__(self, rows: Tensor) -> Tensor:
        shape = (len(rows), *self.store.shapes[self.part])
        batch = torch.empty(shape, dtype=self.store.dtype, pin_memory=self.pinned)
        size, numbers = self.store.row_bytes(self.part), rows.tolist()
        places = batch.flatten(1).view(torch.uint8).numpy()

        def read(place: int) -> int:
            return os.preadv(self.file.fileno(), [places[place].data], numbers[place] * size)

        if any(count != size for count in self.pool.map(read, sorted(range(len(numbers)), key=numbers.__getitem__))):
            raise refused(self.store.folder, f"{self.part} has become shorter")
        return batch


def free_memory(device: torch.device) -> int:
    """Bytes. On the CPU, what could be had without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    except OSError:  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
