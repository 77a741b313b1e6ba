"""Saves that are killed between any two system calls, or that the disk refuses: there is always a whole checkpoint to go on from."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.faults.outcome import Outcome
from benchmarks.faults.training import CNN, MODEST, Ended, Program, differences, finished

# Four saves, of steps 20 and 25, of the best after step 26, and of that step, follow on the state in which the runs are found
WORDS = [*MODEST, *CNN, "decoder=gru", "trainer.monitor=loss", "data.root=drawn"]
BEGIN = 20
DELAY = 0.05  # seconds: a kill from outside falls into the first so many of a series of writes
NOBODY = 65534
EVENTS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.scandir", "os.listdir", "shutil.rmtree"}


def saves(
    folder: Path, points: int = 20, writing: int = 3, refusals: tuple[str, ...] = ("full", "full for the curve", "read-only", "I/O error")
) -> Outcome:
    """points: kills spread over all events of the saves; writing: kills from outside while tensors are written."""
    folder.chmod(0o755)
    finished(folder, [*WORDS, "run=truth"])
    begun = folder / "begun"
    Program(folder, [*WORDS, "run=begun"], prepare=die_before_save, of=(BEGIN,)).end()
    count = events_of_saves(folder, begun)
    draws, problems = random.Random(0), {}
    for number in range(points):
        run, at = copied(begun, folder / f"point-{number}"), 1 + number * count // points
        ended = Program(folder, [*WORDS, f"run={run.name}"], prepare=die_at, of=(at,)).end()
        told = [] if ended.code == -signal.SIGKILL else [f"exit code {ended.code}: {ended.text[-300:]}"]
        problems[f"event {at}"] = told + unreadable(run) + goes_on(folder, run)
    for number in range(writing):
        run = copied(begun, folder / f"writing-{number}")
        program = Program(folder, [*WORDS, f"run={run.name}"], prepare=write_for_ever)
        program.wait_for("WRITING")
        time.sleep(draws.uniform(0, DELAY))
        problems[f"in the writing of tensors, {number}"] = ([] if program.kill() else ["was over"]) + unreadable(run) + goes_on(folder, run)
    how = ""
    for name in refusals:
        run = copied(begun, folder / name.replace("/", "").replace(" ", "-"))
        if name == "full":
            how, ended = fill(folder, run)
        else:
            ended = Program(folder, [*WORDS, f"run={run.name}"], prepare=REFUSALS[name]).end()
        problems[name] = refused(run, ended) + unreadable(run) + goes_on(folder, run)
    wrong = [f"{name}: {', '.join(its)}" for name, its in problems.items() if its]
    note = f"{count} events in four saves{f'; full: {how}' if how else ''}"
    return Outcome("kill inside a save, refusing disk", len(problems), len(problems) - len(wrong), "; ".join([note, *wrong]))


def copied(begun: Path, run: Path) -> Path:
    shutil.copytree(begun, run)
    return run


# What must hold


def unreadable(run: Path) -> list[str]:
    """`last` is whole where it is, and where it is not, the one before it is. And so is `best`."""
    from captioning.errors import UserError
    from captioning.training import checkpoint

    problems = []
    for name, tensors in (("last", ("model", "optimizer")), ("best", ("model",))):
        try:
            found = checkpoint.find(run / name)
            if found is None or ((run / name).exists() and found != run / name):
                problems.append(f"{name} is not there or not whole")
            else:
                checkpoint.verify(found, *tensors)
        except UserError as error:
            problems.append(str(error))
    return problems


def goes_on(folder: Path, run: Path) -> list[str]:
    ended = Program(folder, [*WORDS, f"run={run.relative_to(folder)}"]).end()
    if ended.code or "resuming" not in ended.text or "warning: " + str(run.relative_to(folder)) in ended.text:
        return [f"did not go on: {ended.text[-300:]}"]
    return differences(folder / "truth", run)


def refused(run: Path, ended: Ended) -> list[str]:
    """One sentence, exit code 2, and the checkpoint before as it was."""
    *before, error = ended.text.splitlines()
    right = ended.code == 2 and error.startswith("error: ") and "cannot be written (" in error and before[-1].startswith("resuming ")
    step = json.loads((run / "last" / "state.json").read_text())["progress"]["step"]
    problems = [] if right else [f"exit code {ended.code}: {ended.text[-400:]}"]
    return problems + ([] if step == BEGIN - 5 else [f"the checkpoint is of step {step}"])


# In the process that saves


def watch(event: Callable[[str], None]) -> None:
    """`event` is called before every system call that a save makes, and in the middle of every file that it writes."""
    from captioning.training import checkpoint

    save, write_tensors, write_text, flush = checkpoint.save, checkpoint.save_file, Path.write_text, os.fsync
    inside = [False]

    def saving(*arguments, **more):
        inside[0] = True
        try:
            return save(*arguments, **more)
        finally:
            inside[0] = False

    def writing_tensors(tensors, file):
        write_tensors(tensors, file)
        halved(file, file.read_bytes())

    def writing_text(self: Path, data: str, *arguments: Any, **more: Any) -> int:
        return halved(self, data.encode()) if inside[0] else write_text(self, data, *arguments, **more)

    def halved(file: Path, content: bytes) -> int:
        with open(file, "wb") as target:
            for part in (content[: len(content) // 2], content[len(content) // 2 :]):
                event(f"write {file.name}")
                target.write(part)
                target.flush()
        return len(content)

    def flushing(descriptor):
        event("fsync")
        flush(descriptor)

    checkpoint.save, checkpoint.save_file, Path.write_text, os.fsync = saving, writing_tensors, writing_text, flushing
    sys.addaudithook(lambda name, of: event(name) if inside[0] and name in EVENTS else None)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(last: int) -> None:
    count = [0]

    def event(name: str) -> None:
        count[0] += 1
        if count[0] == last:
            die()

    watch(event)


def count_events(file: str) -> None:
    names: list[str] = []
    watch(names.append)
    from captioning.training.trainer import Trainer

    fit = Trainer.fit

    def fitting(self):
        evaluation = fit(self)
        os.write(os.open(file, os.O_CREAT | os.O_WRONLY), "\n".join(names).encode())
        return evaluation

    Trainer.fit = fitting


def events_of_saves(folder: Path, begun: Path) -> int:
    run = copied(begun, folder / "counted")
    finished(folder, [*WORDS, "run=counted"], prepare=count_events, of=(str(folder / "events"),))
    shutil.rmtree(run)
    return len((folder / "events").read_text().splitlines())


def before_save(action: Callable[[], Any], step: int = 0) -> None:
    """The first save, of this step or a later one, finds the action done."""
    from captioning.training.keeper import Keeper

    save = Keeper.save

    def acting(self, at):
        if at.step >= step:
            action()
        save(self, at)

    Keeper.save = acting


def die_before_save(step: int) -> None:
    before_save(die, step)


def write_for_ever() -> None:
    from captioning.training import checkpoint

    write = checkpoint.save_file

    def writing(tensors, file):
        print("WRITING", flush=True)
        while True:
            write(tensors, file)

    checkpoint.save_file = writing


def forbid() -> None:
    """The run directory can no longer be written into: root, who always can, becomes somebody else."""
    from captioning.training.keeper import Keeper

    save = Keeper.save

    def forbidden(self, at):
        if os.geteuid():
            self.run.chmod(0o555)
        else:
            os.seteuid(NOBODY)
        try:
            save(self, at)
        finally:
            if os.getuid():
                self.run.chmod(0o755)

    Keeper.save = forbidden


def fail_to_flush() -> None:
    def failing(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before_save(lambda: setattr(os, "fsync", failing))


def limit_files(size: int) -> None:
    before_save(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))


def fail_to_log() -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    write, records = RecordWriter.write, iter(range(1, 1000))

    def failing(self, data):
        if next(records) > 5:  # two stand at the head of the file
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data)

    RecordWriter.write = failing


REFUSALS = {"read-only": forbid, "I/O error": fail_to_flush, "full for the curve": fail_to_log}


# A full disk


def fill(folder: Path, run: Path) -> tuple[str, Ended]:
    """The run continues on a disk with room for half a checkpoint; where none may be mounted, no file may become large."""
    half = sum(file.stat().st_size for file in (run / "last").iterdir()) // 2
    disk, kept = folder / "disk", folder / "kept"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True).returncode:
        return "by RLIMIT_FSIZE", Program(folder, [*WORDS, f"run={run.name}"], prepare=limit_files, of=(half // 2,)).end()
    try:
        shutil.copytree(run, disk / "run")
        about = os.statvfs(disk)
        (disk / "rest").write_bytes(bytes(about.f_bavail * about.f_frsize - half))
        ended = Program(folder, [*WORDS, "run=disk/run"]).end()
        shutil.copytree(disk / "run", kept)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    shutil.rmtree(run)
    kept.rename(run)
    return "a tmpfs", ended
