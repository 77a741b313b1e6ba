"""Captions from an exported folder. Needs NumPy, Pillow and a runtime, not the model's code: this file and the few it imports lie there.

B images   K hypotheses of each   T words   V vocabulary
"""

import argparse
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray
from PIL import Image, ImageOps

from captioning.data.images import read_image
from captioning.errors import UserError, plain_errors

FORMAT = 1  # of export.json
PARTS = {"files": dict, "vocabulary": list, "transform": dict, "search": dict, "state": dict, "begin": dict, "step": dict}  # of it
PAD, BOS, EOS, UNK = range(4)
STAY = 0.75  # images that are done leave the batch when no more than this share goes on
Graph = Callable[..., Sequence[Any]]  # arrays to arrays


class State(NamedTuple):
    memory: list[ndarray]  # (B, ...) what an image's hypotheses share
    moving: list[ndarray]  # (B, K, ...)


class Hypotheses(NamedTuple):
    tokens: ndarray  # (B, n_best, T) without <bos>; <pad> after <eos>
    scores: ndarray  # (B, n_best), best first; -inf where there are fewer


class Caption(NamedTuple):
    text: str
    score: float  # log p, divided by length ** length_penalty


Step = Callable[[ndarray, State], tuple[ndarray, State]]
"""(token (B, K), state) -> (logits (B, K, V), state)"""


