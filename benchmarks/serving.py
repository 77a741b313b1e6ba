"""`python -m benchmarks.serving`: load, impolite clients and broken input against a real service, and in how many cases all was well."""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.faults import fetching
from benchmarks.faults.outcome import Outcome, chosen_rows, print_table
from benchmarks.service import endings, impolite, load
from captioning.data.shapes import shapes

ROWS: dict[str, Callable[[Path, list[bytes], Path], Outcome]] = {
    "overload": load.overload,
    "slow": impolite.slow,
    "bodies": impolite.bodies,
    "broken": impolite.broken,
    "drain": endings.drain,
    "batches": load.same_captions,
    "schema": endings.schema,
    "throughput": load.throughput,
}
ALONE: dict[str, Callable[[Path], Outcome]] = {"ssrf": fetching.ssrf, "fetches": fetching.fetches}  # need no service


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which rows (none: all): {', '.join([*ROWS, *ALONE])}")
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="whose model (default: %(default)s, of `make demo`)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="pictures to send (default: drawings)")
    options = parser.parse_args()
    if not (options.run / "config.yaml").exists():
        parser.error(f"{options.run}: not a run directory; `make demo` makes one")
    pictures = [path.read_bytes() for path in sorted(options.images.iterdir())[:200]] if options.images else drawings()
    rows = ALONE | {name: partial(row, options.run, pictures) for name, row in ROWS.items()}
    print_table({name: rows[name] for name in chosen_rows(parser, options.rows, [*ROWS, *ALONE])})


def drawings(count: int = 200, size: int = 64) -> list[bytes]:
    """Of the kind that `make demo` trains on, and none of which it saw."""
    with tempfile.TemporaryDirectory() as folder:
        records = shapes(folder, train=1, val=1, test=count, size=size, seed=1)["test"]
        return [record.path.read_bytes() for record in records]


if __name__ == "__main__":
    main()
