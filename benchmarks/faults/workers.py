"""Data workers: how many there are changes no weight; one that dies or hangs is named soon, and ends the run as a whole."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.faults.outcome import Outcome
from benchmarks.faults.programs import SMALL, is_over, program

SOON = 30.0  # seconds
AUGMENTED = ["data.transform.flip=0.5", "data.transform.zoom=0.3"]  # what could come out differently in another process
ENDS = ("killed", "exited", "hung")


def same_weights(folder: Path, workers: Sequence[int] = (0, 1, 2, 4)) -> Outcome:
    """The same run with so many data workers: its last weights, byte for byte."""
    files = []
    for count in workers:
        words = [*SMALL, *AUGMENTED, f"data.root={folder / 'drawn'}", f"data.workers={count}", f"run=r{count}"]
        _, error = (run := program(folder, words)).communicate(timeout=300)
        file = folder / f"r{count}" / "last" / "model.safetensors"
        files.append(file.read_bytes() if run.returncode == 0 else error.encode())
    same = sum(content == files[0] for content in files)
    return Outcome(
        f"same config and seed, data.workers={','.join(map(str, workers))}", len(files), same, f"different results: {len(set(files))}"
    )


def dead_workers(folder: Path, patience: float | None = None) -> Outcome:
    """A data worker is killed, exits, or hangs at a picture, inside an epoch: it is named, and what was done is saved.

    patience: None for the one that users have."""
    passed, slowest, wrong = 0, 0.0, []
    for end in ENDS:
        words = [end, str(patience), *SMALL, f"data.root={folder / 'drawn'}", "data.workers=2", f"run={end}"]
        run = program(folder, words, ["-c", "from benchmarks.faults.workers import misbehaving; misbehaving()"])
        _, error = run.communicate(timeout=300)
        over = time.time()
        at = folder / f"{end}.at"
        pid, picture, since = at.read_text().split("\n") if at.exists() else ("none", "none", "0")
        seconds = over - float(since)
        lines = [line for line in error.splitlines() if line.startswith("error: ")]
        named = len(lines) == 1 and f"(pid {pid})" in lines[0] and Path(picture).name in lines[0]
        saved = (folder / end / "last" / "model.safetensors").exists()
        if run.returncode == 2 and named and "Traceback" not in error and seconds < SOON and saved and is_over(run.pid):
            passed += 1
        else:
            wrong.append(f"{end}: exit code {run.returncode}, saved: {saved}, {error.strip()[-300:]}")
        slowest = max(slowest, seconds)
    note = "; ".join(wrong) or f"slowest {slowest:.1f} s from the fault to the program's end, its steps saved, 0 processes left"
    return Outcome(f"a data worker {', '.join(ENDS)}", len(ENDS), passed, note)


def misbehaving() -> None:
    """train.py, of which a data worker comes to grief at the 50th picture that it reads. Words: how, the patience, then train.py's own."""
    from captioning.build.program import run_program
    from captioning.data import workers
    from captioning.data.transforms import Transform

    how, patience, *words = sys.argv[1:]
    sys.argv[:] = ["train.py", *words]
    workers.PATIENCE = float(patience) if patience != "None" else workers.PATIENCE
    read, parent, count, at = Transform.read, os.getpid(), 0, Path(f"{how}.at")

    def faulty(self, file):
        nonlocal count
        count += os.getpid() != parent
        if count >= 50 and not at.exists():
            at.write_text(f"{os.getpid()}\n{file}\n{time.time()}")
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            elif how == "exited":
                os._exit(3)
            time.sleep(10_000)
        return read(self, file)

    Transform.read = faulty
    run_program("train")
