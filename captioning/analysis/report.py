"""One run, or two beside each other, as one HTML file: numbers, curves, captions with their pictures, and what is wrong with them."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from captioning.analysis import plots
from captioning.analysis.cards import Card, Cards, Pictures, Strip, Subject, strip
from captioning.analysis.failures import Failure, failures
from captioning.analysis.page import number, render, svg
from captioning.analysis.plots import LOWER_IS_BETTER, History, name_of
from captioning.analysis.results import Evaluated
from captioning.analysis.texts import FUNCTION, given_often, lengths, repeated_phrases, vocabularies
from captioning.errors import UserError

STRIPS = (2, 2, 4)  # of the best, the worst and the random captions: so many with attention
SAID = {
    "perplexity": "Perplexity",
    "length": "Words a caption",
    "vocabulary_used": "Different words",
    "distinct1": "Different words, share of words",
    "distinct2": "Different pairs of words, share",
    "distinct_captions": "Different captions",
    "most_common_share": "Most frequent caption, share",
    "repeats": "Captions with a word or a pair of words again, share",
    "novelty": "Captions not in training, share",
    "unknown_rate": "<unk>, share of words",
    "loss": "Loss a word",
}


class Row(NamedTuple):
    """A metric of one or two runs."""

    name: str
    values: list[float]
    signatures: list[str]
    difference: float | None  # None: one run, or values that may not be compared
    better: bool | None


def report(run: Subject, other: Subject | None, pictures: Pictures, examples: int = 12) -> str:
    """The page. Raises UserError where the two were not evaluated on the same images with the same references."""
    runs = [run] if other is None else [run, other]
    evaluated = {its.name: its.evaluated for its in runs}
    refuse_others(evaluated)
    its = run.evaluated
    cards = Cards(evaluated, pictures)
    ranked, few = by_cider(cards.scores[run.name]), min(examples, max(1, len(its.captions) // 2))
    chosen = {"best": ranked[:few], "worst": ranked[::-1][:few], "random": by_hash(its.captions)[:few]}
    content = {
        "runs": runs,
        "other": other,
        "split": its.metrics.get("split", "?"),
        "unlike": unlike(evaluated),
        "images": len(its.captions),
        "rows": metric_rows(runs),
        "settings": setting_rows(runs),
        "pictures_problem": pictures.problem,
        "chosen": {kind: [cards(name, [run.name]) for name in names] for kind, names in chosen.items()},
        "strips": strips(runs, chosen, pictures),
        "apart": apart(run, other, cards, few) if other is not None else {},
        "categories": category_rows(runs, cards),
        "function_words": " ".join(sorted(FUNCTION)),
    }
    return render("report.html", content | curves(runs) | words(runs))


def refuse_others(runs: Mapping[str, Evaluated]) -> None:
    """UserError for a run that was not evaluated on the images and references of the first."""
    first, *others = runs
    ours = runs[first].references
    for other in others:
        theirs = runs[other].references
        if lone := sorted(ours.keys() ^ theirs.keys()):
            has, lacks = (first, other) if lone[0] in ours else (other, first)
            where = f"{lone[0]} is in {has} and not in {lacks}; {len(lone)} such images"
            raise UserError(f"{other}: evaluated on other images than {first} ({where}): evaluate both on the same split")
        if changed := [name for name in ours if sorted(ours[name]) != sorted(theirs[name])]:
            raise UserError(f"{other}: has other references than {first} for image {changed[0]}: evaluate both on the same data")


def unlike(runs: Mapping[str, Evaluated]) -> list[str]:
    """In what the captions were not made alike."""
    return [key for key in ("search", "precision") if len({str(its.metrics.get(key)) for its in runs.values()}) > 1]


def by_cider(its: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Images, the best caption first; equal ones by ROUGE-L, then by name."""
    return sorted(its, key=lambda name: (-its[name]["CIDEr"], -its[name]["ROUGE-L"], name))


