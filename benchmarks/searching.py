"""Beam search against one image at a time. The captions are compared before the ratio is given, and counted."""

from collections.abc import Callable, Iterator

import torch

from benchmarks.baselines import EOS, PAD, plain_of, search_each
from benchmarks.flops import Sizes, flops_of
from benchmarks.material import DIMS, decoder_of, features_of
from benchmarks.measure import Goal, Product, Row, Run, interleaved, row
from captioning.models.decoders.base import Decoder
from captioning.models.features import ImageFeatures
from captioning.search import Beam

MAX_LENGTH = 30
WORDS = 10  # of a caption, about


@torch.inference_mode()
def search(decoder: Decoder, features: ImageFeatures, beam_size: int) -> list[list[int]]:
    """The best caption of every image."""
    tokens = Beam(beam_size, max_length=MAX_LENGTH)(decoder.step, decoder.init_state(features)).tokens[:, 0]
    return [[word for word in caption if word != PAD] for caption in tokens.tolist()]


def search_singly(decoder: Decoder, features: ImageFeatures, beam_size: int) -> list[list[int]]:
    """The same, image after image: a service without batches."""
    singles = [ImageFeatures(*(part[row : row + 1] for part in features)) for row in range(len(features.pooled))]
    return [caption for single in singles for caption in search(decoder, single, beam_size)]


def talkative(name: str, features: ImageFeatures, device: torch.device) -> Decoder:
    """A decoder with random weights, its logits sharpened, whose captions have about `WORDS` words: the bias of <eos> is set so."""
    decoder = decoder_of(name, device).eval()
    some = ImageFeatures(*(part[:16] for part in features))
    with torch.no_grad():
        for parameter in (decoder.words.out.weight, decoder.words.vectors.weight):
            parameter.mul_(4)
        low, high = -10.0, 30.0
        for _ in range(9):
            decoder.words.out.bias[EOS] = (low + high) / 2
            captions = search(decoder, some, 3)
            longer = sum(map(len, captions)) > (WORDS + 1) * len(captions)
            low, high = ((low + high) / 2, high) if longer else (low, (low + high) / 2)
    return decoder


def search_rows(name: str, grid: str, cells: int) -> Callable[[Run], Iterator[Row]]:
    one_image = {"14x14": 12, "7x7": 8}.get(grid)

    def rows(run: Run) -> Iterator[Row]:
        features = ImageFeatures(*(part.to(run.device) for part in features_of(8 if run.quick else 32, cells)))
        decoder = talkative(name, features, run.device)
        plain = plain_of(decoder)
        against = f"{'sgrvinod' if name == 'attention' else 'yunjey'}'s way, one image at a time"
        for beam_size in (3, 5):
            theirs = search_each(plain, features, beam_size, MAX_LENGTH)
            product = Product(run, "fp32")
            ways = {
                "baseline": lambda K=beam_size: search_each(plain, features, K, MAX_LENGTH),
                "batch": lambda K=beam_size: search(decoder, features, K),
                "single": lambda K=beam_size: search_singly(decoder, features, K),
            }
            found = {"batch": search(decoder, features, beam_size), "single": search_singly(decoder, features, beam_size)}
            times = interleaved(run, {**ways, "product": product})
            words = beam_size * sum(map(len, theirs))  # what the best captions ask for; a beam may go on longer
            floor = product.seconds_of(flops_of(decoder, DIMS, Sizes(len(features.grid), cells, words)).forward, times["product"])
            for way, what in {"batch": f"b{len(theirs)}", "single": "one image"}.items():
                same = sum(a == b for a, b in zip(theirs, found[way]))
                length = sum(map(len, theirs)) / len(theirs) - 1
                note = f"{same} of {len(theirs)} captions equal, {length:.1f} words long"
                goal = Goal(32 if way == "batch" and one_image else one_image if way == "single" else None)
                work = f"beam {beam_size}, {name}{f' {grid}' if grid else ''}, {what}"
                if same < len(theirs) - 1:  # one may turn on a rounding
                    yield Row(work, against, goal=goal, note=f"no ratio: {note}")
                else:
                    yield row(work, against, times["baseline"], times[way], floor=floor, goal=goal, note=note)

    return rows
