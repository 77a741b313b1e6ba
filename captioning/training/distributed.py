"""One process or many, without another code path: a world of one sums and gathers too."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from captioning.errors import UserError


@dataclass(frozen=True)
class World:
    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def share(self, value: Tensor) -> None:
        """Every rank takes the first one's numbers."""
        if self.size > 1:
            dist.broadcast(value, src=0)

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def close(self) -> None:
        if self.size > 1:
            dist.destroy_process_group()


def open_world(device: str) -> World:
    """The world that `torchrun` describes in the environment, or a world of one. Raises UserError for a device that is not there."""
    rank, size, local = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    place = find_device(device, local)
    if size > 1:
        # the others wait while the first extracts features, which may take hours
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=timedelta(hours=12))
    return World(place, rank, size)


def find_device(device: str, local: int = 0) -> torch.device:
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind, _, number = device.partition(":")
    if device == "auto":
        kind = device = next(name for name in ("cuda", "mps", "cpu") if there[name])
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if not there.get(kind, False) or (number and not (number.isdigit() and int(number) < count)):
        raise UserError(f"device={device}: not on this machine; allowed: auto, {', '.join(name for name in there if there[name])}")
    if device == "cuda":
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    return torch.device(device)
