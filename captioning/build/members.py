"""One run among many: its part of the machine, and what becomes of it, in files, for its process need not be the sweep's own."""

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from captioning.build import evaluation, jobs
from captioning.errors import Requeued, UserError

WAITING, BEGUN, FINISHED, BEFORE, FAILED = "waiting", "begun", "finished", "finished before", "failed"
SIDE_BY_SIDE = ("JoblibLauncher", "LocalLauncher")  # the launchers whose members share this machine
SEATS: list[FileLock] = []  # kept while this process lives


class Job(NamedTuple):
    plan: Callable[[DictConfig], tuple[Path, bool]]  # where its results go, and whether they are there: cheap
    run: Callable[[DictConfig], None]


JOBS = {"train": Job(jobs.trained, jobs.train), "eval": Job(evaluation.evaluated, evaluation.evaluate)}
FAILURE = {"train": "failed.txt", "eval": "eval-failed.txt"}  # in the folder of the results


class Member(NamedTuple):
    number: int
    overrides: list[str]
    folder: Path  # where its results go
    note: Path  # what became of it, written by the process that runs it, which need not be this one
    state: str
    reason: str = ""


def run_member(config: DictConfig) -> None:
    """One member, in whichever process the launcher has for it. Its failure ends here, in its folder."""
    hydra = HydraConfig.get()
    name, note = str(hydra.job.config_name), Path(hydra.runtime.output_dir) / "outcome.json"
    member = read_note(note)
    write(member._replace(state=BEGUN))
    kind = hydra.launcher._target_.rpartition(".")[2]
    if kind in SIDE_BY_SIDE:
        take_gpu(note.parents[1])
    print(f"[{member.number}] {member.folder}", flush=True)
    try:
        JOBS[name].run(config)
        member = member._replace(state=FINISHED)
    except (KeyboardInterrupt, Requeued):
        raise
    except BaseException as error:
        is_plain = isinstance(error, UserError)
        text = " ".join(str(error).split())
        member = member._replace(state=FAILED, reason=text if is_plain else f"{type(error).__name__}: {text}".rstrip(": "))
        write_failure(name, member, f"{text}\n" if is_plain else traceback.format_exc())
        announce(member)
    write(member)
    free_memory()


def free_memory() -> None:
    """The next member finds what this one had; an error's traceback held all of it."""
    gc.collect()
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def take_gpu(folder: Path) -> None:
    """Of several GPUs one for this process, for as long as it lives: joblib's workers run many members, and CUDA looks only once."""
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[seat(folder) % len(gpus)]
        print(f"GPU {os.environ['CUDA_VISIBLE_DEVICES']}", flush=True)


@cache
def seat(folder: Path) -> int:
    """The lowest number that no other living process of this sweep has."""
    for number in count():
        lock = FileLock(folder / f"seat-{number}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        SEATS.append(lock)
        return number
    raise AssertionError


def write(member: Member) -> None:
    member.note.parent.mkdir(parents=True, exist_ok=True)
    new = member.note.with_suffix(".new")
    new.write_text(json.dumps(member._asdict(), default=str, indent=1) + "\n")
    new.replace(member.note)


def read_note(note: Path) -> Member:
    content = json.loads(note.read_text())
    return Member(**content | {"folder": Path(content["folder"]), "note": note})


def write_failure(name: str, member: Member, text: str) -> None:
    with suppress(OSError):  # where there can be no folder, the sweep's own notes have the reason
        member.folder.mkdir(parents=True, exist_ok=True)
        (member.folder / FAILURE[name]).write_text(text)


def announce(member: Member) -> None:
    print(f"[{member.number}] {member.folder} failed: {member.reason}", flush=True)
