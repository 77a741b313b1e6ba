"""How sure a metric is, and a difference of two: over the seeds of training and over the images of the test, which are both samples.

The metric of a run is a value for its seed on these images. All runs see the same images (crossed), each seed belongs to one group of
runs (nested): the design of a study in which readers read cases, whose theory this follows (Obuchowski 1995, "Multireader, multimodality
receiver operating characteristic curve studies: hypothesis testing and sample size estimation"; Hillis 2014 for readers nested in tests).
The variance of a group's mean over S seeds has three parts:

    images common to its seeds   from the images, drawn with replacement and for all runs at once (Efron and Tibshirani 1993;
                                 Koehn 2004 for BLEU): the covariance of two of its runs
    images x seeds, over S       from the same: what a run's variance has beyond that covariance
    seeds, over S                what the S values differ by beyond the part above

The plain hierarchical bootstrap (draw seeds, then images) takes the last from S values as if they were all there are: too small by
(S-1)/S, and with the tails of a handful of points. Where seeds matter more than images it finds differences that are not there in up to
a fifth of all comparisons of two seeds each (docs/comparing.md). Here the spread of the seeds has its few degrees of freedom and Student's
t for them, and the parts are put together so that the interval covers no less than it says (Banerjee 1960):

    half-width^2 = t(images)^2 common + t(seeds)^2 (s^2 / S), and no less than t(images)^2 (common + images x seeds / S)

where s^2, the variance between the S values as they are, has "images x seeds" in it already. For a difference these are sums over both
groups, and the degrees of freedom those of Satterthwaite (1946) for groups whose seeds spread alike: to estimate them too, as Welch (1947)
does, would be to ask two values how sure they are of their variance. Where seeds do not spread alike, `uneven` says so.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import fdtrc, stdtrit

from captioning.metrics.results import Columns, metrics_of

AT_ONCE = 2**24  # numbers in a matrix of drawings
LEVEL, POWER = 0.05, 0.8
LEAST_P = 1e-12  # smaller ones are called that
MOST_SEEDS = 50  # that anyone will train


class Sample(NamedTuple):
    """One metric of N runs on the same images."""

    values: np.ndarray  # (N,)
    covariance: np.ndarray  # (N, N) of the values, from the drawing of the images
    images: int


class Estimate(NamedTuple):
    """The mean of a group of runs, or the difference of two; of each of these G groups, the number of seeds and what they differ by."""

    value: float
    image: float  # variance, from the images, of the value with just these seeds
    seeds: tuple[int, ...]  # (G,)
    between: tuple[float, ...]  # (G,) variance between the runs of a group; of a single run it is unknown, and 0 here
    crossed: tuple[float, ...]  # (G,) images x seeds: the part of `between` that comes with the images
    images: int

    @property
    def common(self) -> float:
        return max(0.0, self.image - sum(crossed / S for crossed, S in zip(self.crossed, self.seeds)))

    @property
    def standard_error(self) -> float:
        return max(self.image, self.common + sum(self.of_seeds)) ** 0.5

    @property
    def of_seeds(self) -> list[float]:
        return [between / S for between, S in zip(self.between, self.seeds)]

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the seeds' part."""
        shares = [1 / S for S in self.seeds if S > 1]
        return sum(shares) ** 2 / sum(share**2 * share / (1 - share) for share in shares) if shares else 1.0

    def half_width(self, level: float = LEVEL) -> float:
        """Of the interval that leaves out the truth with a probability of `level`."""
        t_images, t_seeds = stdtrit(self.images - 1, level / 2), stdtrit(self.freedom, level / 2)
        return float(max(t_images**2 * self.image, t_images**2 * self.common + t_seeds**2 * sum(self.of_seeds)) ** 0.5)

    @property
    def interval(self) -> tuple[float, float]:
        half = self.half_width()
        return self.value - half, self.value + half

    @property
    def p(self) -> float:
        """The level whose interval just reaches 0: it is below 0.05 if and only if 0 is outside of the 95% interval."""
        size = abs(self.value)
        if size == 0 or self.half_width(LEAST_P) <= size:
            return 1.0 if size == 0 else LEAST_P
        log = brentq(lambda log: self.half_width(math.exp(log)) - size, math.log(LEAST_P), 0.0, xtol=1e-9)
        return math.exp(log)  # type: ignore[arg-type]

    @property
    def resolvable(self) -> float:
        """The smallest difference that such data find with 80% power at 0.05."""
        return self.half_width() - float(stdtrit(self.images - 1, 1 - POWER)) * self.standard_error

    def with_seeds(self, S: int) -> "Estimate":
        """As it would be expected with so many seeds in each group."""
        crossed = sum(crossed / S for crossed in self.crossed)
        return self._replace(seeds=(S,) * len(self.seeds), image=self.common + crossed)

    @property
    def uneven(self) -> bool:
        """Whether the seeds of the two groups clearly do not spread alike, by the F test: the p is then too small."""
        if len(self.seeds) < 2 or min(self.seeds) < 2 or max(self.between) == 0:
            return False
        (first, F), (second, S) = sorted(zip(self.between, self.seeds), reverse=True)
        return second == 0 or bool(fdtrc(F - 1, S - 1, first / second) < LEVEL / 2)

    @property
    def seeds_needed(self) -> int | None:
        """Seeds in each group with which a difference of this size would be resolved; None where no number will do, or one cannot
        say: a single run does not show what seeds differ by."""
        if min(self.seeds) < 2:
            return None
        return next((S for S in range(2, MOST_SEEDS + 1) if self.with_seeds(S).resolvable <= abs(self.value)), None)


