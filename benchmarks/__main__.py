"""`python -m benchmarks`: one table of ratios, each measured in this run against a named plain baseline."""

import argparse
import datetime
import json
import time
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import comparing, growth, input, scoring, startup, steps
from benchmarks.measure import Row, Run, machine
from benchmarks.searching import search_rows
from captioning.training.memory import keep_freed_memory

ROWS: dict[str, Callable[[Run], Iterable[Row]]] = {
    "attention-7x7": steps.attention("7x7"),
    "attention-14x14": steps.attention("14x14"),
    "attention-7x7-compiled": steps.attention("7x7", compiled=True),
    "attention-14x14-compiled": steps.attention("14x14", compiled=True),
    "attention-7x7-five": steps.attention_five("7x7"),
    "attention-14x14-five": steps.attention_five("14x14"),
    "attention-peer": steps.peer_step,
    "adaptive": steps.other("adaptive"),
    "lstm": steps.other("lstm"),
    "gru": steps.other("gru"),
    "rnn": steps.other("rnn"),
    "memory": steps.memory,
    "beam-attention-7x7": search_rows("attention", "7x7", 49),
    "beam-attention-14x14": search_rows("attention", "14x14", 196),
    "beam-lstm": search_rows("lstm", "", 1),
    "beam-gru": search_rows("gru", "", 1),
    "beam-rnn": search_rows("rnn", "", 1),
    "extraction": input.extraction,
    "feature-batch": input.feature_batch,
    "epochs": input.epochs,
    "scoring": scoring.scoring,
    "comparing": comparing.speed,
    "startup": startup.startup,
    "growth": growth.growth,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="which rows (`beam-*`: all of them); none: all")
    parser.add_argument("--list", action="store_true", help="print the rows' names")
    parser.add_argument("--quick", action="store_true", help="two rounds, less data: does it run?")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way takes its turn")
    parser.add_argument("--threads", type=int, default=0, help="torch's threads; 0: as torch has them")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and the machine's description there")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=DIR", help="where a peer's code is, for rows that run it")
    options = parser.parse_args()
    if options.list:
        print("\n".join(ROWS))
        return
    chosen = [name for name in ROWS if not options.rows or any(fnmatch(name, row) for row in options.rows)]
    if not chosen:
        parser.error(f"no such row; there are {', '.join(ROWS)}")
    if any("=" not in peer for peer in options.peer):
        parser.error("--peer takes NAME=DIR")
    keep_freed_memory()  # for both sides, as in training
    if options.threads:
        torch.set_num_threads(options.threads)
    peers = {name: Path(folder) for name, _, folder in (peer.partition("=") for peer in options.peer)}
    run = Run(torch.device(options.device), 2 if options.quick else options.rounds, options.quick, peers)
    rows: list[Row] = []
    progress = Console(stderr=True)
    for name in chosen:
        began = time.monotonic()
        rows += ROWS[name](run)
        progress.print(f"[dim]{name}: {time.monotonic() - began:.0f} s")
        if options.json:  # after every row: who stops a long run keeps what it has measured
            save(run, rows, options.json)
    show(run, rows)


def save(run: Run, rows: list[Row], file: Path) -> None:
    content = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "machine": machine(run), "rounds": run.rounds}
    content["rows"] = [
        row._asdict() | {"goal": row.goal._asdict(), "floor_ratio": row.floor_ratio, "achieved": row.achieved, "is_met": row.is_met}
        for row in rows
    ]
    file.write_text(json.dumps(content, indent=1) + "\n")


def show(run: Run, rows: list[Row]) -> None:
    about = machine(run)
    title = f"{about['gpu'] or about['cpu']}, {about['threads']} threads, torch {about['torch']}, {run.rounds} rounds"
    table = Table(title=title, caption="times in ms, medians; floor: matrix products alone, at the rate measured in the same rounds")
    for column in ("work", "against"):
        table.add_column(column, overflow="fold")
    for column in ("baseline", "ours", "ratio", "lowest-highest", "floor ratio", "achieved/floor", "goal"):
        table.add_column(column, justify="right")
    for row in rows:
        if row.ratio is not None:
            table.add_row(*cells_of(row))
    console = Console(width=None if Console().is_terminal else 150, highlight=False)
    console.print(table)
    for row in rows:
        if row.note:
            console.print(f"{row.work}, against {row.against}: {row.note}", markup=False)


def cells_of(row: Row) -> list[str]:
    colour = {True: "[green]", False: "[red]", None: ""}[row.is_met]
    times = [f"{seconds * 1000:.1f}" if seconds is not None else "" for seconds in (row.baseline, row.ours)]
    ratios = [f"{colour}{row.ratio:.2f}", "{:.2f}-{:.2f}".format(*row.spread) if row.spread else ""]
    floors = [f"{value:.2f}" if value is not None else "" for value in (row.floor_ratio, row.achieved)]
    return [row.work + ("*" if row.note else ""), row.against, *times, *ratios, *floors, str(row.goal)]


if __name__ == "__main__":
    main()
