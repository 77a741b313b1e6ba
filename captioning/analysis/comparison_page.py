"""A comparison as one HTML file: its tables, each metric against cost, learning curves, and BLEU by the length of the references."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from captioning.analysis.compare import Comparison
from captioning.analysis.grouping import Group
from captioning.analysis.page import SERIES, render, svg
from captioning.analysis.plots import DASHES, MARKS, empty, legend, length_groups, name_of, scale_of, scores_of, shown
from captioning.analysis.tables import Costs, Table, spent, tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = 8  # into which the images are divided by length, at the most


def page(comparison: Comparison, costs: Costs) -> str:
    metrics = list(comparison.lines)
    members = [(group, member) for group in comparison.groups for member in group.members]
    rows = [
        [
            member.path,
            group.name,
            str(member.seed),
            *(f"{scale_of(metric) * member.evaluated.result.metrics[metric]:.2f}" for metric in metrics),
        ]
        for group, member in members
    ]
    content = {
        "groups": comparison.groups,
        "baseline": comparison.baseline,
        "about": comparison.about,
        "warnings": comparison.warnings,
        "tables": tables(comparison, costs),
        "figures": figures(comparison, costs),
        "runs": Table("", ["run", "group", "seed", *(name_of(metric) for metric in metrics)], rows, []),
        "signatures": sorted({member.evaluated.result.signatures[metric] for _, member in members for metric in metrics}),
    }
    return render("comparison.html", content)


def figures(comparison: Comparison, costs: Costs) -> list[tuple[str, str]]:
    """Each with the sentence below it."""
    drawn = []
    unit = "ms an image, greedy" if costs.about else "GFLOPs a caption"
    for metric in comparison.lines:
        name = name_of(metric)
        text = f"{name} against {unit}, with 95% intervals over seeds and images."
        drawn.append((svg(against_cost(comparison, costs, metric, unit), f"{text} {values_in_words(comparison, metric)}"), text))
    for metric in comparison.lines:
        name = name_of(metric)
        text = f"{name} of each validation, mean over seeds."
        if curves := {group.name: curve(group, metric) for group in comparison.groups if curve(group, metric)}:
            ends = "; ".join(f"{its} ends at {points[max(points)]:.1f}" for its, points in curves.items())
            drawn.append((svg(over("epoch", name, curves), f"{text} {ends}."), text))
    text = "BLEU-4 of images by the mean length of their references, mean over seeds."
    drawn.append((svg(bleu_by_length(comparison.groups), text), text))
    return drawn


def values_in_words(comparison: Comparison, metric: str) -> str:
    lines = comparison.lines[metric]
    return (
        "; ".join(f"{line.group}: {line.mean.value:.1f}, from {line.mean.interval[0]:.1f} to {line.mean.interval[1]:.1f}" for line in lines)
        + "."
    )


def look(number: int) -> dict[str, Any]:
    """Of the number-th group: sixteen are told apart, without colours too."""
    turn = number // len(SERIES)
    return {"color": SERIES[number % len(SERIES)], "marker": MARKS[(number + turn) % len(MARKS)], "linestyle": DASHES[turn % len(DASHES)]}


def against_cost(comparison: Comparison, costs: Costs, metric: str, unit: str) -> "Figure":
    figure, axes = empty(unit, name_of(metric))
    scale = 1 if costs.about else 1e-9
    spendings = [scale * spent(costs.of[line.group]) for line in comparison.lines[metric]]
    for number, (line, cost) in enumerate(zip(comparison.lines[metric], spendings)):
        style: dict[str, Any] = {**look(number), "linestyle": "none"}
        axes.errorbar(
            cost, line.mean.value, yerr=line.mean.half_width(), capsize=3, linewidth=1.4, markersize=6, label=shown(line.group), **style
        )
    if max(spendings) > 10 * min(spendings) > 0:
        axes.set_xscale("log")
    legend(axes)
    return figure


def curve(group: Group, metric: str) -> dict[int, float]:
    """Epoch to the mean over those seeds that came so far."""
    values: dict[int, list[float]] = {}
    for member in group.members:
        for spot in member.progress.get("history", []):
            if spot.get(metric) is not None:
                values.setdefault(spot["epoch"], []).append(scale_of(metric) * spot[metric])
    return {epoch: float(np.mean(its)) for epoch, its in sorted(values.items())}


def over(x: str, y: str, curves: Mapping[str, Mapping[int, float]]) -> "Figure":
    figure, axes = empty(x, y)
    for number, (name, points) in enumerate(curves.items()):
        axes.plot(list(points), list(points.values()), linewidth=1.6, markersize=4, label=shown(name), **look(number))
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    legend(axes)
    return figure


def bleu_by_length(groups: Sequence[Group]) -> "Figure":
    members = [member for group in groups for member in group.members]
    common = set.intersection(*(set(member.evaluated.result.image_ids) for member in members))
    references = {name: texts for name, texts in members[0].evaluated.references.items() if name in common}
    parts = length_groups(references, max(1, len(references) // PARTS))
    figure, axes = empty("mean length of the references, in words", name_of("bleu4"))
    for number, group in enumerate(groups):
        values = np.mean([scores_of(parts, member.evaluated.result, "bleu4") for member in group.members], axis=0)
        axes.plot(range(len(parts)), 100 * values, linewidth=1.6, markersize=5, label=shown(group.name), **look(number))
    axes.set_xticks(range(len(parts)), [part.name for part in parts])
    axes.set_ylim(bottom=0)
    legend(axes)
    return figure
