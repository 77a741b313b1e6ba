"""A row of a table of faults: what was done to the program, how often, and how often it did what it must."""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple


class Outcome(NamedTuple):
    fault: str
    count: int
    passed: int
    note: str  # the worst figures


def chosen_rows(parser: argparse.ArgumentParser, patterns: list[str], names: list[str]) -> list[str]:
    chosen = [name for name in names if not patterns or any(fnmatch(name, pattern) for pattern in patterns)]
    if not chosen:
        parser.error(f"no such row; there are {', '.join(names)}")
    return chosen


def print_table(rows: Mapping[str, Callable[[Path], Outcome]]) -> None:
    """Each row as it is done; exit code 1 where one is not as it must be."""
    print("| fault | as it must be | worst | seconds |\n|---|---|---|---|", flush=True)
    is_well = True
    for row in rows.values():
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="captioning-") as folder:
            outcome = row(Path(folder))
        seconds = time.monotonic() - began
        print(f"| {outcome.fault} | {outcome.passed} of {outcome.count} | {outcome.note} | {seconds:.0f} |", flush=True)
        is_well &= outcome.passed == outcome.count
    sys.exit(0 if is_well else 1)
