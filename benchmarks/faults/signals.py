"""Signals that ask a run to end, in a step, in a validation, in a save: it ends soon, with a checkpoint, and the same command goes on."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from benchmarks.faults.outcome import Outcome
from benchmarks.faults.programs import ROOT, is_over, program
from benchmarks.faults.training import CNN, MODEST, PATIENCE, Program, differences, finished

NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")
PLACES = ("step", "validation", "save")
SOON = 5.0  # seconds
STEP, EPOCH = 6, 13  # the sixth is also the one after the first save
WORDS = [*MODEST, *CNN, "decoder=lstm", "trainer.average=0.9", "data.root=drawn"]


def signals(folder: Path, names: tuple[str, ...] = NAMES, places: tuple[str, ...] = PLACES) -> Outcome:
    """Each comes from another process while this one waits for it in the very place."""
    finished(folder, [*WORDS, "run=truth"])
    passed, slowest, wrong = 0, 0.0, []
    for name in names:
        for place in places:
            run = folder / f"{name}-{place}"
            words = [*WORDS, f"run={run.name}"]
            stopped = Program(folder, words, prepare=wait_in, of=(place,))
            problems, expected = [], EPOCH if place == "validation" else STEP
            if not stopped.wait_for("HERE"):
                raise AssertionError(f"{place} was never reached: {stopped.end().text}")
            began = time.monotonic()
            os.kill(stopped.pid, signal.Signals[name])
            ended = stopped.end()
            seconds = time.monotonic() - began
            slowest = max(slowest, seconds)
            told = f"stopped by {name} at epoch 1, step {expected}; the same command goes on"
            problems += [] if seconds <= SOON else [f"took {seconds:.1f} s"]
            problems += [] if ended.code == 75 else [f"exit code {ended.code}"]
            problems += [] if ended.text.splitlines()[-1] == told and "Traceback" not in ended.text else [f"said {ended.text[-300:]}"]
            problems += [] if at_step(run) == expected else [f"checkpoint of step {at_step(run)}"]
            text = finished(folder, words)
            problems += [] if f"resuming {run.name} at epoch 1" in text else ["did not go on"]
            problems += differences(folder / "truth", run)
            passed += not problems
            wrong += [f"{name} in {place}: {', '.join(problems)}"] if problems else []
    note = f"slowest exit {slowest:.2f} s"
    return Outcome(" / ".join(names) + " in " + ", ".join(places), len(names) * len(places), passed, "; ".join([note, *wrong]))


def group(folder: Path) -> Outcome:
    """As a terminal's Ctrl-C or a scheduler does it: `python train.py` and both of its data workers get the signal at once."""
    words = [*(word for word in WORDS if not word.startswith("data.workers")), "data.workers=2"]
    finished(folder, [*words, "run=truth"])
    passed, wrong = 0, []
    for name in ("SIGTERM", "SIGINT"):
        stopped = program(folder, [*words, f"run={name}"], [str(ROOT / "train.py")])
        until = time.monotonic() + PATIENCE
        while at_step(folder / name) < STEP - 1 and stopped.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        began = time.monotonic()
        os.killpg(stopped.pid, signal.Signals[name])
        _, errors = stopped.communicate(timeout=PATIENCE)
        seconds = time.monotonic() - began
        problems = [] if stopped.returncode == 75 and seconds <= SOON else [f"exit code {stopped.returncode} after {seconds:.1f} s"]
        problems += [] if errors.startswith(f"stopped by {name} at epoch ") and errors.count("\n") == 1 else [f"said {errors[-300:]}"]
        problems += [] if is_over(stopped.pid) else ["left a process"]
        finished(folder, [*words, f"run={name}"])
        problems += differences(folder / "truth", folder / name)
        passed += not problems
        wrong += [f"{name}: {', '.join(problems)}"] if problems else []
    return Outcome("SIGTERM, SIGINT to a run and its two data workers", 2, passed, "; ".join(wrong))


def second(folder: Path) -> Outcome:
    """A second Ctrl-C does not wait for a step that hangs: it ends the process at once, and what was kept before stays."""
    words = [*WORDS, "run=impatient"]
    hanging = Program(folder, words, prepare=hang_in_step)
    hanging.wait_for("HERE")
    os.kill(hanging.pid, signal.SIGINT)
    time.sleep(0.2)
    was_alive = hanging.process.is_alive()
    began = time.monotonic()
    os.kill(hanging.pid, signal.SIGINT)
    ended = hanging.end()
    seconds = time.monotonic() - began
    finished(folder, [*WORDS, "run=truth"])
    finished(folder, words)
    right = was_alive and ended.code == -signal.SIGINT and not differences(folder / "truth", folder / "impatient")
    return Outcome("a second SIGINT", 1, int(right), f"ended after {seconds:.2f} s by {ended.code}")


def hang_in_step() -> None:
    from captioning.training.guard import Guard

    judge, steps = Guard.step, iter(range(1, 100))

    def hanging(*arguments: Any, **more: Any):
        if next(steps) == STEP + 1:
            print("HERE", flush=True)
            until = time.monotonic() + PATIENCE
            while time.monotonic() < until:
                time.sleep(0.01)
        return judge(*arguments, **more)

    Guard.step = hanging


def at_step(run: Path) -> int:
    """By its last checkpoint; read in the moment in which it is replaced, 0."""
    try:
        return json.loads((run / "last" / "state.json").read_text())["progress"]["step"]
    except (OSError, ValueError):
        return 0


def wait_in(place: str) -> None:
    """In the process that is to be stopped: there it says so, once, and waits until a signal has come."""
    from captioning.training import checkpoint
    from captioning.training.evaluate import Evaluator
    from captioning.training.guard import Guard
    from captioning.training.signals import Signals

    noted: list[int] = []
    note, begin, evaluate, save = Signals.note, Guard.remember, Evaluator.__call__, checkpoint.save_file

    def noting(self, number, frame):
        note(self, number, frame)
        noted.append(number)

    def wait() -> None:
        print("HERE", flush=True)
        until = time.monotonic() + PATIENCE
        while not noted and time.monotonic() < until:
            time.sleep(0.001)

    steps = iter(range(1, 100))

    def waiting_step(self):
        if next(steps) == STEP:
            wait()
        return begin(self)

    def waiting_evaluation(*arguments: Any, **more: Any):
        wait()
        return evaluate(*arguments, **more)

    def waiting_save(tensors, file):
        save(tensors, file)
        if not noted and file.parent.name == "last.new":
            wait()

    Signals.note = noting
    if place == "step":
        Guard.remember = waiting_step
    elif place == "validation":
        Evaluator.__call__ = waiting_evaluation
    else:
        checkpoint.save_file = waiting_save
