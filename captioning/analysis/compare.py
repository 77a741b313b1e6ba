"""Groups of runs beside each other: what they score, how they differ from a baseline, and what of that the data can tell."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from captioning.analysis.bootstrap import LEVEL, MOST_SEEDS, Estimate, draw, estimate, holm
from captioning.analysis.grouping import SEARCH, Group, Member, again, pooled
from captioning.analysis.plots import name_of, scale_of
from captioning.errors import UserError, did_you_mean
from captioning.metrics.results import Columns

METRICS = ("cider", "bleu4", "rouge_l")


class Line(NamedTuple):
    """A group by one metric. Values as the field prints them: times 100, but loss and perplexity as they are."""

    group: str
    seeds: int
    sd: float | None  # over seeds
    mean: Estimate
    difference: Estimate | None  # to the baseline, which has none itself
    p_holm: float | None

    @property
    def is_found(self) -> bool:
        return self.p_holm is not None and self.p_holm < LEVEL

    @property
    def is_below_resolution(self) -> bool:
        return self.difference is not None and abs(self.difference.value) < self.difference.resolvable


class Comparison(NamedTuple):
    groups: list[Group]
    baseline: str
    lines: dict[str, list[Line]]  # of each metric
    about: str  # images, split, search, resamples
    warnings: list[str]


def compare(
    groups: Sequence[Group],
    metrics: Sequence[str],
    *,
    by: Sequence[str] = (),
    baseline: str | None = None,
    resamples: int = 2000,
    force: bool = False,
) -> Comparison:
    """by: the settings that made the groups. baseline: a group's name; by default the first group, which is not chosen by its results.

    UserError for runs that are not to be compared; with `force`, a warning where they can be compared all the same.
    """
    members = [member for group in groups for member in group.members]
    known = [group.name for group in groups]
    if baseline is None:
        baseline = known[0]
    elif baseline not in known:
        raise UserError(f"--baseline {baseline}: no such group.{did_you_mean(baseline, known)}")
    if not metrics:
        raise UserError(f"--metric: none is named; allowed: {', '.join(members[0].evaluated.result.metrics)}")
    for member in members:
        its = member.evaluated.result.metrics
        for metric in metrics:
            if metric not in its:
                raise UserError(f"--metric {metric}: no such metric in {member.path}.{did_you_mean(metric, its)}")
            if not np.isfinite(its[metric]):
                raise UserError(f"--metric {metric}: it is {its[metric]} for {member.path}; leave that run or this metric out")
    warnings = [*differences(members, metrics, force), *other_searches(members, by), *twice(groups, force)]
    columns, images = aligned(members)
    if images < 2:
        raise UserError(f"{members[0].path}: evaluated on one image; comparing needs two at least")
    if force and any(len(member.evaluated.result.image_ids) != images for member in members):
        warnings.append(f"only the {images} images that all runs have are compared")
    samples = draw(columns, metrics, resamples)
    places, start = {}, 0
    for group in groups:
        places[group.name] = range(start, start := start + len(group.members))
    lines = {}
    for metric in metrics:
        scale = scale_of(metric)
        sample = samples[metric]._replace(values=samples[metric].values * scale, covariance=samples[metric].covariance * scale**2)
        others = {name: estimate(sample, its, places[baseline]) for name, its in places.items() if name != baseline}
        adjusted = dict(zip(others, holm([its.p for its in others.values()])))
        lines[metric] = [
            Line(
                name,
                len(its),
                float(np.std(sample.values[its], ddof=1)) if len(its) > 1 else None,
                estimate(sample, its),
                others.get(name),
                adjusted.get(name),
            )
            for name, its in places.items()
        ]
    first = members[0].evaluated.metrics
    about = f"{images} images of {first['split']}, {resamples} drawings of them"
    return Comparison(list(groups), baseline, lines, about, warnings + cautions(groups, baseline, lines))


def differences(members: Sequence[Member], metrics: Sequence[str], force: bool) -> list[str]:
    """What the evaluations differ in: refused, or said."""
    first, found = members[0], []
    for member in members[1:]:
        mine, its = (it.evaluated.metrics for it in (first, member))
        if mine["split"] != its["split"]:
            raise UserError(
                f"{member.path} was evaluated on split={its['split']}, {first.path} on split={mine['split']}: evaluate both alike"
            )
        for metric in metrics:
            one, other = (it.evaluated.result.signatures.get(metric) for it in (first, member))
            if one != other:
                text = f"{member.path}: its {metric} has the signature {other}, that of {first.path} is {one}"
                if not force:
                    raise UserError(f"{text}: not to be compared (--force does)")
                found.append(text)
        if mine.get("precision") != its.get("precision"):
            what = ", ".join(f"{name} ({it.get('precision')})" for name, it in ((first.path, mine), (member.path, its)))
            found.append(f"captions were not made alike, precision differs: {what}")
    return found


def other_searches(members: Sequence[Member], by: Sequence[str]) -> list[str]:
    """Other searches are other groups and their names say so, unless `by` leaves them out."""
    first = members[0]
    keys = sorted({key for member in members for key in member.settings if key.startswith(SEARCH) and not key.endswith("_target_")})
    for key in keys:
        other = next((member for member in members if member.settings.get(key) != first.settings.get(key)), None)
        if other and by and key not in by:
            what = ", ".join(f"{member.path} ({member.settings.get(key)})" for member in (first, other))
            return [f"captions were not made alike, which --by leaves out: {key} differs: {what}"]
    return []


def twice(groups: Sequence[Group], force: bool) -> list[str]:
    found = []
    for group in groups:
        if pair := again(group):
            one, other = pair
            alike = "are evaluations of one run" if one.run == other.run else f"have the same settings and seed={one.seed}"
            text = f"{one.path} and {other.path} {alike}, and are no two seeds"
            if not force:
                raise UserError(f"{text}: give one of them (--force takes both)")
            found.append(text)
    return found


def aligned(members: Sequence[Member]) -> tuple[list[Columns], int]:
    """The columns of every run for the same images in the same order, and how many these are: those that all runs have."""
    shared = set.intersection(*(set(member.evaluated.result.image_ids) for member in members))
    if not shared:
        first, other = next((members[0], it) for it in members[1:])
        raise UserError(f"{first.path} and {other.path} were not evaluated on the same images: there is nothing to compare")
    columns = []
    for member in members:
        place = {name: row for row, name in enumerate(member.evaluated.result.image_ids)}
        rows = [place[name] for name in sorted(shared)]
        columns.append({name: column[rows] for name, column in member.evaluated.result.columns.items()})
    common = set.intersection(*(set(its) for its in columns))  # an older evaluation may lack one
    return [{name: its[name] for name in its if name in common} for its in columns], len(shared)


def cautions(groups: Sequence[Group], baseline: str, lines: Mapping[str, Sequence[Line]]) -> list[str]:
    """What a reader must know before believing the table."""
    found = []
    if alone := [group.name for group in groups if len(group.members) == 1]:
        found.append(
            f"one seed only: {', '.join(alone)}. Intervals and p are about this one training run and do not know what another seed would "
            "have given: they say nothing of the architecture"
        )
    for group in groups:
        if keys := pooled(group):
            which = f"{', '.join(keys[:6])}{' ...' if len(keys) > 6 else ''}"
            found.append(f"{group.name}: pooled over {which}, whose effect counts as seeds'; costs are those of {group.members[0].path}")
    for metric, its in lines.items():
        name = name_of(metric)
        for line in its:
            if line.difference and line.difference.uneven:
                found.append(f"{name}: the seeds of {line.group} and {baseline} do not spread alike: the p between them may be too small")
        if below := [line for line in its if line.is_below_resolution]:
            found.append(f"{name}: less than this data can resolve: {'; '.join(map(in_words_of, below))}")
    runs = {group.name: {member.run for member in group.members} for group in groups}
    if shared := [name for name, its in runs.items() if name != baseline and its & runs[baseline] and len(its | runs[baseline]) > 1]:
        found.append(
            f"the same trained runs as in {baseline}: {', '.join(shared)}. Their seeds count as if they were others: unless a seed that "
            "does well under one search does badly under the other, the interval is rather too wide than too narrow, and p too large"
        )
    if len({repr(member.evaluated.metrics["search"]) for group in groups for member in group.members}) > 1:
        found.append("searches differ, costs do not know it: they are of greedy search and a beam of 3 for every group, and so is ◆")
    machines = {group.name: sorted({member.machine for member in group.members}) for group in groups}
    if len({machine for its in machines.values() for machine in its}) > 1:
        found.append("trained on different machines: training times and memory do not compare")
    return found


def in_words_of(line: Line) -> str:
    """`gru merge, -1.17 (it resolves 2.10; if real, about 5 seeds each would show it)`."""
    difference = line.difference
    assert difference
    text = f"{line.group}, {difference.value:+.2f} (it resolves {difference.resolvable:.2f}"
    if min(difference.seeds) < 2:
        return f"{text}; how many seeds would do, a single one cannot tell)"
    if (needed := difference.seeds_needed) is None:
        return f"{text}; {MOST_SEEDS} seeds each would not do, more images might)"
    return f"{text}; if it is real, about {needed} seeds each would show it)"
