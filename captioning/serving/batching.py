"""Pictures that wait for the model, and the one thread that describes them in batches. Knows nothing of HTTP."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from captioning.serving.problems import Problem

logger = logging.getLogger("captioning.serve")
Describe = Callable[[Sequence[Any], Any], list[Any]]
"""(prepared pictures, what is asked of them) -> an answer each, in one call."""


@dataclass(eq=False)
class Waiting:
    picture: Any
    asked: Any
    deadline: float  # of time.monotonic()
    answer: Future = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)
    begun: float = 0.0


class Batcher:
    """One thread describes what waits: the oldest, with all others of which the same is asked, up to `most` at once.

    wait: seconds that a picture may wait for company, where the thread is free. A batch that fails is done again one by one, so that
    one poisoned picture fails alone. Where the model fails on everything, the probe tells: until it is described, nothing else is.

    probe: a picture, with what may be asked of it: the most first, the usual last. Full batches of it are described before all others.
    """

    def __init__(self, describe: Describe, probe: tuple[Any, Sequence[Any]], *, most: int = 32, wait: float = 0.003):
        self.describe, self.probe, self.most, self.wait = describe, probe, most, wait
        self.queue: deque[Waiting] = deque()
        self.changed = threading.Condition()
        self.doing: list[Waiting] = []
        self.busy_since: float | None = None  # a beat, or the beginning of a batch
        self.slowest = 0.0  # seconds between two beats
        self.seconds_each = 0.0  # a moving mean of seconds a picture, in batches as they come
        self.fails = True  # until the probe was described
        self.is_warm = False
        self.closing = False
        self.on_batch: Callable[[int, float], None] = lambda pictures, seconds: None
        self.thread = self.begin()

    def begin(self) -> threading.Thread:
        thread = threading.Thread(target=self.work, name="model", daemon=True)
        thread.start()
        return thread

    def put(self, waiting: Waiting) -> None:
        with self.changed:
            if self.closing:
                raise Problem("not_ready", "the service is ending")
            self.queue.append(waiting)
            self.changed.notify()

    def close(self) -> None:
        """The thread ends after what it is doing."""
        with self.changed:
            self.closing = True
            self.changed.notify()

    def work(self) -> None:
        for asked in self.probe[1]:
            self.seconds_each = 0.0
            self.heal(self.most, asked)
        self.fails, self.is_warm = False, True
        while batch := self.take():
            self.doing = batch
            if not self.run(batch):  # on one bad picture, or on everything?
                self.heal(1, self.probe[1][-1])
                self.fails = False
            self.doing = []

    def heal(self, pictures: int, asked: Any) -> None:
        """Describe so many probes until that works."""
        while not self.closing:
            try:
                self.timed([self.probe[0]] * pictures, asked)
                return
            except Exception:
                self.fails = True
                logger.exception("the model fails on the probe")
                time.sleep(0.5)

    def take(self) -> list[Waiting]:
        """The next batch; nothing at the end. Those whose time is over, or who have left, are not in it."""
        with self.changed:
            while True:
                self.let_go()
                if self.queue:
                    first = self.queue[0]
                    batch = [its for its in self.queue if its.asked == first.asked][: self.most]
                    left = first.since + self.wait - time.monotonic()
                    if len(batch) == self.most or left <= 0 or self.closing:
                        chosen = set(map(id, batch))
                        self.queue = deque(its for its in self.queue if id(its) not in chosen)
                        return batch
                    self.changed.wait(left)
                elif self.closing:
                    return []
                else:
                    self.changed.wait()

    def let_go(self) -> None:
        now = time.monotonic()
        for its in self.queue:
            if its.deadline <= now:
                settle(its, Problem("deadline", "there was no time left to describe it"))
        if any(its.answer.done() for its in self.queue):
            self.queue = deque(its for its in self.queue if not its.answer.done())

    def run(self, batch: list[Waiting]) -> bool:
        """Whether it could be done for any."""
        for its in batch:
            its.begun = time.monotonic()
        try:
            answers: list[Any] = self.timed([its.picture for its in batch], batch[0].asked)
        except Exception:
            logger.exception("a batch of %d failed", len(batch))
            answers = [self.alone(its) for its in batch] if len(batch) > 1 else [failed()]
        for its, answer in zip(batch, answers):
            settle(its, answer)
        return not all(isinstance(answer, Problem) for answer in answers)

    def alone(self, waiting: Waiting) -> Any:
        try:
            return self.timed([waiting.picture], waiting.asked)[0]
        except Exception:
            return failed()

    def timed(self, pictures: list[Any], asked: Any) -> list[Any]:
        self.busy_since = began = time.monotonic()
        try:
            answers = self.describe(pictures, asked)
        finally:
            self.beat()
            self.busy_since = None
        seconds = time.monotonic() - began
        each = seconds / len(pictures)
        self.seconds_each = 0.8 * self.seconds_each + 0.2 * each if self.seconds_each else each
        self.on_batch(len(pictures), seconds)
        return answers

    def beat(self) -> None:
        """The work goes on."""
        now = time.monotonic()
        if self.busy_since is not None:
            self.slowest = max(self.slowest, now - self.busy_since)
            self.busy_since = now

    def abandon(self, problem: Problem) -> None:
        """Everybody who waits, or is being described, is told so."""
        with self.changed:
            waiting, self.queue = [*self.doing, *self.queue], deque()
        for its in waiting:
            settle(its, problem)


def failed() -> Problem:
    return Problem("model_failed", "the model cannot describe this image")


def settle(waiting: Waiting, answer: Any) -> None:
    """An answer once: whoever has left, or was told something else before, is told nothing."""
    if waiting.answer.done():
        return
    try:
        if isinstance(answer, Problem):
            waiting.answer.set_exception(answer)
        else:
            waiting.answer.set_result(answer)
    except InvalidStateError:
        pass  # it left just now
