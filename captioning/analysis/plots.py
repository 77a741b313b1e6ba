"""Figures of runs: learning curves, a metric by the length of the references, histograms. Numbers in, matplotlib figures out."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from captioning.analysis.page import FAINT, GROUND, INK, SERIES
from captioning.metrics.results import Result, metrics_of
from captioning.metrics.tokenizer import tokenize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

History = Sequence[Mapping[str, Any]]
"""A run's validations as `last/state.json` has them: epoch, step, seconds, train_loss and the metrics."""

NAMES = {
    "train_loss": "training loss",
    "loss": "held-out loss",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "spice": "SPICE",
    "mbleu4": "mBLEU-4",
    "self_cider": "Self-CIDEr",
    "cider": "CIDEr",
    **{f"bleu{n}": f"BLEU-{n}" for n in range(1, 5)},
}
LOWER_IS_BETTER = ("loss", "perplexity")
DASHES = ("-", "--", ":", "-.")  # told apart without colours too
MARKS = ("o", "s", "^", "D")


def name_of(metric: str) -> str:
    return NAMES.get(metric, metric)


def scale_of(metric: str) -> int:
    """The field prints metrics times 100, but loss and perplexity as they are."""
    return 1 if metric in LOWER_IS_BETTER else 100


def empty(x: str, y: str, width: float = 4.6, height: float = 3.0) -> tuple["Figure", "Axes"]:
    """A figure with axes, in the page's colours; sizes in inches. Made without pyplot: no state is shared."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)
    axes.tick_params(colors=INK, labelcolor=INK, labelsize=9, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def shown(name: str) -> str:
    """A run's name as it is: matplotlib reads formulas between dollars, and leaves a name with a first underscore out of the legend."""
    return ("\u2009" if name.startswith("_") else "") + name.replace("$", r"\$")


def legend(axes: "Axes") -> None:
    """Above the axes, where it hides nothing; none for a single line."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        columns = 2 if sum(map(len, labels)) < 60 else 1
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, fontsize=9, labelcolor=INK, borderaxespad=0)


def learning_curves(runs: Mapping[str, History], keys: Sequence[str], best: Mapping[str, int]) -> "Figure":
    """One line for each run and each of the keys, over steps. best: the step of each run's best validation, which is marked."""
    figure, axes = empty("optimizer step", name_of(keys[0]) if len(keys) == 1 else "loss a word")
    for number, (run, history) in enumerate(runs.items()):
        for dash, key in zip(DASHES, keys):
            points = [(spot["step"], spot[key]) for spot in history if spot.get(key) is not None]
            if not points:
                continue
            steps, values = zip(*points)
            words = [shown(run)] * (len(runs) > 1) + [name_of(key)] * (len(keys) > 1)
            colour, mark = SERIES[number % len(SERIES)], MARKS[number % len(MARKS)]
            axes.plot(steps, values, dash, color=colour, linewidth=1.6, marker=mark, markersize=3.5, label=", ".join(words))
            if key != "train_loss" and best.get(run) in steps:
                place = steps.index(best[run])
                ring = {"markersize": 9, "markerfacecolor": GROUND, "markeredgecolor": colour, "markeredgewidth": 2}
                axes.plot(best[run], values[place], mark, **ring)
    axes.locator_params(axis="x", integer=True)
    legend(axes)
    return figure


class LengthGroup(NamedTuple):
    """Images whose references have about one length."""

    low: int
    high: int
    image_ids: list[str]

    @property
    def name(self) -> str:
        return f"{self.low}" if self.low == self.high else f"{self.low}–{self.high}"


def length_groups(references: Mapping[str, Sequence[str]], least: int) -> list[LengthGroup]:
    """Images by the mean length of their references in words, rounded; neighbours together until there are `least` images.

    By the references and not by the captions: so the groups are the same for every run.
    """
    by_length: dict[int, list[str]] = {}
    for name, texts in references.items():
        by_length.setdefault(round(sum(len(tokenize(text)) for text in texts) / max(1, len(texts))), []).append(name)
    groups: list[LengthGroup] = []
    for length in sorted(by_length):
        if groups and len(groups[-1].image_ids) < least:
            last = groups.pop()
            groups.append(LengthGroup(last.low, length, last.image_ids + by_length[length]))
        else:
            groups.append(LengthGroup(length, length, by_length[length]))
    if len(groups) > 1 and len(groups[-1].image_ids) < least:
        last, before = groups.pop(), groups.pop()
        groups.append(LengthGroup(before.low, last.high, before.image_ids + last.image_ids))
    return groups


def scores_of(groups: Sequence[LengthGroup], result: Result, metric: str) -> np.ndarray:
    """(G,): the metric over each group's images, not a mean of sentence scores where the metric is none."""
    place = {name: column for column, name in enumerate(result.image_ids)}
    times = np.zeros((len(groups), len(place)), dtype=np.int64)
    for row, group in enumerate(groups):
        for name in group.image_ids:
            times[row, place[name]] += 1
    return metrics_of(result.columns, times)[metric]


def by_length(results: Mapping[str, Result], groups: Sequence[LengthGroup], metric: str) -> "Figure":
    figure, axes = empty("mean length of the references, in words", name_of(metric))
    for number, (run, result) in enumerate(results.items()):
        colour, dash, mark = SERIES[number % len(SERIES)], DASHES[number % len(DASHES)], MARKS[number % len(MARKS)]
        values = scores_of(groups, result, metric)
        axes.plot(range(len(groups)), values, dash, color=colour, marker=mark, linewidth=1.6, markersize=5, label=shown(run))
    axes.set_xticks(range(len(groups)), [group.name for group in groups])
    axes.set_ylim(bottom=0)
    legend(axes)
    return figure


def histogram(counts: Mapping[str, Mapping[int, int]], x: str) -> "Figure":
    """Shares of whole numbers, each name a line with steps: captions' lengths beside the references', say."""
    figure, axes = empty(x, "share of captions, %")
    for number, (name, its) in enumerate(counts.items()):
        first, last, total = min(its, default=0), max(its, default=0), max(1, sum(its.values()))
        places = range(max(0, first - 1), last + 2)
        shares = [100 * its.get(place, 0) / total for place in places]
        colour = SERIES[number % len(SERIES)]
        axes.step(places, shares, where="mid", color=colour, linewidth=1.6, linestyle=DASHES[number % len(DASHES)], label=shown(name))
        if number == 0:
            axes.fill_between(places, shares, step="mid", color=colour, alpha=0.15, linewidth=0)
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="x", integer=True)
    legend(axes)
    return figure
