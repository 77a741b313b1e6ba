"""One picture in, its descriptions out, in time or with a reason: who is let in, who reads, who waits, and how the model is."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from captioning.data.transforms import Frame
from captioning.errors import MachineError, UserError
from captioning.kinds import Count, Positive
from captioning.serving.batching import Batcher, Waiting
from captioning.serving.captioner import Asked, Candidate, Captioner
from captioning.serving.problems import Problem

Download = Callable[[str], Awaitable[bytes]]
READERS = 2  # threads that decode pictures
BYTES_INSIDE = 2**28  # of bodies, all together
WARMING = 120.0  # seconds without a sign of life of a model that has not described anything yet
BEAM_SIZES, LENGTHS = 10, 50  # at most


@dataclass(frozen=True)
class Limits:
    """deadline: seconds from the last byte of a request to its answer; a URL is downloaded before. queue: pictures in the house at once.
    batch: pictures described at once. images: of one request. megabytes: MiB of a request's body."""

    deadline: Positive = 10.0
    queue: Count = 128
    batch: Count = 32
    images: Count = 16
    megabytes: Count = 10

    @property
    def bytes(self) -> int:
        return self.megabytes * 2**20


class Described(NamedTuple):
    candidates: list[Candidate]
    frame: Frame
    seen: Image.Image | None  # the same, as a picture, where it was asked for
    waited: float  # seconds, until the model began
    worked: float  # seconds of its batch


class Service:
    """download: how a picture's URL becomes bytes; None where that is off."""

    def __init__(self, captioner: Captioner, limits: Limits, download: Download | None = None):
        self.captioner, self.limits, self.download = captioner, limits, download
        self.readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
        self.inside = 0  # pictures
        self.unread = 0  # of them, those that are not decoded yet
        self.seconds_read = 0.0  # a moving mean of a picture's decoding
        self.bytes_inside = 0
        size = captioner.transform.size
        probe = captioner.prepare(Image.new("RGB", (size, size), "grey"))
        most = Asked(BEAM_SIZES, LENGTHS, BEAM_SIZES, looks=captioner.attends)
        self.batcher = Batcher(captioner, (probe, [most, Asked()]), most=limits.batch)
        captioner.beat = self.batcher.beat

    # How it is

    @property
    def patience(self) -> float:
        """Seconds without a sign of life after which the model is said to hang."""
        return max(0.8, 4 * self.batcher.slowest)

    @property
    def stalled_for(self) -> float:
        """Seconds since the last sign of life of a model at work."""
        since = self.batcher.busy_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def state(self) -> str:
        if not self.batcher.thread.is_alive():
            return "dead"
        if self.batcher.fails:
            return "failing" if self.batcher.is_warm else "starting"
        return "stalled" if self.stalled_for > self.patience else "ready"

    # Who is let in

    def refusal(self, pictures: int) -> Problem | None:
        """Why so many more may not come in."""
        if self.state != "ready":
            return Problem("not_ready", "the model is not working just now", retry_after=2)
        ahead = self.inside * self.batcher.seconds_each + self.unread * self.seconds_read / READERS  # seconds of work
        if self.inside + pictures > self.limits.queue or ahead > 0.5 * self.limits.deadline:
            return Problem("overloaded", "too many pictures are waiting already", retry_after=max(1, math.ceil(ahead)))
        return None

    # What is done

    async def describe(
        self, content: bytes, asked: Asked, deadline: float, turn: AbstractAsyncContextManager, shows: bool = False
    ) -> Described:
        """deadline: of time.monotonic(). turn: one request's pictures are decoded one after the other, so that it does not hold all
        readers. shows: with what the model saw. Raises Problem. Cancelled, it lets go of the picture."""
        loop, began, is_read = asyncio.get_running_loop(), time.monotonic(), False
        self.unread += 1
        try:
            async with asyncio.timeout(deadline - began):
                async with turn:
                    pixels, frame, seen = await loop.run_in_executor(self.readers, self.read, content, deadline, shows)
                self.unread, is_read = self.unread - 1, True
                waiting = Waiting(pixels, asked, deadline)
                self.batcher.put(waiting)
                candidates = await asyncio.wrap_future(waiting.answer)
        except TimeoutError:
            raise Problem("deadline", "there was no time left to describe it") from None
        finally:
            self.unread -= not is_read
        return Described(candidates, frame, seen, waiting.begun - began, time.monotonic() - waiting.begun)

    def read(self, content: bytes, deadline: float, shows: bool) -> tuple[Tensor, Frame, Image.Image | None]:
        """In one of the readers' threads."""
        if (began := time.monotonic()) > deadline:
            raise Problem("deadline", "there was no time left to read it")
        try:
            image = self.captioner.read(content)
            transform = self.captioner.transform
            return self.captioner.prepare(image), transform.frame(*image.size), transform.picture(image) if shows else None
        except MachineError:
            raise Problem("overloaded", "there is no memory left to read the image", retry_after=1) from None
        except UserError as error:
            raise Problem("image_unreadable", str(error).removeprefix("the image: ")) from None
        finally:
            self.seconds_read += 0.2 * (time.monotonic() - began - self.seconds_read)

    # What looks after it

    async def watch(self, end: Callable[[str], None]) -> None:
        """A dead thread is begun again, three times; where the model hangs for longer than a deadline, or fails for six, `end(reason)` ends
        the process."""
        failing_since, deaths = time.monotonic(), 0
        while True:
            await asyncio.sleep(0.2)
            state = self.state
            if state not in ("failing", "starting") or self.batcher.busy_since:  # at work: a first batch may take long
                failing_since = time.monotonic()
            if state == "dead" and deaths < 3:
                deaths += 1
                self.batcher.fails = True
                self.batcher.busy_since = None
                self.batcher.abandon(Problem("model_failed", "the model came to grief"))
                self.batcher.thread = self.batcher.begin()
            elif state == "dead":
                self.give_up(end, "the model's thread died again and again")
            elif self.stalled_for > (max(self.limits.deadline, 2 * self.patience) if self.batcher.is_warm else WARMING):
                self.give_up(end, f"the model hangs for {self.stalled_for:.0f} s")
            elif time.monotonic() - failing_since > 6 * self.limits.deadline:
                self.give_up(end, "the model fails on everything")

    def give_up(self, end: Callable[[str], None], reason: str) -> None:
        self.batcher.abandon(Problem("not_ready", "the model is not working just now", retry_after=5))
        end(reason)

    def close(self) -> None:
        self.batcher.close()
        self.readers.shutdown(wait=False, cancel_futures=True)
        self.batcher.thread.join(self.limits.deadline)


class Room:
    """What one request takes, until it is over: of the memory for all bodies, and of the places for pictures."""

    def __init__(self, service: Service):
        self.service, self.taken, self.pictures = service, 0, 0

    def __enter__(self) -> "Room":
        return self

    def enter(self, pictures: int) -> None:
        """With so many pictures in all. Raises Problem where there is no room for them."""
        more = pictures - self.pictures
        if problem := self.service.refusal(more):
            raise problem
        self.service.inside += more
        self.pictures = pictures

    def take(self, count: int) -> None:
        self.taken += count
        self.service.bytes_inside += count
        if self.service.bytes_inside > BYTES_INSIDE:
            raise Problem("overloaded", "too much is being sent already", retry_after=2)

    def __exit__(self, *error: object) -> None:
        self.service.bytes_inside -= self.taken
        self.service.inside -= self.pictures
