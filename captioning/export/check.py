"""Does an exported folder caption as the model does, and how fast? On pictures made here: a run's own data may be elsewhere."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from captioning.data.transforms import Transform
from captioning.data.vocabulary import Vocabulary
from captioning.export.portable import Captioner
from captioning.models.caption_model import CaptionModel
from captioning.search import Beam

PICTURES = 16
ROUNDS = 5
SECONDS = 20.0  # that the rounds of one batch size may take
CLOSE = 1e-3  # captions whose log p differ by less may change places


class Parity(NamedTuple):
    pictures: int
    same: int  # captions that are equal word for word
    worst: float  # the largest difference of log p

    @property
    def holds(self) -> bool:
        return self.worst < CLOSE  # then captions differ only where two are equally likely


class Latency(NamedTuple):
    batch: int
    exported: float  # milliseconds an image, from pixels to words: the median of rounds that take turns
    eager: float


def pictures(count: int) -> list[Image.Image]:
    """Soft patches of colour of many shapes and sizes, the same each time."""
    draws = np.random.default_rng(0)
    result = []
    for _ in range(count):
        rows, columns = draws.integers(2, 12, 2)
        patches = Image.fromarray(draws.integers(0, 256, (rows, columns, 3), np.uint8))
        result.append(patches.resize((int(columns) * 40, int(rows) * 40), Image.Resampling.BICUBIC))
    return result


def compare(model: CaptionModel, transform: Transform, vocabulary: Vocabulary, captioner: Captioner, search: Beam) -> Parity:
    made = pictures(PICTURES)
    found = model.generate(torch.stack([transform(picture) for picture in made]), search)
    its = captioner.generate(np.stack([captioner.prepare(picture) for picture in made]), captioner.beam)
    same = sum(vocabulary.decode(ids) == captions[0].text for ids, captions in zip(found.tokens[:, 0].tolist(), its))
    differences = [abs(score - captions[0].score) for score, captions in zip(found.scores[:, 0].tolist(), its)]
    return Parity(PICTURES, same, max(differences))


def speaks(folder: Path, captioner: Captioner) -> bool:
    """Does the folder's own program say of a picture what `captioner` says? In a process of its own: this one has all modules that a
    folder might lack."""
    with tempfile.TemporaryDirectory() as aside:
        file = Path(aside) / "picture.png"
        pictures(1)[0].save(file)
        command = [sys.executable, "-EB", str(folder.resolve() / "caption.py"), file.name]  # without PYTHONPATH, and leaves no bytecode
        said = subprocess.run(command, cwd=aside, capture_output=True, text=True, encoding="utf-8")
        return said.returncode == 0 and said.stdout == f"{file.name}: {captioner.captions([file])[0][0].text}\n"


def latency(model: CaptionModel, captioner: Captioner, search: Beam, batch: int) -> Latency:
    pixels = np.stack([captioner.prepare(picture) for picture in pictures(batch)])
    tensor = torch.from_numpy(pixels)
    ways = (lambda: captioner.generate(pixels, captioner.beam), lambda: model.generate(tensor, search))
    times: tuple[list[float], list[float]] = ([], [])
    began = time.perf_counter()
    for turn in range(ROUNDS + 1):
        for way, its in zip(ways, times):
            start = time.perf_counter()
            way()
            its.append(time.perf_counter() - start)
        if turn and time.perf_counter() - began > SECONDS:
            break
    exported, eager = (1000 * statistics.median(its[1:]) / batch for its in times)  # the first of each warms up
    return Latency(batch, exported, eager)
