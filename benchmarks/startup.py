"""How long a command takes to answer, each time in a fresh process."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.input import workplace
from benchmarks.material import ROOT
from benchmarks.measure import Goal, Row, Run, Work, interleaved, row

EAGER = "import runpy, sys, torch, torchvision; sys.argv = [{name!r}, '--help']; runpy.run_{kind}({name!r}, run_name='__main__')"


def command(*arguments: str, **environment: str) -> Work:
    def run() -> None:
        subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True, env=os.environ | environment)

    return run


def startup(run: Run) -> Iterator[Row]:
    for shown, arguments, kind, name in (
        ("train.py --help", ["train.py", "--help"], "path", "train.py"),
        ("captioning --help", ["-m", "captioning.cli", "--help"], "module", "captioning.cli"),
    ):
        eager = command("-c", EAGER.format(kind=kind, name=name))
        times = interleaved(run, {"eager": eager, "ours": command(*arguments), "python": command("-c", "pass")})
        note = f"Python alone takes {1000 * min(times['python']):.0f} ms"
        yield row(shown, "torch and torchvision imported on top", times["eager"], times["ours"], goal=Goal(20), note=note)
    yield warm_start()


def warm_start() -> Row:
    """From the command to the end of two steps, a validation and a checkpoint, the features being in the cache."""
    with workplace() as folder:
        data = ["data=shapes", f"data.root={folder}", "data.reader.train=128", "data.reader.val=8", "data.reader.test=8"]
        encoder = ["encoder=mobilenet_v2", "encoder.weights=none", "decoder=attention", "trainer=smoke", "trainer.samples=0", "logger=none"]

        def seconds(number: int) -> float:
            train = command("train.py", *data, *encoder, f"run={folder / str(number)}", CAPTIONING_CACHE=str(folder / "cache"))
            began = time.perf_counter()
            train()
            return time.perf_counter() - began

        cold, warm = seconds(0), seconds(1)
    note = "seconds of the whole command, in place of a ratio; two steps, a small validation and checkpoints are in it"
    return Row("train.py trainer=smoke, features in the cache", "features extracted", cold, warm, warm, goal=Goal(most=5), note=note)
