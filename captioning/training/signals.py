"""Signals that ask a run to end: it does so after its step, with a checkpoint, and the same command goes on."""

import signal
import threading
from types import FrameType
from typing import Any

from captioning.errors import Requeued, Stopped, interrupt

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")  # Ctrl-C; schedulers; Slurm's --signal; submitit


class Signals:
    """Inside this block they are noted, not obeyed. A second SIGINT ends the process at once.

    What handled a signal before, submitit's requeueing say, is asked once the checkpoint is there; a signal that was ignored (nohup)
    stays so. Python lets only the main thread listen: elsewhere nothing is noted.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
                handler = signal.getsignal(number)
                if handler not in (signal.SIG_IGN, None):
                    self.before[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)

    def obey(self, where: str) -> None:
        """Raises Stopped, naming where the run is; or leaves it to whoever handled the signal before, who may end the process for its
        next start (Requeued), or let the run go on."""
        numbers, self.received = self.received or [int(signal.SIGTERM)], []  # none: another rank has received it
        for number in numbers:
            handler = self.before.get(number)
            if not callable(handler) or handler in (signal.default_int_handler, interrupt):
                raise Stopped(f"stopped by {signal.Signals(number).name} {where}; the same command goes on")
            try:
                handler(number, None)
            except SystemExit as left:
                raise Requeued(left.code) from None
