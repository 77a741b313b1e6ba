"""Pictures with what runs say of them, and where the words looked: what a page shows of single images."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from captioning.analysis.overlay import lit
from captioning.analysis.page import data_uri
from captioning.analysis.plots import History
from captioning.analysis.results import Evaluated
from captioning.analysis.samples import Looked
from captioning.data.transforms import Transform
from captioning.errors import UserError
from captioning.metrics.results import Result

THUMBNAIL = 360  # pixels of its longer side
TILE = 112  # of a word's picture


class Subject(NamedTuple):
    """A run, as a report needs it."""

    name: str
    facts: Mapping[str, str]  # what was trained on what, in words
    settings: Mapping[str, Any]  # by dotted name
    history: History
    best: int | None  # the step of the best validation
    monitor: str  # the metric that chose it
    evaluated: Evaluated
    look: Callable[[Path, str], Looked] | None  # None: its decoder does not attend


class Shown(NamedTuple):
    uri: str | None
    problem: str  # why there is none


class Pictures:
    """Thumbnails by image id, each read once. problem: why there are none at all."""

    def __init__(self, paths: Mapping[str, Path], problem: str = ""):
        self.paths, self.problem = paths, problem
        self.transform = Transform(size=THUMBNAIL // 2)  # reads at twice this size at least
        self.seen: dict[str, Shown] = {}

    def __getitem__(self, image_id: str) -> Shown:
        if image_id not in self.seen:
            self.seen[image_id] = self.read(image_id)
        return self.seen[image_id]

    def read(self, image_id: str) -> Shown:
        if image_id not in self.paths:
            return Shown(None, "the data was not found" if self.problem else "the data has no such image")
        try:
            return Shown(data_uri(self.transform.read(self.paths[image_id]), THUMBNAIL), "")
        except UserError as error:
            return Shown(None, str(error))


class Line(NamedTuple):
    """What one run says of a picture, and how that scores."""

    run: str
    caption: str
    scores: Mapping[str, float]


class Card(NamedTuple):
    image_id: str
    picture: Shown
    lines: list[Line]
    references: Sequence[str]
    note: str


class Cards:
    """Of runs by their names, which were evaluated on the same images."""

    def __init__(self, runs: Mapping[str, Evaluated], pictures: Pictures):
        self.runs, self.pictures = runs, pictures
        self.scores = {name: scores(its.result) for name, its in runs.items()}

    def __call__(self, image_id: str, names: Sequence[str], note: str = "") -> Card:
        lines = [Line(name, self.runs[name].captions[image_id], self.scores[name][image_id]) for name in names]
        return Card(image_id, self.pictures[image_id], lines, self.runs[names[0]].references[image_id], note)


def scores(result: Result) -> dict[str, dict[str, float]]:
    """Of each image: CIDEr, ROUGE-L, and the share of the caption's words that are in a reference (BLEU-1's clipped precision)."""
    columns = [result.columns[name].tolist() for name in ("cider", "rouge_l", "matches1", "length")]
    return {
        name: {"CIDEr": cider, "ROUGE-L": rouge, "precision": matches / max(1, length)}
        for name, cider, rouge, matches, length in zip(result.image_ids, *columns)
    }


class Tile(NamedTuple):
    word: str
    uri: str
    where: str  # in words


class Strip(NamedTuple):
    """A caption of a run, word by word. problem: why there are no tiles."""

    image_id: str
    run: str
    caption: str
    whole: str  # the picture as the encoder sees it
    tiles: list[Tile]
    problem: str


def strip(run: Subject, image_id: str, pictures: Pictures) -> Strip:
    caption, path = run.evaluated.captions[image_id], pictures.paths.get(image_id)
    if path is None or run.look is None:
        return Strip(image_id, run.name, caption, "", [], pictures[image_id].problem)
    try:
        looked = run.look(path, caption)
    except UserError as error:
        return Strip(image_id, run.name, caption, "", [], str(error))
    cells = looked.attention.shape[1]
    side = round(cells**0.5)
    if side * side != cells:
        return Strip(image_id, run.name, caption, "", [], f"attention over {cells} cells: only square grids can be drawn")
    base = looked.picture.resize((TILE, TILE))
    rows = zip(looked.words, looked.attention)
    tiles = [Tile(word, data_uri(lit(base, row), TILE), place(int(row.argmax()), side)) for word, row in rows]
    return Strip(image_id, run.name, caption, data_uri(base, TILE), tiles, "")


def place(cell: int, side: int) -> str:
    """Where a cell of the grid is, in words: what is told to those who do not see the tile."""
    down, across = (int(3 * (index + 0.5) / side) for index in divmod(cell, side))
    return " ".join(filter(None, (("upper", "", "lower")[down], ("left", "", "right")[across]))) or "centre"
