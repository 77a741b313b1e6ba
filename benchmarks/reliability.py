"""`python -m benchmarks.reliability`: faults done to real runs and real files, and in how many cases all was well afterwards."""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.faults import captions, damage, growth, guards, images, kills, saves, signals, sweep, workers
from benchmarks.faults.outcome import Outcome

ROWS: dict[str, Callable[[Path], Outcome]] = {
    "kills": kills.kills,
    "signals": signals.signals,
    "saves": saves.saves,
    "damage": damage.damage,
    "guards": guards.guards,
    "sweep": sweep.sweep,
    "images": images.broken_images,
    "bombs": images.bombs,
    "captions": captions.bad_captions,
    "dead-workers": workers.dead_workers,
    "workers": workers.same_weights,
    "growth": growth.growth,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which rows (none: all): {', '.join(ROWS)}")
    options = parser.parse_args()
    chosen = [name for name in ROWS if not options.rows or any(fnmatch(name, row) for row in options.rows)]
    if not chosen:
        parser.error(f"no such row; there are {', '.join(ROWS)}")
    print("| fault | as it must be | worst | seconds |\n|---|---|---|---|", flush=True)
    is_well = True
    for name in chosen:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="captioning-") as folder:
            outcome = ROWS[name](Path(folder))
        seconds = time.monotonic() - began
        print(f"| {outcome.fault} | {outcome.passed} of {outcome.count} | {outcome.note} | {seconds:.0f} |", flush=True)
        is_well &= outcome.passed == outcome.count
    sys.exit(0 if is_well else 1)


if __name__ == "__main__":
    main()
