"""How cost grows: twice the captions, the vocabulary, the beam, the images. Ratios here are after/before; goals are bounds."""

import statistics
from collections.abc import Iterator

from benchmarks.material import DIMS, Material, V, all_lengths, batch_of, decoder_of, features_of, grouped_batches, on, tokens_of
from benchmarks.measure import Goal, LargestTensor, Row, Run, interleaved, peak_memory, row
from benchmarks.searching import opinionated, search, search_singly
from benchmarks.steps import our_step
from captioning.data.sampler import batches
from captioning.models.features import ImageFeatures


def batching(run: Run) -> Iterator[Row]:
    """What the sampler's batches cost, from lengths alone."""
    epoch = grouped_batches(64)
    steps = [max(batch) + 1 for batch in epoch]  # a step a word, and one for <eos>
    words = sum(sum(batch) + len(batch) for batch in epoch)
    padding = 1 - words / (64 * sum(steps))
    mean = words / (64 * len(epoch))
    yield Row("share of padding, b64", "random batches: about .48", ratio=padding, goal=Goal(most=0.05))
    yield Row("time steps a batch / mean length, b64", "random batches: about 2", ratio=statistics.mean(steps) / mean, goal=Goal(most=1.15))
    lengths = (all_lengths() * 2)[:30_000]
    counts = (1_000, 30_000)
    times = interleaved(run, {str(n): lambda n=n: batches(lengths[:n], 64, seed=0, epoch=0) for n in counts})
    few, many = ([seconds / n for seconds in times[str(n)]] for n in counts)
    yield grown("making batches, a caption, of 30,000 captions", "of 1,000 captions", few, many, Goal())


def grown(work: str, against: str, before: list[float], after: list[float], goal: Goal) -> Row:
    made = row(work, against, before, after, goal=goal)
    assert made.ratio and made.spread
    return made._replace(ratio=1 / made.ratio, spread=(1 / made.spread[1], 1 / made.spread[0]))


def captions(run: Run) -> Iterator[Row]:
    """Time a caption over an epoch of 1,000 and of 30,000 captions: some of their batches, taken evenly over their lengths; and with one
    caption of 37 words in either."""
    decoder = decoder_of("lstm", run.device)
    ways, counts = {}, {}
    for total in (1_000, 30_000):
        lengths = (all_lengths() * 2)[:total]
        longest = sorted(
            [[lengths[index] for index in batch] for batch in batches(lengths, 64, seed=0, epoch=0) if len(batch) == 64], key=max
        )
        chosen = [longest[int((place + 0.5) * len(longest) / 5)] for place in range(5)]
        steps = [our_step(decoder, on(run.device, Material(features_of(64, 1), tokens_of(its)))) for its in chosen]
        ways[str(total)] = lambda steps=steps: [step() for step in steps]
        counts[str(total)] = sum(map(len, chosen))
    times = interleaved(run, ways)
    few, many = ([seconds / counts[name] for seconds in times[name]] for name in ways)
    yield grown("lstm step a caption, of 30,000 captions", "of 1,000 captions", few, many, Goal(most=1.05))


def vocabulary(run: Run) -> Iterator[Row]:
    for name, cells in (("attention", 49), ("lstm", 1)):
        ways = {str(size): our_step(decoder_of(name, run.device, vocabulary=size), batch_of(64, cells, run.device)) for size in (V, 2 * V)}
        times = interleaved(run, ways)
        yield grown(f"{name} step b64, twice the vocabulary ({2 * V})", f"{V} words", times[str(V)], times[str(2 * V)], Goal(most=2))


def decoding(run: Run) -> Iterator[Row]:
    features = ImageFeatures(*(part.to(run.device) for part in features_of(32, 49)))
    decoder = opinionated("attention", features)
    half = ImageFeatures(*(part[:16] for part in features))
    times = interleaved(
        run,
        {
            "greedy": lambda: search(decoder, features, 1),
            "5": lambda: search(decoder, features, 5),
            "10": lambda: search(decoder, features, 10),
            "half": lambda: search(decoder, half, 5),
            "single": lambda: search_singly(decoder, features, 5),
        },
    )
    yield grown("beam 5, attention 7x7, b32", "greedy", times["greedy"], times["5"], Goal(most=2.5))
    yield grown("beam 10, attention 7x7, b32", "beam 5", times["5"], times["10"], Goal(most=2))
    yield grown("beam 5, attention 7x7, 32 images", "16 images", times["half"], times["5"], Goal(most=2))
    yield grown("beam 5, attention 7x7, 32 images at once", "one at a time", times["single"], times["5"], Goal(most=0.25))


def memory(run: Run) -> Iterator[Row]:
    """The largest tensor that one training step makes, in tensors of the features' size: a few at most, never one a time step."""
    for grid, (batch_size, cells) in {"7x7": (64, 49), "14x14": (32, 196)}.items():
        material = batch_of(batch_size, cells, run.device)
        step = our_step(decoder_of("attention", run.device), material)
        with LargestTensor() as largest:
            step()
        unit = batch_size * cells * DIMS.grid
        work = f"largest tensor, attention step {grid} b{batch_size}"
        yield Row(work, "batch x cells x channels", ratio=largest.elements / unit, goal=Goal(most=1))
    decoder = decoder_of("attention", run.device).eval()
    peaks = []
    for images in (16, 32):
        features = ImageFeatures(*(part.to(run.device) for part in features_of(images, 49)))
        search(decoder, features, 3)
        peaks.append((peak_memory(run, lambda features=features: search(decoder, features, 3)) or 0) / images)
    if all(peaks):
        yield Row("peak memory of a beam an image, 32 images", "16 images", ratio=peaks[1] / peaks[0], goal=Goal(most=1.05))


def growth(run: Run) -> Iterator[Row]:
    for part in (batching, captions, vocabulary, decoding, memory):
        yield from part(run)