@dataclass(frozen=True)
class Beam:
    """The beam search of captioning/search.py, settings and end rules alike, on arrays."""

    beam_size: int = 3
    n_best: int = 1
    max_length: int = 30
    min_length: int = 0
    length_penalty: float = 0.0
    no_repeat_ngram: int = 0
    allow_unknown: bool = False

    def __post_init__(self) -> None:
        for name in ("beam_size", "n_best", "max_length"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: at least 1")
        for name in ("min_length", "no_repeat_ngram"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: at least 0")
        if not math.isfinite(self.length_penalty):
            raise UserError(f"length_penalty={self.length_penalty}: must be a finite number")
        if self.n_best > self.beam_size:
            raise UserError(f"n_best={self.n_best} is more than beam_size={self.beam_size}")

    def __call__(self, step: Step, state: State) -> Hypotheses:
        """state: with one hypothesis an image."""
        images, K, T = len(state.moving[0]), self.beam_size, self.max_length
        state = State(state.memory, [np.repeat(part, K, axis=1) for part in state.moving])
        places = np.arange(images)  # where the image of each remaining row stands in the results
        said = np.full((images, K, T + 1), PAD)
        said[:, :, 0] = BOS
        scores = np.full((images, K), -np.inf, np.float32)
        scores[:, 0] = 0  # all K beams begin equal: let one of them speak
        live = np.full((images, 1), K)
        tokens = np.full((images, K + 1, T), PAD)  # the last row takes what is thrown away
        ranked = np.full((images, K + 1), -np.inf, np.float32)

        for length in range(1, T + 1):
            logits, state = step(said[:, :, length - 1], state)
            words = log_softmax(self.constrained(logits, said[:, :, :length]))
            chosen, scores = largest((scores[:, :, None] + words).reshape(len(words), -1), K)
            parent, word = np.divmod(chosen, words.shape[2])
            said = np.take_along_axis(said, parent[:, :, None], axis=1)
            said[:, :, length] = word
            scores[np.arange(K) >= live] = -np.inf
            ended = (scores > -np.inf) & ((word == EOS) | (length == T))
            target = np.where(ended, K - live + ended.cumsum(axis=1) - 1, K)
            tokens[places[:, None], target] = said[:, :, 1:]
            ranked[places[:, None], target] = scores / length**self.length_penalty
            live = live - ended.sum(axis=1, keepdims=True)
            scores[ended] = -np.inf

            # an open hypothesis only loses log p; at best it loses nothing, and is divided by the longest length
            hope = scores.max(axis=1) / T**self.length_penalty
            going = hope > largest(ranked[places, :K], self.n_best)[1][:, -1]
            if not going.any():
                break
            state = State(state.memory, [np.take_along_axis(part, widened(parent, part), axis=1) for part in state.moving])
            if going.mean() <= STAY:
                state = State(*([part[going] for part in parts] for parts in state))
                said, scores, live, places = said[going], scores[going], live[going], places[going]

        order, scores = largest(ranked[:, :K], self.n_best)
        return Hypotheses(np.take_along_axis(tokens, order[:, :, None], axis=1)[:, :, :length], scores)

    def constrained(self, logits: ndarray, said: ndarray) -> ndarray:
        """Never <pad> or <bos>, <unk> only where allowed, no <eos> before the minimum length, no n-gram twice. said: <bos> first."""
        logits, length, n = logits.astype(np.float32), said.shape[2], self.no_repeat_ngram
        logits[:, :, [PAD, BOS] if self.allow_unknown else [PAD, BOS, UNK]] = -np.inf
        if length <= self.min_length:
            logits[:, :, EOS] = -np.inf
        if n and length >= n:
            grams = np.lib.stride_tricks.sliding_window_view(said, n, axis=2)  # (B, K, places, n)
            begun = (grams[..., :-1] == said[:, :, None, length - n + 1 :]).all(axis=-1)
            image, beam, _ = begun.nonzero()
            last = grams[begun][:, -1]
            kept = last != EOS
            logits[image[kept], beam[kept], last[kept]] = -np.inf
        return logits


def log_softmax(logits: ndarray) -> ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def largest(values: ndarray, count: int) -> tuple[ndarray, ndarray]:
    """The places of each row's `count` largest values and the values, largest first; of equal ones the first."""
    if values.shape[1] > 8 * count:  # thousands of words: sort only what is in question
        last = np.partition(values, -count, axis=1)[:, -count]
        candidates = [np.flatnonzero(row >= least) for row, least in zip(values, last)]
        order = np.stack([its[np.argsort(-row[its], kind="stable")[:count]] for row, its in zip(values, candidates)])
    else:
        order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(values, order, axis=1)


def widened(places: ndarray, part: ndarray) -> ndarray:
    """(B, K) places for np.take_along_axis on a part of any number of dimensions."""
    return places.reshape(*places.shape, *[1] * (part.ndim - 2))


class Captioner:
    """An exported folder, ready to caption. threads: of the runtime; 0 leaves it to the runtime."""

    def __init__(self, folder: Path, threads: int = 0):
        self.about = read_about(folder)
        for file, digest in ((folder / name, digest) for name, digest in self.about["files"].items()):
            if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
                raise UserError(f"{file}: {'damaged since it was written' if file.exists() else 'missing'}")
        self.words: list[str] = ["<pad>", "<bos>", "<eos>", "<unk>", *self.about["vocabulary"]]
        self.transform: dict[str, Any] = self.about["transform"]
        self.beam = Beam(**self.about["search"])
        self.first, self.next = (load_graph(folder / self.about[name]["file"], threads) for name in ("begin", "step"))
        self.shared = len(self.about["state"]["memory"])

    def read(self, file: Path | BytesIO) -> Image.Image:
        return read_image(file, self.transform["least"])

    def prepare(self, image: Image.Image) -> ndarray:
        """(3, size, size), as in training."""
        size = (self.transform["size"],) * 2
        squash = self.transform["fit"] == "squash"
        image = image.resize(size, Image.Resampling.BICUBIC) if squash else ImageOps.fit(image, size, Image.Resampling.BICUBIC)
        mean, std = (np.float32(255) * np.array(self.transform[name], np.float32)[:, None, None] for name in ("mean", "std"))
        return (np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C") - mean) / std

    def begin(self, pixels: ndarray) -> State:
        """(B, 3, size, size) -> the state before the first word."""
        parts = list(self.first(pixels))
        return State(parts[: self.shared], [part[:, None] for part in parts[self.shared :]])

    def step(self, token: ndarray, state: State) -> tuple[ndarray, State]:
        logits, *moving = self.next(np.ascontiguousarray(token, np.int64), *state.memory, *state.moving)
        return logits, State(state.memory, moving)

    def decode(self, ids: Sequence[int]) -> str:
        ids = ids[: ids.index(EOS)] if EOS in ids else ids
        return " ".join(self.words[word] for word in ids if word not in (PAD, BOS))

    def generate(self, pixels: ndarray, beam: Beam) -> list[list[Caption]]:
        """(B, 3, size, size) -> each image's captions, best first."""
        found = beam(self.step, self.begin(pixels))
        return [
            [Caption(self.decode(ids), score) for ids, score in zip(its, scores) if score > -np.inf]
            for its, scores in zip(found.tokens.tolist(), found.scores.tolist())
        ]

    def captions(self, files: Sequence[Path | BytesIO], beam: Beam | None = None) -> list[list[Caption]]:
        """Each picture's captions, best first. Raises UserError for a file that is no picture."""
        return self.generate(np.stack([self.prepare(self.read(file)) for file in files]), beam or self.beam)


def read_about(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        version = about["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: not an exported folder (export.json: {error})") from None
    if version != FORMAT:
        raise UserError(f"{folder}: exported in format {version}; this program reads format {FORMAT}")
    wrong = [name for name, kind in PARTS.items() if not isinstance(about.get(name), kind)]
    if wrong:
        raise UserError(f"{folder}: not a whole exported folder (export.json: no {', '.join(wrong)})")
    return about


def load_graph(file: Path, threads: int) -> Graph:
    """A graph as a function of arrays."""
    if file.suffix == ".pt2":
        import torch

        module = torch.export.load(file).module(check_guards=False)  # they were written for more than one hypothesis

        @torch.inference_mode()
        def run(*given: ndarray) -> list[ndarray]:
            return [part.numpy() for part in module(*map(torch.from_numpy, given))]

        return run
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a thread that waits leaves its core to others
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # weights in 8 bits become float32 now, not at every word
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [its.name for its in session.get_inputs()]
    return lambda *given: session.run(None, dict(zip(names, given)))


def main(folder: Path) -> None:
    """What `python caption.py` does in an exported folder."""
    parser = argparse.ArgumentParser(description="Caption image files.")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    for field in fields(Beam):
        if field.name != "allow_unknown":
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), metavar="N")
    parser.add_argument("--json", action="store_true", help="one JSON object, with log p")
    options = parser.parse_args()
    with plain_errors():
        try:
            captioner = Captioner(folder)
        except ModuleNotFoundError as error:
            raise UserError(f"{error}: pip install -r {folder / 'requirements.txt'}") from None
        given = {field.name: getattr(options, field.name, None) for field in fields(Beam)}
        beam = Beam(**captioner.about["search"] | {name: value for name, value in given.items() if value is not None})
        result, refused = {}, []
        for path in options.images:
            try:
                result[str(path)] = captioner.captions([path], beam)[0]
            except UserError as error:  # the others are still captioned
                refused.append(str(error))
                continue
            if not options.json:
                print("\n".join(f"{path}: {caption.text}" for caption in result[str(path)]))
        if options.json:
            print(json.dumps({path: [caption._asdict() for caption in its] for path, its in result.items()}, indent=1))
        if refused:
            raise UserError("; ".join(refused))
