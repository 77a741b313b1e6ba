"""A sweep of which some members fail, killed in its middle and started again: every result, every failure told, nothing done twice."""

import os
import re
import signal
import time
from pathlib import Path

from benchmarks.faults.outcome import Outcome
from benchmarks.faults.programs import SMALL, program

TOO_LARGE = 2**40  # decoder.hidden_size: passes every check of the settings, and fails when the decoder is built
PATIENCE = 300  # seconds


def sweep(folder: Path, members: int = 12, failing: int = 2) -> Outcome:
    """Killed while the member after the middle trains, when more than one has failed or finished before."""
    sizes = sizes_of(members, failing)
    words = ["-m", *SMALL, f"data.root={folder / 'drawn'}", "trainer.checkpoint_every=1", "run='m/${decoder.hidden_size}'"]
    words = [*[word for word in words if "hidden_size=" not in word], f"decoder.hidden_size={','.join(map(str, sizes))}"]
    good = [size for size in sizes if size < TOO_LARGE]
    interrupted = folder / "m" / str(good[len(good) // 2])

    killed = program(folder, words)
    until = time.monotonic() + PATIENCE
    while not (interrupted / "last" / "manifest.json").exists() and killed.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    before = [folder / "m" / str(size) for size in good[: len(good) // 2]]
    files = {file: identity(file) for run in before for file in run.glob("*/*") if file.is_file()}

    again = program(folder, words)
    text, _ = again.communicate(timeout=PATIENCE)
    results = [size for size in good if (folder / "m" / str(size) / "best" / "manifest.json").exists()]
    failures = [file for file in (folder / "m").glob("*/failed.txt") if int(file.parent.name) >= TOO_LARGE and file.read_text().strip()]
    said = f"{members} members: {len(good) - len(before)} finished now, {len(before)} were finished before, {failing} failed" in text
    resumed = re.findall(r"resuming m/(\d+) ", text) == [interrupted.name]
    repeated = sum(not file.exists() or identity(file) != its for file, its in files.items())
    ends = (killed.returncode, again.returncode) == (-signal.SIGKILL, 1)
    all_right = ends and said and resumed and len(results) == members - failing and len(failures) == failing and files and not repeated
    note = f"{len(results)} results, {len(failures)} recorded failures, {repeated} of {len(files)} files of finished members written again"
    if not all_right:
        note += f"; resumed: {resumed}, exit codes {killed.returncode} and {again.returncode}: {text[-300:]}"
    return Outcome(f"a sweep of {members}, {failing} failing, killed once and restarted", 1, int(bool(all_right)), note)


def sizes_of(members: int, failing: int) -> list[int]:
    """Of the members' decoders, the ones that fail spread among the others."""
    bad = {(2 * number + 1) * members // (2 * failing) for number in range(failing)}
    return [TOO_LARGE + number if number in bad else 8 + number for number in range(members)]


def identity(file: Path) -> tuple[int, int]:
    about = file.stat()
    return about.st_ino, about.st_mtime_ns
