"""Times of several ways of doing one thing, taken turn by turn (A B A B), and the rate of the machine beside them."""

import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Work = Callable[[], Any]


class Goal(NamedTuple):
    """What a row should reach: a ratio of at least, or at most, or a share of the floor."""

    ratio: float | None = None
    most: float | None = None
    floor: float | None = None

    def __str__(self) -> str:
        parts = [("≥ {:g}", self.ratio), ("≤ {:g}", self.most), ("≥ {:g} of floor", self.floor)]
        return ", ".join(text.format(value) for text, value in parts if value is not None)


class Row(NamedTuple):
    """One line of the table. Times are seconds; `floor` is the time that the arithmetic alone would take."""

    work: str
    against: str
    baseline: float | None = None
    ours: float | None = None
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    floor: float | None = None
    goal: Goal = Goal()
    note: str = ""

    @property
    def floor_ratio(self) -> float | None:
        return self.baseline / self.floor if self.baseline and self.floor else None

    @property
    def achieved(self) -> float | None:
        return self.floor / self.ours if self.floor and self.ours else None

    @property
    def is_met(self) -> bool | None:
        """Whether every part of the goal is reached; None where there is none, or no figure."""
        pairs = [(self.ratio, self.goal.ratio, 1), (self.ratio, self.goal.most, -1), (self.achieved, self.goal.floor, 1)]
        known = [sign * (value - goal) >= 0 for value, goal, sign in pairs if goal is not None and value is not None]
        return all(known) if known else None


@dataclass
class Run:
    """What the command line said."""

    device: torch.device
    rounds: int = 5
    quick: bool = False
    peers: dict[str, Path] = field(default_factory=dict)

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


Times = dict[str, list[float]]


def timed(run: Run, work: Work, before: Work | None = None, least: float = 0.02) -> float:
    """Seconds of one call; a short one is repeated until `least` seconds have gone by."""
    calls, spent = 0, 0.0
    while calls == 0 or (spent < least and calls < 1000):
        if before:
            before()
        run.synchronise()
        began = time.perf_counter()
        work()
        run.synchronise()
        spent, calls = spent + time.perf_counter() - began, calls + 1
    return spent / calls


def interleaved(run: Run, ways: dict[str, Work], *, before: dict[str, Work] | None = None, warm: bool = True) -> Times:
    """Every way once a round, so that what else the machine does falls on all of them. One round beforehand is not counted."""
    times: Times = {name: [] for name in ways}
    for number in range(run.rounds + warm):
        for name, work in ways.items():
            seconds = timed(run, work, (before or {}).get(name))
            if number or not warm:
                times[name].append(seconds)
    return times


def compare(baseline: Sequence[float], ours: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """The ratio of the medians, and the lowest and highest ratio of a single round."""
    ratios = [a / b for a, b in zip(baseline, ours, strict=True)]
    return statistics.median(baseline) / statistics.median(ours), (min(ratios), max(ratios))


def row(work: str, against: str, baseline: Sequence[float], ours: Sequence[float], **more: Any) -> Row:
    ratio, spread = compare(baseline, ours)
    return Row(work, against, statistics.median(baseline), statistics.median(ours), ratio, spread, **more)


class Product:
    """A matrix product of about the shape that decoders have, to learn the machine's rate in the same rounds."""

    def __init__(self, run: Run, precision: str):
        rows = 1024 if run.device.type == "cpu" else 8192
        self.x = torch.randn(rows, 2048, device=run.device, dtype=DTYPES[precision])
        self.weight = torch.randn(2048, 2048, device=run.device, dtype=DTYPES[precision])
        self.flops = 2 * rows * 2048 * 2048

    @torch.no_grad()
    def __call__(self) -> Tensor:
        return torch.nn.functional.linear(self.x, self.weight)

    def seconds_of(self, flops: float, times: Sequence[float]) -> float:
        """The floor: how long so much arithmetic takes at the rate of these times."""
        return flops * statistics.median(times) / self.flops


def peak_memory(run: Run, work: Work) -> int | None:
    """Bytes that the work needs beyond what was there before. On a CPU from Linux's own high-water mark; elsewhere unknown."""
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        run.synchronise()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed goes back to the system, or it would be taken again unseen
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    before = high_water()
    work()
    return high_water() - before


def high_water() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


class LargestTensor(TorchDispatchMode):
    """Inside it, `elements` is the size of the largest tensor that any operation made; views are not made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if any(result.alias_info for result in function._schema.returns):
            return made
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


def machine(run: Run) -> dict[str, Any]:
    """What the figures depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
