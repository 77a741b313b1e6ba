"""Runs that faults are done to: real processes, forked from one that has imported PyTorch already; and what two of them must share."""

import io
import json
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.faults.programs import ROOT

PATIENCE = 240  # seconds; none of these runs takes ten
MODEST = [
    "data.reader.train=40", "data.reader.val=8", "data.reader.test=8", "data.reader.size=32", "data.transform.size=32",
    "data.batch_size=16", "data.workers=0", "decoder.hidden_size=16", "decoder.embedding_size=12", "device=cpu",
    "trainer.epochs=2", "trainer.log_every=3", "trainer.checkpoint_every=5", "trainer.samples=1",
]  # fmt: skip
CNN = ["encoder=cnn", "encoder.channels=16"]
FILES = ("last/model.safetensors", "last/optimizer.safetensors", "best/model.safetensors")  # `average` is what `best` is of
OF_THE_CLOCK = ("seconds", "peak_memory")
Preparation = Callable[..., None]


# Running


class Ended(NamedTuple):
    code: int  # of its exit; -9: killed
    text: str  # all that it has printed


class Program:
    """`python train.py WORDS` (or eval.py) in `folder`, where its data and cache are."""

    def __init__(
        self,
        folder: Path,
        words: Sequence[str],
        *,
        prepare: Preparation | None = None,
        of: Sequence[Any] = (),
        name: str = "train",
    ):
        """prepare: called with `of` in the new process, before its program begins: what puts a fault in its way."""
        self.log = folder / f"{time.monotonic_ns()}.log"
        self.log.touch()
        context = multiprocessing.get_context("forkserver")  # PyTorch takes longer to import than these runs to train
        context.set_forkserver_preload(["benchmarks.faults.warm"])
        os.environ["PYTHONPATH"] = str(ROOT)  # for the process that is forked from
        self.process: BaseProcess = context.Process(
            target=program, args=(str(folder), list(words), str(self.log), name, prepare, tuple(of))
        )
        self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def wait_for(self, word: str) -> bool:
        """Whether it has printed this before it ended."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if word in self.log.read_text():
                return True
            if not self.process.is_alive():
                return word in self.log.read_text()
            time.sleep(0.002)
        return False

    def kill(self) -> bool:
        """Whether it was alive."""
        self.process.kill()
        self.process.join()
        return self.process.exitcode == -signal.SIGKILL

    def end(self) -> Ended:
        """Raises TimeoutError where it hangs."""
        self.process.join(PATIENCE)
        if self.process.exitcode is None:
            self.kill()
            raise TimeoutError(f"no end after {PATIENCE} s: {self.log.read_text()}")
        return Ended(self.process.exitcode, self.log.read_text())


def program(folder: str, words: list[str], log: str, name: str, prepare: Preparation | None, of: tuple[Any, ...]) -> None:
    """In the new process: its own group, its own output, and the program."""
    import torch

    from captioning.build.program import run_program

    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(descriptor, number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
    torch.set_num_threads(1)  # with another number the last digits differ
    os.chdir(folder)
    os.environ["CAPTIONING_CACHE"] = str(Path(folder) / "cache")
    os.environ.pop("CAPTIONING_DEBUG", None)
    multiprocessing.set_start_method("fork", force=True)  # as it is where nobody was forked from a server
    sys.argv = [f"{name}.py", *words]
    if prepare:
        prepare(*of)
    run_program(name)


def finished(folder: Path, words: Sequence[str], **more: Any) -> str:
    """What a run has printed that must end well."""
    ended = Program(folder, words, **more).end()
    if ended.code:
        raise AssertionError(f"exit code {ended.code} of {' '.join(words)}: {ended.text}")
    return ended.text


def trainer_of(folder: Path, words: Sequence[str]) -> Any:
    """The Trainer of `python train.py WORDS`, in this process; not started."""
    from captioning.build.compose import as_dict, composed
    from captioning.build.jobs import Training
    from captioning.build.schema import check
    from captioning.training.distributed import open_world

    config = as_dict(composed("train", [*words, f"data.root={folder / 'drawn'}"]))
    check(config)
    with redirect_stdout(io.StringIO()):
        return Training(config).trainer(open_world("cpu"))


# Comparing


def differences(truth: Path, run: Path) -> list[str]:
    """What of a run is not, bit for bit, that of the uninterrupted one; nothing but times may differ."""
    different = [name for name in FILES if (truth / name).read_bytes() != (run / name).read_bytes()]
    ours, theirs = (json.loads((path / "last" / "state.json").read_text()) for path in (run, truth))
    for state in (ours, theirs):
        state["progress"] = timeless(state["progress"]) | {
            "history": [timeless(validation) for validation in state["progress"]["history"]],
            "logged": {name: value for name, value in state["progress"]["logged"].items() if "per_second" not in name},
        }
    different += [f"progress.{name}" for name, value in theirs["progress"].items() if ours["progress"][name] != value]
    different += [f"state.{name}" for name, value in theirs.items() if name != "progress" and ours[name] != value]
    if (truth / "tensorboard").exists() and (shown := curve(run)) != (whole := curve(truth)):
        different += [f"curve {name}" for name in sorted(whole.keys() | shown.keys()) if shown.get(name) != whole.get(name)]
    return different + leftovers(run)


def timeless(progress: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in progress.items() if name not in OF_THE_CLOCK}


def curve(run: Path) -> dict[str, list[tuple[int, float]]]:
    """As TensorBoard shows it, without what is measured by the clock."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of every restart
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    names = [name for name in events.Tags()["scalars"] if "per_second" not in name]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


def leftovers(run: Path) -> list[str]:
    """Of saves that were killed: nothing may stay but `last`, the one before it, and `best`."""
    allowed = {"last", "last.before", "best", "tensorboard"}
    return [f"left: {path.name}" for path in sorted(run.iterdir()) if (path.is_dir() and path.name not in allowed) or path.suffix == ".new"]
