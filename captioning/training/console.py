"""Progress for people: a bar in a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 20


class Advance(Protocol):
    def __call__(self, amount: int = 1, note: str = "") -> None: ...


def say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def progress(title: str, total: int, start: int = 0, visible: bool = True) -> Iterator[Advance]:
    """`with progress("epoch 1", 100) as advance: advance(1, "loss 3.2")`."""
    if not visible:
        yield lambda amount=1, note="": None
    elif sys.stdout.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(), transient=True) as bar:
            task = bar.add_task(title, total=total, completed=start, note="")

            def advance(amount: int = 1, note: str = "") -> None:
                bar.update(task, advance=amount)
                if note:
                    bar.update(task, note=note)

            yield advance
    else:
        done, last, begun = start, time.monotonic(), time.monotonic()

        def advance_line(amount: int = 1, note: str = "") -> None:
            nonlocal done, last
            done += amount
            now = time.monotonic()
            if now - last >= SECONDS_BETWEEN_LINES:
                last = now
                remaining = (now - begun) / max(1, done - start) * (total - done)
                say(f"{title}: {done}/{total}, {remaining:.0f} s to go{', ' + note if note else ''}")

        yield advance_line
