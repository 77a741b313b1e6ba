"""A data set that draws itself: coloured shapes with five references each. No download; a caption is right or wrong at a glance.

Some pairs of colour and shape (`a purple star`) appear in the validation or the test split alone, so that a good score
means that colour and shape were understood apart, not that pictures were remembered.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from random import Random
from typing import NamedTuple

from PIL import Image, ImageDraw

from captioning.data.annotations import table
from captioning.data.records import Splits
from captioning.errors import UserError
from captioning.kinds import Count
from captioning.randomness import seed_for

COLOURS = {
    "red": (214, 40, 40),
    "green": (52, 160, 70),
    "blue": (40, 90, 210),
    "yellow": (245, 205, 50),
    "purple": (130, 60, 170),
    "orange": (245, 130, 30),
    "black": (35, 35, 35),
}
CORNERS = {  # on a unit circle around the centre, y downwards
    "square": ((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)),
    "triangle": ((0.0, -1.0), (0.95, 0.75), (-0.95, 0.75)),
    "diamond": ((0.0, -1.0), (0.7, 0.0), (0.0, 1.0), (-0.7, 0.0)),
    "cross": ((-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3),
              (0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)),
    "bar": ((-1.1, -0.25), (1.1, -0.25), (1.1, 0.25), (-1.1, 0.25)),
}  # fmt: skip
SHAPES = ("circle", *CORNERS)
SIZES = {"small": 0.11, "large": 0.18}  # radius, as a share of the picture's side
PLACES = {
    "on the left": (0.22, 0.5),
    "on the right": (0.78, 0.5),
    "at the top": (0.5, 0.22),
    "at the bottom": (0.5, 0.78),
    "in the middle": (0.5, 0.5),
}
RELATIONS = {  # the first object relative to the second: the same said the other way round, and the direction
    "above": ("below", (0, -1)),
    "below": ("above", (0, 1)),
    "to the left of": ("to the right of", (-1, 0)),
    "to the right of": ("to the left of", (1, 0)),
}
NUMBERS = {2: "two", 3: "three", 4: "four"}
HELD = {"val": 0, "test": 3}  # diagonals of the table of colours and shapes
PAIRS = [(colour, shape) for colour in COLOURS for shape in SHAPES]


def held_out(split: str) -> list[tuple[str, str]]:
    """The pairs of colour and shape that only this split shows; for `train`, the pairs that every split may show.

    Every other pair of a diagonal is held out, so each colour and each shape is still seen in training in other company.
    """
    places = {pair: (list(COLOURS).index(pair[0]), SHAPES.index(pair[1])) for pair in PAIRS}
    held = {name: [pair for pair, (x, y) in places.items() if (x + y) % len(COLOURS) == mark and x % 2 == 0] for name, mark in HELD.items()}
    return held.get(split) or [pair for pair in PAIRS if pair not in held["val"] + held["test"]]


class Thing(NamedTuple):
    colour: tuple[int, int, int]
    shape: str
    radius: float
    x: float
    y: float


def scene(random: Random, split: str) -> tuple[list[Thing], list[str]]:
    """What is in one picture, and five ways to say it."""

    def thing(pair: tuple[str, str], size: str, x: float, y: float) -> Thing:
        """Never twice quite the same: place, size and tint vary a little."""
        tint = tuple(min(255, max(0, value + random.randint(-20, 20))) for value in COLOURS[pair[0]])
        x, y = x + random.uniform(-0.05, 0.05), y + random.uniform(-0.05, 0.05)
        return Thing(tint, pair[1], SIZES[size] * random.uniform(0.9, 1.1), x, y)  # type: ignore[arg-type]

    pair = random.choice(held_out(split))
    kind, size = random.choice(("one", "many", "two")), random.choice(list(SIZES))
    if kind == "one":
        place, spot = random.choice(list(PLACES.items()))
        name = f"{size} {' '.join(pair)}"
        return [thing(pair, size, *spot)], [
            f"A {name} {place}.",
            f"There is a {name} {place}.",
            f"The picture shows a {name} {place}.",
            f"One {name} {place} of the picture.",
            f"A {name} can be seen {place}.",
        ]
    if kind == "many":
        number = random.choice(list(NUMBERS))
        spots = random.sample([(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)], number)
        name = f"{NUMBERS[number]} {size} {' '.join(pair)}{'es' if pair[1] == 'cross' else 's'}"
        return [thing(pair, size, *spot) for spot in spots], [
            f"{name.capitalize()}.",
            f"There are {name}.",
            f"The picture shows {name}.",
            f"A group of {name}.",
            f"{name.capitalize()} can be seen.",
        ]
    other = random.choice([other for other in held_out("train") if other != pair])
    relation, (converse, (right, down)) = random.choice(list(RELATIONS.items()))
    first, second = (f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}" for colour, shape in (pair, other))
    return [
        thing(pair, "large", 0.5 + 0.24 * right, 0.5 + 0.24 * down),
        thing(other, "large", 0.5 - 0.24 * right, 0.5 - 0.24 * down),
    ], [
        f"{first.capitalize()} {relation} {second}.",
        f"{first.capitalize()} is {relation} {second}.",
        f"There is {first} {relation} {second}.",
        f"{second.capitalize()} {converse} {first}.",
        f"The picture shows {first} {relation} {second}.",
    ]


def draw(things: list[Thing], size: int, ground: tuple[int, int, int]) -> Image.Image:
    """(size, size) RGB, drawn three times larger and scaled down, so that edges are smooth."""
    side = 3 * size
    image = Image.new("RGB", (side, side), ground)
    pen = ImageDraw.Draw(image)
    for colour, shape, radius, x, y in things:
        if shape == "circle":
            pen.ellipse([side * (x - radius), side * (y - radius), side * (x + radius), side * (y + radius)], colour)
        else:
            pen.polygon([(side * (x + radius * dx), side * (y + radius * dy)) for dx, dy in CORNERS[shape]], colour)
    return image.resize((size, size), Image.Resampling.LANCZOS)


def shapes(root: str | Path, train: Count = 3000, val: Count = 200, test: Count = 200, size: Count = 64, seed: int = 0) -> Splits:
    """Read the drawings of these settings below `root`; draw them first if they are not there. The same settings draw the same files."""
    folder = Path(root) / f"{train}-{val}-{test}-{size}px-s{seed}"
    if not folder.exists():
        draw_all(folder, {"train": train, "val": val, "test": test}, size, seed)
    return table(folder, "captions.jsonl")


def draw_all(folder: Path, counts: dict[str, int], size: int, seed: int) -> None:
    """Aside, then put in place at once: two processes may want the same drawings."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".drawing-", dir=folder.parent))
        write(unfinished, counts, size, seed)
        if folder.exists():  # the other process was first
            shutil.rmtree(unfinished)
        else:
            os.rename(unfinished, folder)
    except OSError as error:
        if not folder.exists():
            raise UserError(f"data.root={folder.parent}: the drawings cannot be written there ({error.strerror})") from None


def write(folder: Path, counts: dict[str, int], size: int, seed: int) -> None:
    """`captions.jsonl` and `images/`: the layout of one's own data."""
    (folder / "images").mkdir()
    with open(folder / "captions.jsonl", "w", encoding="utf-8") as lines:
        for split, count in counts.items():
            for index in range(count):
                random = Random(seed_for(seed, split, index))
                things, captions = scene(random, split)
                name = f"{split}-{index:05d}.png"
                ground = tuple(random.randint(225, 255) for _ in range(3))
                draw(things, size, ground).save(folder / "images" / name)  # type: ignore[arg-type]
                for caption in random.sample(captions, len(captions)):
                    lines.write(json.dumps({"image": name, "caption": caption, "split": split}) + "\n")
