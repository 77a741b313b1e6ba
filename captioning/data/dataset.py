"""Batches for training and for evaluation. Whether images or cached features fill them, the source decides."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from captioning.data.records import Record
from captioning.data.sampler import batches
from captioning.data.transforms import Transform
from captioning.data.vocabulary import Vocabulary
from captioning.data.workers import begin, read_by_workers
from captioning.errors import UserError
from captioning.randomness import generator_for

AHEAD = 2  # batches read before they are needed


class Batch(NamedTuple):
    images: Any  # what the encoder takes: (B, 3, h, w), or features from a cache
    tokens: Tensor  # (B*K, T), an image's captions side by side: <bos> words <eos>, then <pad>
    image_ids: list[str]


class References(NamedTuple):
    """Images of an evaluation, each once, with all their captions."""

    images: Any  # (B, ...)
    tokens: Tensor  # (B*K, T), an image's captions side by side; rows of <pad> where it has fewer than K
    image_ids: list[str]


class Source(Protocol):
    """Gives the encoder's input of these records. `positions` is set in training: augmentation is a function of it."""

    reading: Literal["workers", "ahead", "inline"]  # in worker processes; by a thread, while a batch is used; or when it is needed
    about: str  # where what it gives comes from

    def load(self, records: Sequence[Record], positions: Sequence[tuple] | None) -> Any: ...


class ImageSource:
    """Pictures, read and transformed when they are needed."""

    reading: Literal["workers", "ahead", "inline"] = "workers"
    about = "the encoder sees every picture in every epoch"

    def __init__(self, transform: Transform):
        self.transform = transform

    def load(self, records: Sequence[Record], positions: Sequence[tuple] | None) -> Tensor:
        generators = [generator_for("augment", *position) for position in positions] if positions else [None] * len(records)
        pictures = {record.path: self.read(record) for record in records}  # a batch may show one image several times
        return torch.stack([self.transformed(record, pictures[record.path], its) for record, its in zip(records, generators)])

    def read(self, record: Record) -> Image.Image:
        begin(record.path)
        return self.transform.read(record.path)

    def transformed(self, record: Record, picture: Image.Image, generator: torch.Generator | None) -> Tensor:
        begin(record.path)
        return self.transform(picture, generator)


def padded(captions: Sequence[Sequence[int]]) -> Tensor:
    """(B, T), filled up with <pad>."""
    tokens = torch.full((len(captions), max(map(len, captions))), Vocabulary.pad)
    for row, caption in enumerate(captions):
        tokens[row, : len(caption)] = torch.tensor(caption)
    return tokens


def side_by_side(images: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """(B*K, T): the captions of every image, and empty ones up to the largest number of them."""
    most = max(map(len, images))
    return padded([caption for captions in images for caption in [*captions, *[[]] * (most - len(captions))]])


class TrainingCaptions(Dataset):
    """Every caption of every record is one item; its key is (seed, epoch, number of the item).

    together: so many captions of one image are an item, and share its picture, its encoder pass and its attention keys.
    """

    def __init__(self, records: Sequence[Record], vocabulary: Vocabulary, max_length: int, source: Source, together: int = 1):
        self.source = source
        self.items = [
            (record, [vocabulary.encode(text, max_length) for text in record.captions[start : start + together]])
            for record in records
            for start in range(0, len(record.captions), together)
        ]
        self.lengths = [max(map(len, captions)) for _, captions in self.items]

    def __getitems__(self, keys: Sequence[tuple[int, int, int]]) -> Batch:
        records, captions = zip(*(self.items[index] for _, _, index in keys))
        return Batch(self.source.load(records, keys), side_by_side(captions), [record.image_id for record in records])


class TrainingBatches:
    """The batches of an epoch from any position on: what a resumed run asks for."""

    def __init__(self, captions: TrainingCaptions, batch_size: int, *, seed: int, workers: int, rank: int = 0, world: int = 1):
        each = sum(len(texts) for _, texts in captions.items) / len(captions.items)
        self.captions, self.workers, self.together = captions, workers, batch_size * world  # captions of a step, on all ranks
        self.items = max(world, int(self.together / each))  # of a step, likewise
        self.seed, self.rank, self.world = seed, rank, world

    def order(self, epoch: int) -> list[list[int]]:
        return batches(self.captions.lengths, self.items, seed=self.seed, epoch=epoch, rank=self.rank, world=self.world)

    def padding(self) -> float:
        """The share of the first epoch's tokens that are <pad>: time spent on nothing."""
        items = self.captions.items
        batches = [[list(map(len, items[index][1])) for index in batch] for batch in self.order(0)]
        words = sum(sum(map(sum, batch)) for batch in batches)
        places = sum(max(map(max, batch)) * len(batch) * max(map(len, batch)) for batch in batches)
        return 1 - words / max(1, places)

    def first(self, batches: int) -> Iterator[Batch]:
        """Of the first epoch, read in this process."""
        return (self.captions.__getitems__([(self.seed, 0, index) for index in batch]) for batch in self.order(0)[:batches])

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        keys = [[(self.seed, epoch, index) for index in batch] for batch in self.order(epoch)[start:]]
        return loader(self.captions, keys, self.workers)


class ReferenceImages(Dataset):
    """Every record is one item: an evaluation visits each image once, not once a caption."""

    def __init__(self, records: Sequence[Record], vocabulary: Vocabulary, max_length: int, source: Source):
        self.records, self.vocabulary, self.max_length, self.source = records, vocabulary, max_length, source

    def __getitems__(self, rows: Sequence[int]) -> References:
        records = [self.records[row] for row in rows]
        captions = [[self.vocabulary.encode(text, self.max_length) for text in record.captions] for record in records]
        return References(self.source.load(records, None), side_by_side(captions), [record.image_id for record in records])


class ReferenceBatches:
    def __init__(self, images: ReferenceImages, batch_size: int, *, workers: int, rank: int = 0, world: int = 1):
        self.images, self.workers = images, workers
        rows = range(rank, len(images.records), world)
        self.rows = [list(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]

    def __iter__(self) -> Iterator[References]:
        return loader(self.images, self.rows, self.workers)

    def __len__(self) -> int:
        return len(self.rows)


def loader(items: Any, keys: Sequence[Sequence], workers: int) -> Iterator[Any]:
    """One batch for each list of keys."""
    if items.source.reading != "workers" or not workers:
        yield from ahead(items, keys) if items.source.reading == "ahead" else map(items.__getitems__, keys)
        return
    for batch in read_by_workers(items, keys, workers):
        if isinstance(batch, UserError):
            raise batch
        yield batch


def ahead(items: Any, keys: Sequence[Sequence]) -> Iterator[Any]:
    """While a batch is used, a thread reads those after it. Not for what is gathered in memory: that would start a second team of
    OpenMP's threads, and the two would fight for the cores; a training step then takes twice as long."""
    with ThreadPoolExecutor(1) as reader:
        waiting: deque[Future] = deque()
        for key in keys:
            waiting.append(reader.submit(items.__getitems__, key))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
