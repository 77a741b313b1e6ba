"""`python -m benchmarks.reliability`: faults done to real runs and real files, and in how many cases all was well afterwards."""

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults import captions, damage, growth, guards, images, kills, saves, signals, sweep, workers
from benchmarks.faults.outcome import Outcome, chosen_rows, print_table

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
    print_table({name: ROWS[name] for name in chosen_rows(parser, options.rows, list(ROWS))})


if __name__ == "__main__":
    main()
