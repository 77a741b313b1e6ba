"""The one error a user sees: a sentence that names the key or file, the value and what is allowed."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


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


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn a UserError into one line and exit code 2, an interruption into one and 75 or 130 (without a checkpoint);
    `CAPTIONING_DEBUG=1` shows the traceback instead."""
    try:
        yield
    except KeyboardInterrupt as error:
        if os.environ.get("CAPTIONING_DEBUG"):
            raise
        print(error if isinstance(error, Stopped) else "interrupted", file=sys.stderr)
        sys.exit(75 if isinstance(error, Stopped) else 130)
    except UserError as error:
        if os.environ.get("CAPTIONING_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """` (did you mean X?) Allowed: A, B, C.` for the end of a message."""
    options = sorted(allowed)
    close = get_close_matches(word, options, n=1)
    shown = options if len(options) <= 30 else [*get_close_matches(word, options, n=10, cutoff=0.3), "..."]
    return (f" Did you mean {close[0]}?" if close else "") + f" Allowed: {', '.join(shown)}."
