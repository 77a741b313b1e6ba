"""The one error a user sees: a sentence that names the key or file, the value and what is allowed."""

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from types import FrameType


class UserError(Exception):
    """Something the user can mend. Entry points print it alone and exit with code 2."""


class WorkerFailure(UserError):
    """A process that reads images has died or hangs. The run itself is whole: it can be saved."""


class Stopped(KeyboardInterrupt):
    """A signal ended the run after a checkpoint. Entry points print it alone and exit with code 75: try again later (EX_TEMPFAIL)."""


class Requeued(SystemExit):
    """A signal ended the process after a checkpoint, and whoever runs it (submitit) will begin it again."""


class MachineError(UserError):
    """A file that cannot be read may be whole: the disk or the memory failed, and another try may succeed."""


class Interrupted(KeyboardInterrupt):
    """By SIGTERM, which ends a program as Ctrl-C does: locks are freed, and processes begun by it are ended."""


def interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn a UserError into one line and exit code 2, an interruption into one and 75 where there is a checkpoint, else 130 (SIGINT) or
    143 (SIGTERM); `CAPTIONING_DEBUG=1` shows the traceback instead."""
    listens = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if listens:
        signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except (UserError, KeyboardInterrupt) as error:
        if os.environ.get("CAPTIONING_DEBUG"):
            raise
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        print(error if isinstance(error, Stopped) else "interrupted", file=sys.stderr)
        sys.exit(75 if isinstance(error, Stopped) else 143 if isinstance(error, Interrupted) else 130)
    finally:
        if listens:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """` (did you mean X?) Allowed: A, B, C.` for the end of a message."""
    options = sorted(allowed)
    close = get_close_matches(word, options, n=1)
    shown = options if len(options) <= 30 else [*get_close_matches(word, options, n=10, cutoff=0.3), "..."]
    return (f" Did you mean {close[0]}?" if close else "") + f" Allowed: {', '.join(shown)}."
