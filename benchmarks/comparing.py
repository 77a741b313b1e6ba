"""Does `captioning compare` keep its promises? Simulated architectures, with and without a difference, compared many times over.

`python -m benchmarks.comparing` prints, for each world, how often a difference is found where there is none (false positives) and how
often the interval covers the true difference, for our interval and for the plain hierarchical bootstrap. `--runs RUN RUN` takes the images
from two real evaluations instead of drawing them.
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.measure import Goal, Row, Run, interleaved, row
from captioning.analysis.bootstrap import draw, drawings, estimate
from captioning.metrics.ngrams import LONGEST
from captioning.metrics.results import Columns, Result, metrics_of

METRICS: tuple[str, ...] = ("bleu4", "cider")
TRUTH = 3000  # seeds over which the true metric of an architecture is averaged


class World(NamedTuple):
    """Two architectures whose runs caption some images worse than they could.

    A run garbles a share of its captions: `garbled`, which differs from seed to seed with the standard deviation `sd`, and for the second
    architecture is larger by `worse`. Which captions: `taste` is the part of that (a correlation) which the runs of an architecture agree
    on; the rest is each seed's own. Everything else in a caption is, image by image, one of two that the image has.
    """

    seeds: tuple[int, int] = (3, 3)
    images: int = 500
    sd: float = 0.0
    worse: float = 0.0
    taste: float = 0.5
    garbled: float = 0.2
    spread: float = 1.0  # so many times as much as those of the first do seeds of the second architecture differ

    def shares(self, which: int, count: int, draws: np.random.Generator) -> np.ndarray:
        """(count,): what so many runs of the first (0) or second (1) architecture garble."""
        sd = self.sd * (self.spread if which else 1)
        return np.clip(self.garbled + which * self.worse + sd * draws.standard_normal(count), 0, 1)


def drawn_population(images: int, draws: np.random.Generator) -> list[Columns]:
    """Three captions of each image, as columns: two good ones and a garbled one. BLEU-4 and CIDEr are about those of Flickr8k."""
    return [captions_of(images, quality, draws) for quality in (0.68, 0.68, 0.45)]


def captions_of(images: int, quality: float, draws: np.random.Generator) -> Columns:
    length = draws.integers(6, 15, images)
    lucky = np.clip(quality + 0.15 * draws.standard_normal(images), 0.05, 0.95)  # some images are easy
    kept = [draws.binomial(length, lucky)]
    for n in range(1, LONGEST):
        kept.append(draws.binomial(np.minimum(np.maximum(0, kept[-1] - 1), np.maximum(0, length - n)), lucky))
    columns = {f"matches{n + 1}": its for n, its in enumerate(kept)}
    columns |= {"length": length, "reference_length": length + draws.integers(-1, 3, images)}
    cider = draws.gamma(1.0, 1.0, images) * lucky
    return columns | {"rouge_l": np.clip(lucky + 0.1 * draws.standard_normal(images), 0, 1), "cider": cider}


def real_population(folders: list[Path], draws: np.random.Generator) -> list[Columns]:
    """The captions of two runs, and for a garbled one the first run's matches with those of another image at hand, whichever are less."""
    first, second = (Result.load(folder / "scores.json").columns for folder in folders)
    order = draws.permutation(len(first["length"]))
    garbled = first | {name: np.minimum(first[name], first[name][order]) for name in first if name.startswith("matches")}
    garbled |= {name: np.minimum(first[name], first[name][order]) for name in ("rouge_l", "cider")}
    return [first, second, garbled]


def runs_of(world: World, which: int, seeds: int, population: list[Columns], rows: np.ndarray, draws: np.random.Generator) -> list[Columns]:
    """The runs of the first (0) or second (1) architecture on these images of the population."""
    from scipy.special import ndtr

    C = len(rows)
    shared, runs = draws.standard_normal(C), []
    for share in world.shares(which, seeds, draws):
        own = world.taste**0.5 * shared + (1 - world.taste) ** 0.5 * draws.standard_normal(C)
        kind = np.where(ndtr(own) < share, 2, draws.integers(0, 2, C))
        runs.append({name: np.choose(kind, [its[name][rows] for its in population]) for name in population[0]})
    return runs


def truth_of(world: World, which: int, population: list[Columns], draws: np.random.Generator) -> dict[str, float]:
    """The metrics of an architecture over all seeds and all images of the population."""
    share = world.shares(which, TRUTH, draws)[:, None]
    sums = {name: np.stack([column.mean() for column in (its[name] for its in population)]) for name in population[0]}
    mixed = {name: (1 - share) * (its[0] + its[1]) / 2 + share * its[2] for name, its in sums.items()}  # (TRUTH, 1), of one long run each
    guesses = [np.stack([np.maximum(0, its["length"] - n).mean() for its in population]) for n in range(LONGEST)]
    guesses = np.concatenate([(1 - share) * (its[0] + its[1]) / 2 + share * its[2] for its in guesses], axis=1)
    from captioning.metrics.bleu import Sums, bleu

    matches = np.concatenate([mixed[f"matches{n + 1}"] for n in range(LONGEST)], axis=1)
    values = bleu(Sums(matches, guesses, mixed["length"][:, 0], mixed["reference_length"][:, 0]))
    return {name: float((values | {"cider": mixed["cider"][:, 0]})[name].mean()) for name in METRICS}