def draw(runs: Sequence[Columns], names: Sequence[str], resamples: int, seed: int = 0) -> dict[str, Sample]:
    """These metrics of N runs, whose columns are of the same images in the same order."""
    images = len(next(iter(runs[0].values())))
    draws, done = np.random.default_rng(seed), 0
    every = [metrics_of(columns, np.ones((1, images))) for columns in runs]
    drawn: list[dict[str, np.ndarray]] = []  # (N, R) of each metric, some of R at a time
    while done < resamples:
        some = min(resamples - done, max(1, AT_ONCE // images))
        times = drawings(some, images, draws)
        found = [metrics_of(columns, times) for columns in runs]
        drawn.append({name: np.stack([its[name] for its in found]) for name in names})
        done += some
    return {
        name: Sample(
            np.array([its[name][0] for its in every]),
            np.atleast_2d(np.cov(np.concatenate([its[name] for its in drawn], axis=1))) * images / max(1, images - 1),
            images,
        )
        for name in names
    }


def drawings(resamples: int, images: int, draws: np.random.Generator) -> np.ndarray:
    """(R, C): how often each image was drawn, as floats, whose products are fast."""
    places = draws.integers(0, images, (resamples, images)) + images * np.arange(resamples)[:, None]
    return np.bincount(places.ravel(), minlength=resamples * images).reshape(resamples, images).astype(np.float64)


def estimate(sample: Sample, group: Sequence[int], baseline: Sequence[int] = ()) -> Estimate:
    """The mean of these runs, named by place; with a baseline, what it lies above the mean of those."""
    groups = [list(its) for its in (group, baseline) if len(its)]
    weights = np.zeros(len(sample.values))
    for sign, its in zip((1, -1), groups):
        weights[its] += sign / len(its)
    means = [float(sample.values[its].mean()) for its in groups]
    return Estimate(
        value=means[0] - sum(means[1:]),
        image=max(0.0, float(weights @ sample.covariance @ weights)),
        seeds=tuple(map(len, groups)),
        between=tuple(float(sample.values[its].var(ddof=1)) if len(its) > 1 else 0.0 for its in groups),
        crossed=tuple(crossed_of(sample.covariance[np.ix_(its, its)]) for its in groups),
        images=sample.images,
    )


def crossed_of(covariance: np.ndarray) -> float:
    """(S, S) of one group's runs: their mean variance less the mean covariance of two. A single run's cannot be told apart."""
    S = len(covariance)
    if S == 1:
        return 0.0
    variance = np.trace(covariance) / S
    return max(0.0, float(variance - (covariance.sum() - np.trace(covariance)) / (S * (S - 1))))


def holm(p: Sequence[float]) -> list[float]:
    """p corrected for their number (Holm 1979): below 0.05 for one or more true hypotheses of no difference in at most 5% of families."""
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda place: p[place])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = highest
    return adjusted
