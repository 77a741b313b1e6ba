"""Beam search against one image at a time. The captions are compared before the ratio is given, and counted."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines import BOS, EOS, PAD, plain_of, search_each
from benchmarks.flops import Sizes, flops_of
from benchmarks.material import DIMS, decoder_of, features_of
from benchmarks.measure import Goal, Product, Row, Run, interleaved, row
from captioning.models.decoders.base import Decoder
from captioning.models.features import ImageFeatures
from captioning.search import Beam, Step

MAX_LENGTH = 30
PACE = 1.5  # what each word adds to the logit of <eos>, on both sides: captions of about ten words from random weights
SPREAD = 6.0  # of the logits: a trained model's best word has about half of the probability, and so has theirs
TIMED = 8  # images of the baseline's that are timed; it does one after another, so all take in proportion


class Paced:
    """A step whose <eos> grows likelier from word to word. For one search."""

    def __init__(self, step: Step):
        self.inner, self.length = step, 0

    def __call__(self, token: Tensor, state: Any) -> tuple[Tensor, Any]:
        logits, state = self.inner(token, state)
        self.length += 1
        logits[:, EOS] += PACE * self.length
        return logits, state


@torch.inference_mode()
def search(decoder: Decoder, features: ImageFeatures, beam_size: int) -> list[list[int]]:
    """The best caption of every image."""
    tokens = Beam(beam_size, max_length=MAX_LENGTH)(Paced(decoder.step), decoder.init_state(features)).tokens[:, 0]
    return [[word for word in caption if word != PAD] for caption in tokens.tolist()]


def search_singly(decoder: Decoder, features: ImageFeatures, beam_size: int) -> list[list[int]]:
    """The same, image after image: a service without batches."""
    singles = [ImageFeatures(*(part[row : row + 1] for part in features)) for row in range(len(features.pooled))]
    return [caption for single in singles for caption in search(decoder, single, beam_size)]


@torch.no_grad()
def opinionated(name: str, features: ImageFeatures, **sizes: Any) -> Decoder:
    """A decoder with random weights whose logits are as sharp as a trained one's."""
    decoder = decoder_of(name, features.pooled.device, **sizes).eval()
    first = torch.full((len(features.pooled),), BOS, device=features.pooled.device)
    logits, _ = decoder.step(first, decoder.init_state(features))
    decoder.words.out.weight.mul_(SPREAD / logits.std())
    return decoder


def search_rows(name: str, grid: str, cells: int) -> Callable[[Run], Iterator[Row]]:
    one_image = {"14x14": 12, "7x7": 8}.get(grid)

    def rows(run: Run) -> Iterator[Row]:
        features = ImageFeatures(*(part.to(run.device) for part in features_of(8 if run.quick else 32, cells)))
        few = ImageFeatures(*(part[:TIMED] for part in features))
        decoder = opinionated(name, features)
        plain = plain_of(decoder)
        against = f"{'sgrvinod' if name == 'attention' else 'yunjey'}'s way, one image at a time"
        for beam_size in (3, 5):
            theirs = search_each(plain, features, beam_size, MAX_LENGTH, PACE)
            share = TIMED / len(theirs)
            product = Product(run, "fp32")
            ways = {
                "baseline": lambda K=beam_size: search_each(plain, few, K, MAX_LENGTH, PACE),
                "batch": lambda K=beam_size: search(decoder, features, K),
                "single": lambda K=beam_size: search_singly(decoder, few, K),
            }
            found = {"batch": search(decoder, features, beam_size), "single": search_singly(decoder, features, beam_size)}
            times = interleaved(run, {**ways, "product": product})
            words = beam_size * sum(map(len, theirs))  # what the best captions ask for; a beam may go on longer
            floor = product.seconds_of(flops_of(decoder, DIMS, Sizes(len(features.grid), cells, words)).forward, times["product"])
            length = sum(map(len, theirs)) / len(theirs) - 1
            for way, what in {"batch": f"b{len(theirs)}", "single": "one image"}.items():
                same = sum(a == b for a, b in zip(theirs, found[way]))
                note = f"{same} of {len(theirs)} captions equal, {length:.1f} words long"
                goal = Goal(32 if way == "batch" and one_image else one_image if way == "single" else None)
                work = f"beam {beam_size}, {name}{f' {grid}' if grid else ''}, {what}"
                if same < len(theirs) - 1:  # one may turn on a rounding
                    yield Row(work, against, goal=goal, note=f"no ratio: {note}")
                elif way == "batch":
                    plainly = [seconds / share for seconds in times["baseline"]]
                    yield row(work, against, plainly, times[way], floor=floor, goal=goal, note=note)
                else:
                    yield row(work, against, *([s / TIMED for s in times[way]] for way in ("baseline", way)), goal=goal, note=note)

    return rows
