"""Data workers that die or hang: which of them, and at which picture. A run is told in one sentence, and never waits for them."""

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from captioning.errors import UserError, WorkerFailure

PATIENCE = 20.0  # seconds that a worker may be at one picture; a batch of slow ones may take as long as it likes
LOOK = 1.0  # seconds between two looks at the workers
LESS = "give fewer data.workers or a smaller data.batch_size"


class Line(ctypes.Structure):
    """What a worker writes where its parent can read it, whatever becomes of it."""

    _fields_ = [("beats", ctypes.c_uint64), ("is_busy", ctypes.c_bool), ("picture", ctypes.c_char * 4096)]


mine = Line()  # in a worker: its line on the board


def begin(picture: Path | str) -> None:
    """Called before a picture is read, and before it is transformed."""
    mine.picture = os.fsencode(picture)[-4095:]
    mine.beats += 1


class Careful(Dataset):
    """The items, as a worker gives them: busy while it reads, and with an error of the user's as a value, for a worker process would wrap
    it in its traceback."""

    def __init__(self, items: Any):
        self.items = items

    def __getitems__(self, keys: Sequence) -> Any:
        begin("")
        mine.is_busy = True
        try:
            given = self.items.__getitems__(keys)
            share(given)
        except UserError as error:
            given = error
        except MemoryError:
            given = WorkerFailure(f"{myself()} found no more memory: {LESS}")
        except Exception:
            mine.is_busy = False
            raise
        mine.is_busy = False  # not where the process itself is about to end
        return given


def share(batch: Any) -> None:
    """Put its tensors where the parent sees them. Left to torch, a thread does it: where that fails, the batch is lost without a word."""
    parts = batch if isinstance(batch, tuple) else [batch]
    try:
        for tensor in (part for part in parts if isinstance(part, Tensor)):
            tensor.share_memory_()
    except RuntimeError:
        full = "found no room in the shared memory (df -h /dev/shm): allow more of it, or"
        raise WorkerFailure(f"{myself()} {full} {LESS}") from None


def myself() -> str:
    worker = get_worker_info()
    return f"data worker {worker.id if worker else 0} (pid {os.getpid()})"


def read_by_workers(items: Any, keys: Sequence[Sequence], workers: int) -> Iterator[Any]:
    """One batch for each list of keys, read in worker processes. Raises WorkerFailure where one of them died, or hangs."""
    board = multiprocessing.RawArray(Line, workers)
    for line in board:
        line.is_busy, line.picture = True, b"its start"
    batches = DataLoader(
        Careful(items),
        batch_sampler=keys,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=as_it_is,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=partial(settle, board),
    )
    batches.check_worker_number_rationality()
    before = signal.getsignal(signal.SIGCHLD)
    iterator = Batches(batches)
    if threading.current_thread() is threading.main_thread():
        # torch's handler would raise wherever this process is, in the middle of a step or of a save
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    watch = Watch(iterator._workers, board)
    try:
        while True:
            watch.is_awaited = True
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except Exception:
                if not watch.failed():
                    raise
                break  # and raise there, where torch's error no longer holds the iterator
            watch.is_awaited = False
            yield batch
    finally:
        watch.close()
        del iterator  # torch ends the workers, by SIGTERM in the end: a stopped one is deaf to it, and would be waited for at exit
        watch.kill()
        watch.join()
    raise WorkerFailure(watch.reason)


class Batches(_MultiProcessingDataLoaderIter):
    """Torch's, which looks for dead workers every 5 seconds: too seldom for a process that has been told to save and end."""

    def _try_get_data(self, timeout: float = LOOK) -> Any:
        return super()._try_get_data(LOOK)


def as_it_is(batch: Any) -> Any:
    return batch


def settle(board: Any, number: int) -> None:
    """In a worker, at its start. What interrupts a whole group of processes is for the parent: it ends its step and saves."""
    global mine
    mine = board[number]
    mine.is_busy = False
    for signum in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)