def naive(runs: list[Columns], seeds: tuple[int, int], resamples: int, draws: np.random.Generator) -> dict[str, tuple[float, float]]:
    """The 95% percentile interval of the difference when seeds and images are just drawn again: the baseline."""
    images, found = len(runs[0]["length"]), {name: [] for name in METRICS}
    times = drawings(resamples, images, draws)
    values = [metrics_of(columns, times) for columns in runs]
    first = draws.integers(0, seeds[0], (resamples, seeds[0]))
    second = seeds[0] + draws.integers(0, seeds[1], (resamples, seeds[1]))
    for name in METRICS:
        its, rows = np.stack([value[name] for value in values]), np.arange(resamples)[:, None]
        found[name] = its[first, rows].mean(axis=1) - its[second, rows].mean(axis=1)
    return {name: (float(np.quantile(its, 0.025)), float(np.quantile(its, 0.975))) for name, its in found.items()}


class Kept(NamedTuple):
    """Shares of the simulated comparisons, of each metric."""

    found: dict[str, float]  # a difference was
    covered: dict[str, float]
    plainly_found: dict[str, float]  # by the plain hierarchical bootstrap
    ratio: float  # standard deviation of the seeds over the images' standard error of one run, BLEU-4
    true: dict[str, float]  # the difference


def simulate(world: World, population: list[Columns], comparisons: int, *, resamples: int = 300, seed: int = 0) -> Kept:
    draws = np.random.default_rng(seed)
    first, second = (truth_of(world, which, population, np.random.default_rng(seed)) for which in (0, 1))
    true = {name: second[name] - first[name] for name in METRICS}
    counts = np.zeros((3, len(METRICS)))
    spreads = []
    for _ in range(comparisons):
        rows = draws.integers(0, len(population[0]["length"]), world.images)
        runs = [its for which in (0, 1) for its in runs_of(world, which, world.seeds[which], population, rows, draws)]
        places = range(world.seeds[0]), range(world.seeds[0], sum(world.seeds))
        samples = draw(runs, METRICS, resamples, seed=int(draws.integers(2**32)))
        plain = naive(runs, world.seeds, resamples, draws)
        for column, name in enumerate(METRICS):
            its = estimate(samples[name], places[1], places[0])
            low, high = its.interval
            counts[:, column] += its.p < 0.05, low <= true[name] <= high, not plain[name][0] <= 0 <= plain[name][1]
        its = estimate(samples["bleu4"], places[1], places[0])
        spreads.append((sum(its.between) - sum(its.crossed), samples["bleu4"].covariance.diagonal().mean() * 2))
    between, images = np.mean(spreads, axis=0)
    found, covered, plainly = (dict(zip(METRICS, row / comparisons)) for row in counts)
    return Kept(found, covered, plainly, float((max(0.0, between) / images) ** 0.5), true)


def worlds(quick: bool) -> Iterator[World]:
    for seeds in ((2, 2), (3, 3), (5, 5), (2, 5)) if not quick else ((2, 2), (3, 3)):
        for sd, worse in itertools.product((0.0, 0.02, 0.05, 0.15), (0.0, 0.1)):
            yield World(seeds, 500, sd, worse)
    if not quick:
        for images, worse in itertools.product((200, 1000), (0.0, 0.1)):
            yield World((3, 3), images, 0.05, worse)
        for worse in (0.0, 0.1):
            yield World((3, 3), 500, 0.05, worse, taste=0.0)
            yield World((1, 1), 500, 0.0, worse, taste=1.0)
        for seeds in ((2, 2), (3, 3), (5, 5)):
            yield World(seeds, 500, 0.03, spread=3.0)


def speed(run: Run) -> Iterator[Row]:
    """12 runs x 1000 images x 2000 resamples, against scoring the captions of every resample anew."""
    from benchmarks.scoring import material
    from captioning.metrics.score import References

    runs, images, resamples = (12, 1000, 2000) if not run.quick else (3, 200, 200)
    hypotheses, references = material(images)
    prepared, draws = References(references), np.random.default_rng(0)
    columns = [prepared.columns(hypotheses[shift:] + hypotheses[:shift]) for shift in range(runs)]

    def anew() -> None:  # one resample of one run
        rows = draws.integers(0, images, images)
        References([references[place] for place in rows]).score([hypotheses[place] for place in rows])

    ways = {"anew": anew, "ours": lambda: draw(columns, ("bleu4", "cider", "rouge_l"), resamples)}
    times = interleaved(run, ways)
    every = [seconds * runs * resamples for seconds in times["anew"]]
    what = f"{runs} runs x {images} images x {resamples} resamples"
    yield row(what, "scored anew (one run, one resample; times all)", every, times["ours"], goal=Goal(100))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comparing", description=__doc__)
    parser.add_argument("--comparisons", type=int, default=2000, help="in each world")
    parser.add_argument("--runs", nargs=2, type=Path, metavar="RUN", help="two evaluated run directories")
    parser.add_argument("--quick", action="store_true", help="fewer worlds")
    options = parser.parse_args()
    draws = np.random.default_rng(7)
    population = real_population(options.runs, draws) if options.runs else drawn_population(5000, draws)
    print("| seeds | images | sd of seeds / se of images | taste | true difference, BLEU-4 | found: BLEU-4, CIDEr |"
          " covered: BLEU-4, CIDEr | plain bootstrap finds |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for number, world in enumerate(worlds(options.quick)):
        kept = simulate(world, population, options.comparisons, seed=number)
        shares = [", ".join(f"{its[name]:.1%}" for name in METRICS) for its in (kept.found, kept.covered, kept.plainly_found)]
        seeds = " + ".join(map(str, world.seeds))
        ratio = f"{kept.ratio:.1f}" + (f", one {world.spread:g} times the other's" if world.spread != 1 else "")
        cells = [seeds, str(world.images), ratio, f"{world.taste:g}", f"{100 * kept.true['bleu4']:.2f}", *shares]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
