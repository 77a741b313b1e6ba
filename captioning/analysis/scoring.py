"""Scoring anybody's captions, without a model: what `captioning score` does."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

from captioning.data.captions import other_names, read_captions
from captioning.errors import UserError
from captioning.metrics.audit import Variant
from captioning.metrics.cider import FEW, Frequencies, few_images
from captioning.metrics.diversity import describe, diversity, novelty
from captioning.metrics.java import java_columns
from captioning.metrics.ngrams import LONGEST
from captioning.metrics.results import Result
from captioning.metrics.score import References


class Given(NamedTuple):
    """Images which have captions and references."""

    image_ids: list[str]
    candidates: list[list[str]]  # the first is the caption
    references: list[list[str]]


class Scored(NamedTuple):
    metrics: dict[str, Any]  # as in metrics.json
    result: Result
    notes: list[str]  # what the reader should know


def read(captions: Path, references: Path) -> tuple[Given, list[str]]:
    """The images that both files have, and a note if there are references of others. UserError for captions without any."""
    said, wanted = read_captions(captions), read_captions(references)
    if said.keys() - wanted.keys():
        names = other_names(references)
        said = {names.get(name, name) if name not in wanted else name: texts for name, texts in said.items()}
    if strange := [name for name in said if name not in wanted]:
        example = next(iter(wanted), "none")
        raise UserError(
            f"{captions}: image {strange[0]!r} has no reference in {references} (whose first is {example!r}); {len(strange)} such"
        )
    if not said:
        raise UserError(f"{captions}: no captions")
    names = sorted(said)
    notes = [f"{len(names):,} of the {len(wanted):,} images of {references} have a caption"] if len(names) < len(wanted) else []
    if several := sum(len(its) > 1 for its in said.values()):
        notes.append(f"{several:,} images have several captions: the first of each is scored")
    return Given(names, [said[name] for name in names], [wanted[name] for name in names]), notes


def read_frequencies(path: Path) -> Frequencies:
    try:
        return Frequencies.load(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--cider-df {path}: not document frequencies, as --save-cider-df writes them ({error})") from None


def score(
    given: Given, frequencies: Frequencies | None = None, training: Mapping[str, Sequence[str]] | None = None, with_java: bool = False
) -> Scored:
    """training: captions that are not new. with_java: METEOR and SPICE too."""
    captions, notes = [texts[0] for texts in given.candidates], []
    references = References(given.references, frequencies)
    result = references.result(captions, given.image_ids)
    if with_java:
        columns, notes = java_columns(captions, given.references)
        result = result.extended(columns, references.about)
    if (images := frequencies.images if frequencies else len(captions)) < FEW:
        notes.append(few_images(images))
    more = diversity(given.candidates, references) | describe(captions)
    if training is not None:
        more["novelty"] = novelty(captions, (text for texts in training.values() for text in texts))
    about = {"images": len(captions), "signatures": result.signatures}
    return Scored(result.metrics | more | about, result, notes)


def audit_table(variants: Sequence[Variant]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title="The same captions under other definitions")
    table.add_column("BLEU x 100", no_wrap=True, min_width=22)
    for n in range(1, LONGEST + 1):
        table.add_column(str(n), justify="right", no_wrap=True)
    table.add_column("what is different")
    for name, scores, note in variants:
        table.add_row(name, *(f"{100 * value:.2f}" for value in scores.values()), note)
    return table