class Watch:
    """A thread that looks at the workers. One that hangs it kills: what a dead one had, its parent no longer waits for."""

    def __init__(self, workers: Sequence[Any], board: Any):
        self.workers, self.board = workers, board
        self.is_awaited, self.reason = False, ""
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True, name="watch over data workers")
        self.thread.start()

    def close(self) -> None:
        self.over.set()
        self.thread.join()

    def look(self) -> None:
        """Time is counted in looks, for a process that is stopped and goes on, or a machine that sleeps, has not waited all that time."""
        beats, stuck, idle, last = [0] * len(self.workers), [0.0] * len(self.workers), 0.0, time.monotonic()
        while not self.over.wait(LOOK):
            now = time.monotonic()
            passed, last = min(now - last, 2 * LOOK), now
            new = [line.beats for line in self.board]
            idle = 0.0 if new != beats or not self.is_awaited or any(line.is_busy for line in self.board) else idle + passed
            for number, worker in enumerate(self.workers):
                is_held = self.board[number].is_busy or is_stopped(worker.pid)
                stuck[number] = stuck[number] + passed if is_held and new[number] == beats[number] else 0.0
                if stuck[number] > PATIENCE and worker.is_alive():
                    return self.end(self.hung(number))
            if idle > PATIENCE and all(worker.is_alive() for worker in self.workers):
                return self.end(
                    f"the data workers have nothing left to do, and yet no batch has come for {idle:.0f} s: is the shared memory full "
                    f"(df -h /dev/shm)? Allow more of it, or {LESS}"
                )
            beats = new

    def end(self, reason: str) -> None:
        self.reason = reason
        self.kill()

    def kill(self) -> None:
        for worker in self.workers:
            worker.kill()

    def join(self) -> None:
        for worker in self.workers:
            worker.join(LOOK)  # a read that not even SIGKILL ends is left to the system

    def failed(self) -> bool:
        """Whether it is for a worker's sake that there is no batch. Then none of them is left."""
        self.close()
        if not self.reason:
            dying = wait([worker.sentinel for worker in self.workers], timeout=LOOK)  # its pipe may have ended before it
            ended = [number for number, worker in enumerate(self.workers) if worker.sentinel in dying]
            if not ended:
                return False
            self.workers[ended[0]].join(LOOK)
            self.end(self.died(ended[0]))
        self.join()
        return True

    def name(self, number: int) -> str:
        return f"data worker {number} (pid {self.workers[number].pid})"

    def place(self, number: int) -> str:
        line = self.board[number]
        return line.picture.decode(errors="replace") if line.is_busy else ""

    def hung(self, number: int) -> str:
        where = self.place(number)
        if is_stopped(self.workers[number].pid):
            return f"{self.name(number)} was stopped by a signal{f', at {where}' if where else ''}, and did not go on for {PATIENCE:.0f} s"
        return (
            f"{self.name(number)} hangs: it has been at {where or 'no picture'} for more than {PATIENCE:.0f} s; "
            "does its disk or network drive still answer?"
        )

    def died(self, number: int) -> str:
        code, where = self.workers[number].exitcode, self.place(number)
        at = f", at {where}" if where else ""
        if code >= 0:
            return f"{self.name(number)} ended{at}, with exit code {code}"
        what = {
            signal.SIGKILL: f"was killed (signal 9){at}, often for want of memory: {LESS}",
            signal.SIGBUS: f"was ended by a bus error{at}, often for want of shared memory (df -h /dev/shm): allow more of it, or {LESS}",
        }
        return f"{self.name(number)} {what.get(-code, f'was ended by signal {-code} ({signal.strsignal(-code)}){at}')}"


def is_stopped(pid: int) -> bool:
    """By SIGSTOP, say. Looks without reaping."""
    try:
        found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
    except (ChildProcessError, AttributeError):  # it is dead; or macOS before Python 3.13
        return False
    return found is not None
