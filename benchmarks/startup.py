"""How long a command takes to answer, each time in a fresh process."""

import subprocess
import sys
from collections.abc import Iterator

from benchmarks.material import ROOT
from benchmarks.measure import Goal, Row, Run, Work, interleaved, row

EAGER = "import runpy, sys, torch, torchvision; sys.argv = [{name!r}, '--help']; runpy.run_{kind}({name!r}, run_name='__main__')"


def command(*arguments: str) -> Work:
    def run() -> None:
        subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)

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