def by_hash(names: Mapping[str, object]) -> list[str]:
    """In the order of the SHA-256 of the names: as good as random, and the same for every run."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode(errors="replace")).digest())


def metric_rows(runs: Sequence[Subject]) -> list[Row]:
    """A difference stands only where both have the same signature, or the number is a plain count of the captions."""
    rows = []
    for key, value in {key: value for run in runs[::-1] for key, value in run.evaluated.metrics.items()}.items():
        if key == "images" or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        values = [run.evaluated.metrics.get(key, float("nan")) for run in runs]
        signatures = [str(run.evaluated.metrics.get("signatures", {}).get(key, "")) for run in runs]
        difference = values[0] - values[1] if len(set(signatures)) < len(runs) else None
        better = (difference > 0) != (key in LOWER_IS_BETTER) if difference and signatures[0] else None
        rows.append(Row(SAID.get(key, name_of(key)), values, signatures, difference, better))
    return rows


def setting_rows(runs: Sequence[Subject]) -> list[tuple[str, list[str], bool]]:
    """(key, its values, whether they differ), by key."""
    keys = sorted({key for run in runs for key in run.settings})
    rows = [(key, [str(run.settings.get(key, "–")) for run in runs]) for key in keys]
    return [(key, values, len(set(values)) > 1) for key, values in rows]


def curves(runs: Sequence[Subject]) -> dict[str, Any]:
    """Losses, the metric that chose the best checkpoint, and CIDEr."""
    histories = {run.name: run.history for run in runs if run.history}
    best = {run.name: run.best for run in runs if run.best is not None}
    metrics = dict.fromkeys([runs[0].monitor if runs[0].monitor != "loss" else "cider", "cider", "bleu4"])
    figures = []
    alike = all("CrossEntropy" in str(run.settings.get("loss._target_")) for run in runs)  # else training has a loss of its own kind
    losses = [("train_loss", "loss")] if alike else [("train_loss",), ("loss",)]
    for keys in [*losses, *((metric,) for metric in metrics)]:
        names = " and ".join(name_of(key) for key in keys)
        said = [f"{name}: {ends(history, key)}" for name, history in histories.items() for key in keys]
        text = f"{names[0].upper()}{names[1:]} over the optimizer's steps. {'; '.join(said)}."
        if histories:
            figures.append((svg(plots.learning_curves(histories, keys, best), text), names))
    return {"curves": figures, "histories": histories, "curve_keys": ["train_loss", "loss", *metrics], "name_of": name_of, "best": best}


def ends(history: History, key: str) -> str:
    values = [spot[key] for spot in history if spot.get(key) is not None]
    return f"{name_of(key)} from {number(values[0])} to {number(values[-1])}" if values else f"no {name_of(key)}"


def strips(runs: Sequence[Subject], chosen: Mapping[str, Sequence[str]], pictures: Pictures) -> list[Strip]:
    """Of a few pictures of each kind, word by word. The models see only these."""
    names = dict.fromkeys(name for its, count in zip(chosen.values(), STRIPS) for name in its[:count])
    return [strip(run, name, pictures) for name in names for run in runs if run.look is not None]


def apart(run: Subject, other: Subject, cards: Cards, few: int) -> dict[str, list[Card]]:
    """By the run that is better there: where the two differ most in CIDEr."""
    ours, theirs = cards.scores[run.name], cards.scores[other.name]
    gain = {name: ours[name]["CIDEr"] - theirs[name]["CIDEr"] for name in ours}
    ranked = sorted(gain, key=lambda name: (-gain[name], name))
    chosen = {run.name: [name for name in ranked if gain[name] > 0], other.name: [name for name in ranked[::-1] if gain[name] < 0]}
    return {better: [cards(name, [run.name, other.name]) for name in names[:few]] for better, names in chosen.items()}


class CategoryRow(NamedTuple):
    name: str
    rule: str
    counts: list[int]  # of each run
    cards: list[Card]


def category_rows(runs: Sequence[Subject], cards: Cards, examples: int = 4) -> dict[str, Any]:
    """The categories, and how many images are in one at least. Examples are in the order of `by_hash`."""
    found = [failures(run.evaluated.captions, run.evaluated.references) for run in runs]
    rows = []
    for its in zip(*found):
        shown = [cards(name, [runs[0].name], its[0].images[name]) for name in by_hash(its[0].images)[:examples]]
        rows.append(CategoryRow(its[0].category.name, its[0].category.rule, [len(failure.images) for failure in its], shown))
    return {"rows": rows, "any": [len(in_any(its)) for its in found]}


def in_any(found: Sequence[Failure]) -> set[str]:
    return {name for failure in found for name in failure.images}


def words(runs: Sequence[Subject]) -> dict[str, Any]:
    """Lengths, vocabulary and repeats of every run."""
    references = runs[0].evaluated.references
    every = [text for texts in references.values() for text in texts]
    counts = {run.name: lengths(run.evaluated.captions.values()) for run in runs} | {"references": lengths(every)}
    means = {name: sum(length * times for length, times in its.items()) / max(1, its.total()) for name, its in counts.items()}
    text = "Shares of lengths in words. " + "; ".join(f"{name}: {means[name]:.1f} words on average" for name in counts) + "."
    groups = plots.length_groups(references, max(10, len(references) // 12))
    results = {run.name: run.evaluated.result for run in runs}
    cider = {run.name: plots.scores_of(groups, run.evaluated.result, "cider").tolist() for run in runs}
    ciders = "; ".join(f"{name}: {number(its[0])} for the shortest, {number(its[-1])} for the longest" for name, its in cider.items())
    about = f"CIDEr by the mean length of an image's references. {ciders}."
    return {
        "lengths": svg(plots.histogram(counts, "words"), text),
        "length_counts": counts,
        "all_lengths": sorted(set().union(*counts.values())),
        "length_means": means,
        "by_length": svg(plots.by_length(results, groups, "cider"), about),
        "groups": groups,
        "group_scores": cider,
        "vocabularies": [vocabularies(run.evaluated.captions.values(), every) for run in runs],
        "often": [given_often(run.evaluated.captions) for run in runs],
        "phrases": [repeated_phrases(run.evaluated.captions.values()) for run in runs],
    }
