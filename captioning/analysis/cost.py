"""What a trained model costs: parameters, operations and milliseconds a caption; what its training cost; and who is beaten by no other."""

import math
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from captioning.data.transforms import Transform
from captioning.data.vocabulary import Vocabulary
from captioning.models.caption_model import CaptionModel
from captioning.search import BOS, Beam, Search, select

SEARCHES = {"greedy": Beam(1), "beam": Beam(3)}
ROUNDS = 9
SECONDS = 40.0  # that all rounds together may take


class Captioner(NamedTuple):
    """A run's model with what it needs from a picture to a caption."""

    model: CaptionModel  # in eval mode
    transform: Transform
    vocabulary: Vocabulary

    def caption(self, picture: Image.Image, search: Search) -> str:
        pixels = self.transform(picture)[None].to(next(self.model.parameters()).device)
        return self.vocabulary.decode(self.model.generate(pixels, search).tokens[0, 0].tolist())


class Cost(NamedTuple):
    parameters: int  # with the encoder's
    trained: int
    flops: float  # a greedy caption of the mean length, from pixels
    training: float | None  # seconds in training steps, mean over seeds
    memory: int | None  # bytes in training, the most over seeds
    greedy: float | None  # seconds an image, one at a time
    beam: float | None  # the same with a beam of 3


def cost_of(captioner: Captioner, words: float, training: Sequence[Mapping[str, Any]]) -> Cost:
    """Without times. words: in a caption, on average. training: the progress of the group's runs. The model must be on the CPU."""
    parameters = list(captioner.model.parameters())
    seconds = [its["seconds"] for its in training if its.get("seconds")]
    memory = [its["peak_memory"] for its in training if its.get("peak_memory")]
    return Cost(
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        flops_a_caption(captioner, words),
        statistics.mean(seconds) if seconds else None,
        max(memory, default=None),
        None,
        None,
    )


@torch.inference_mode()
def flops_a_caption(captioner: Captioner, words: float) -> float:
    """Two for each multiplication with its addition, of matrix products and convolutions, as torch counts them: the encoder and the
    state before the first word once, then a step a word and one for the end. A beam of K takes K times the steps."""
    size = captioner.transform.size
    with counting() as before:
        state = captioner.model.decoder.init_state(captioner.model.encoder(torch.zeros(1, 3, size, size)))
    with counting() as step:
        captioner.model.decoder.step(torch.tensor([BOS]), select(state, torch.tensor([0])))
    return before.get_total_flops() + (words + 1) * step.get_total_flops()


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Counts inside `with`. oneDNN's fused cells would hide their products, and torch has no count of a matrix times a vector."""
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mv: lambda matrix, vector, **_: 2 * math.prod(matrix)})
    with warnings.catch_warnings(action="ignore"), torch.backends.mkldnn.flags(enabled=False), counter:  # it warns of Intel's GPUs
        yield counter


def timed(captioners: Mapping[str, Captioner], pictures: Sequence[Image.Image]) -> dict[str, dict[str, float]]:
    """Median seconds from a picture (read already) to its caption, of each captioner and search.

    Every one takes its turn in every round (A B C A B C), with the same picture, so that what else the machine does falls on all; a first
    round is not counted. Rounds end when they have taken SECONDS, but there are two at least.
    """
    times: dict[str, dict[str, list[float]]] = {name: {search: [] for search in SEARCHES} for name in captioners}
    began = time.perf_counter()
    for number in range(ROUNDS + 1):
        for name, captioner in captioners.items():
            for kind, search in SEARCHES.items():
                start = time.perf_counter()
                captioner.caption(pictures[number % len(pictures)], search)  # a string: nothing is left to wait for
                if number:
                    times[name][kind].append(time.perf_counter() - start)
        if number >= 2 and time.perf_counter() - began > SECONDS:
            break
    return {name: {kind: statistics.median(its) for kind, its in kinds.items()} for name, kinds in times.items()}


def pareto(values: Mapping[str, float], costs: Mapping[str, float]) -> set[str]:
    """Who is beaten by no other: none has a higher value at no higher cost, or as high a value at a lower cost."""
    better = {
        name: [
            other
            for other in values
            if values[other] >= value and costs[other] <= costs[name] and (values[other] > value or costs[other] < costs[name])
        ]
        for name, value in values.items()
    }
    return {name for name, others in better.items() if not others}
