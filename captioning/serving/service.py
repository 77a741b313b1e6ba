"""One picture in, its descriptions out, in time or with a reason: who is let in, who reads, who waits, and how the model is."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
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
BEAM_SIZES, LENGTHS = 10, 50  # at most


@dataclass(frozen=True)
class Limits:
    """deadline: seconds from a request's arrival to its answer. queue: pictures in the house at once, from their arrival to their answer.
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
        self.bytes_inside = 0
        size = captioner.transform.size
        probe = captioner.prepare(Image.new("RGB", (size, size), "grey"))
        most = Asked(BEAM_SIZES, LENGTHS, BEAM_SIZES, looks=captioner.attends)
        self.batcher = Batcher(captioner, (probe, [most, Asked()]), most=limits.batch)

    # How it is

    @property
    def patience(self) -> float:
        """Seconds after which a batch is said to hang."""
        return max(1.0, 5 * self.batcher.slowest)

    @property
    def stalled_for(self) -> float:
        """Seconds that the model's batch has taken."""
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
        ahead = self.inside * self.batcher.seconds_each  # seconds of work
        if self.inside + pictures > self.limits.queue or ahead > 0.5 * self.limits.deadline:
            return Problem("overloaded", "too many pictures are waiting already", retry_after=max(1, math.ceil(ahead)))
        return None

    def enter(self, pictures: int) -> None:
        """Raises Problem where there is no room; else `leave` must follow."""
        if problem := self.refusal(pictures):
            raise problem
        self.inside += pictures

    def leave(self, pictures: int) -> None:
        self.inside -= pictures

    # What is done

    async def describe(self, content: bytes, asked: Asked, deadline: float, shows: bool = False) -> Described:
        """deadline: of time.monotonic(). shows: with what the model saw. Raises Problem. Cancelled, it lets go of the picture."""
        loop = asyncio.get_running_loop()
        began = time.monotonic()
        pixels, frame, seen = await loop.run_in_executor(self.readers, self.read, content, deadline, shows)
        waiting = Waiting(pixels, asked, deadline)
        self.batcher.put(waiting)
        answer = asyncio.wrap_future(waiting.answer)
        try:
            candidates = await asyncio.wait_for(answer, max(0.001, deadline - time.monotonic()))
        except TimeoutError:
            raise Problem("deadline", "there was no time left to describe it") from None
        return Described(candidates, frame, seen, waiting.begun - began, time.monotonic() - waiting.begun)

    def read(self, content: bytes, deadline: float, shows: bool) -> tuple[Tensor, Frame, Image.Image | None]:
        """In one of the readers' threads."""
        if time.monotonic() > deadline:
            raise Problem("deadline", "there was no time left to read it")
        try:
            image = self.captioner.read(content)
            transform = self.captioner.transform
            return self.captioner.prepare(image), transform.frame(*image.size), transform.picture(image) if shows else None
        except MachineError:
            raise Problem("overloaded", "there is no memory left to read the image", retry_after=1) from None
        except UserError as error:
            raise Problem("image_unreadable", str(error).removeprefix("the image: ")) from None

    # What looks after it

    async def watch(self, end: Callable[[str], None]) -> None:
        """A dead thread is begun again; where the model hangs or fails for longer than a deadline, `end(reason)` ends the process."""
        failing_since, deaths = time.monotonic(), 0
        while True:
            await asyncio.sleep(0.2)
            state = self.state
            if state not in ("failing", "starting") or self.stalled_for > 0.5:  # a first batch may take long, a failing one does not
                failing_since = time.monotonic()
            if state == "dead" and deaths < 3:
                deaths += 1
                self.batcher.fails = True
                self.batcher.busy_since = None
                self.batcher.abandon(Problem("model_failed", "the model came to grief"))
                self.batcher.thread = self.batcher.begin()
            elif state == "dead":
                self.give_up(end, "the model's thread died again and again")
            elif self.batcher.is_warm and self.stalled_for > max(self.limits.deadline, 2 * self.patience):
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
    """What one request's body takes of the memory for all bodies, until the request is over."""

    def __init__(self, service: Service):
        self.service, self.taken = service, 0

    def __enter__(self) -> "Room":
        return self

    def take(self, count: int) -> None:
        self.taken += count
        self.service.bytes_inside += count
        if self.service.bytes_inside > BYTES_INSIDE:
            raise Problem("overloaded", "too much is being sent already", retry_after=2)

    def __exit__(self, *error: object) -> None:
        self.service.bytes_inside -= self.taken
