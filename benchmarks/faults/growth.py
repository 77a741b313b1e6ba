"""A long run: what it holds in memory and in open files must not grow with its epochs."""

import os
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.faults.outcome import Outcome
from benchmarks.faults.programs import SMALL, program

WARM_UP = 20  # epochs
MOST = 0.02  # more memory in 100 epochs


class Sample(NamedTuple):
    memory: int  # bytes that are resident
    handles: int


def growth(folder: Path, epochs: int = 200) -> Outcome:
    """A run of so many epochs with a validation, a page of pictures and a checkpoint after each, TensorBoard and a data worker."""
    samples = measured(folder, epochs)
    memory, handles = memory_growth(samples[WARM_UP:]), handle_growth(samples[WARM_UP:])
    passed = len(samples) == epochs and memory < MOST and handles <= 0
    first, last = samples[WARM_UP], samples[-1]
    mebibytes = f"{first.memory / 2**20:.0f} to {last.memory / 2**20:.0f} MiB after {WARM_UP} epochs"
    note = f"memory {memory:+.2%} a 100 epochs ({mebibytes}), open files {handles:+}"
    return Outcome(f"{epochs} epochs on toy data", 1, int(passed), note)


def measured(folder: Path, epochs: int, more: Sequence[str] = ()) -> list[Sample]:
    """A sample after each epoch, when the run has said what came of it."""
    words = [
        "logger=tensorboard",
        "features=off",
        "data.workers=1",
        f"trainer.epochs={epochs}",
        "data.reader.train=16",
        "trainer.samples=2",
    ]
    run = program(folder, [*SMALL, f"data.root={folder / 'drawn'}", "run=long", *words, *more])
    assert run.stdout and run.stderr
    samples = [sample(run.pid) for line in run.stdout if re.match(r"epoch \d+, step", line)]
    error = run.stderr.read()
    if run.wait():
        raise RuntimeError(error[-2000:])
    return samples


def sample(pid: int) -> Sample:
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Sample(resident * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{pid}/fd")))


def memory_growth(samples: Sequence[Sample]) -> float:
    """By 100 epochs, as a share: between the medians of the first and of the last quarter."""
    quarter = len(samples) // 4
    first, last = (statistics.median(one.memory for one in part) for part in (samples[:quarter], samples[-quarter:]))
    return (last / first - 1) * 100 / (len(samples) - quarter)


def handle_growth(samples: Sequence[Sample]) -> int:
    """Between the first and the last quarter: the fewest in each, for a sample may fall where the next epoch has a file open."""
    quarter = len(samples) // 4
    first, last = (min(one.handles for one in part) for part in (samples[:quarter], samples[-quarter:]))
    return last - first
