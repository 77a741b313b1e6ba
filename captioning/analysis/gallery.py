"""Pictures chosen by a rule, with what runs say of them, as one HTML file: to be read by eye, picture by picture."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from captioning.analysis.cards import Cards, Pictures
from captioning.analysis.page import render
from captioning.analysis.report import by_hash, refuse_others, unlike
from captioning.analysis.results import Evaluated


class GalleryRun(NamedTuple):
    """A run, as a gallery needs it."""

    label: str  # what tells it from the others
    path: str
    search: str  # in words
    evaluated: Evaluated


class Row(NamedTuple):
    run: GalleryRun
    of_shown: float  # CIDEr, mean of the images on the page
    of_all: float
    bleu4: float  # of all


def gallery(runs: Sequence[GalleryRun], pictures: Pictures, images: int = 24) -> str:
    """The page. Raises UserError where the runs were not evaluated on the same images with the same references."""
    refuse_others({run.path: run.evaluated for run in runs})
    evaluated = {run.label: run.evaluated for run in runs}
    cards = Cards(evaluated, pictures)
    chosen = by_hash(runs[0].evaluated.references)[:images]
    content = {
        "split": runs[0].evaluated.metrics.get("split", "?"),
        "all": len(runs[0].evaluated.references),
        "rows": [row(run, cards.scores[run.label], chosen) for run in runs],
        "unlike": unlike(evaluated),
        "signatures": sorted({run.evaluated.result.signatures["cider"] for run in runs}),
        "pictures_problem": pictures.problem,
        "cards": [cards(name, list(evaluated)) for name in chosen],
    }
    return render("gallery.html", content)


def row(run: GalleryRun, scores: Mapping[str, Mapping[str, float]], chosen: Sequence[str]) -> Row:
    metrics = run.evaluated.result.metrics
    return Row(run, sum(scores[name]["CIDEr"] for name in chosen) / max(1, len(chosen)), metrics["cider"], metrics["bleu4"])
