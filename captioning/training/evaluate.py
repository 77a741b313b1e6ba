"""Evaluation: captions made freely, one an image, and what the metrics say of them. No metric sees a teacher-forced caption."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from captioning.data.dataset import ReferenceBatches
from captioning.data.records import Record
from captioning.data.vocabulary import Vocabulary
from captioning.metrics.cider import FEW, few_images
from captioning.metrics.diversity import describe, diversity, novelty
from captioning.metrics.java import java_columns
from captioning.metrics.results import Result, implementation
from captioning.metrics.score import References
from captioning.models.caption_model import CaptionModel
from captioning.models.decoders.base import Decoder
from captioning.models.features import ImageFeatures, Inputs
from captioning.search import Search
from captioning.training.distributed import World
from captioning.training.losses import caption_losses

COMMON, DISTINCT = 0.2, 0.05  # of the images: a caption more common, or fewer distinct captions, and there is an alarm


class Evaluation(NamedTuple):
    metrics: dict[str, float]
    captions: dict[str, str]  # image id -> caption
    candidates: dict[str, list[str]]  # image id -> all hypotheses that the search returned, the caption first
    result: Result  # each image's part in the metrics


def to_device(images: Inputs, device: torch.device) -> Inputs:
    if isinstance(images, ImageFeatures):
        return ImageFeatures(*(part.to(device, non_blocking=True) for part in images))
    return images.to(device, non_blocking=True)


class Evaluator:
    """Captions every image of a split once, on all ranks, and scores them against the raw references."""

    def __init__(
        self,
        batches: ReferenceBatches,
        *,
        vocabulary: Vocabulary,
        search: Search,
        world: World,
        autocast: Callable[[], AbstractContextManager],
    ):
        self.batches, self.vocabulary, self.search = batches, vocabulary, search
        self.world, self.autocast = world, autocast
        self.references = {record.image_id: record.captions for record in batches.images.records}
        self.prepared = prepare(self.references)

    @torch.inference_mode()
    def __call__(self, model: CaptionModel, progress: Callable[[int], None] = lambda images: None) -> Evaluation:
        device = self.world.device
        said: list[tuple[str, list[str]]] = []  # of every image, its id and its candidates
        losses: list[Tensor] = []
        words: list[int] = []
        model.eval()
        for batch in self.batches:
            with self.autocast():
                features = model.encoder(to_device(batch.images, device))
                found = self.search(model.decoder.step, model.decoder.init_state(features))
                losses.append(losses_of(model.decoder, features, batch.tokens))
            each = len(batch.tokens) // len(batch.image_ids)
            words += (batch.tokens[:, 1:] != Vocabulary.pad).unflatten(0, (-1, each)).sum(dim=(1, 2)).tolist()
            texts = [[self.vocabulary.decode(ids) for ids in hypotheses] for hypotheses in found.tokens.tolist()]
            said += zip(batch.image_ids, texts)
            progress(len(batch.image_ids))
        its = list(zip(said, torch.cat(losses).tolist() if losses else [], words))
        return self.evaluation([item for part in self.world.gather(its) for item in part])

    def evaluation(self, its: list[tuple[tuple[str, list[str]], float, int]]) -> Evaluation:
        """its: of every image ((id, its candidates), the loss of its references, their words)."""
        candidates = dict(pair for pair, _, _ in its)
        captions = {name: texts[0] for name, texts in candidates.items()}
        result, said = grade(captions, self.prepared)
        losses = {name: (loss, words) for (name, _), loss, words in its}
        columns = {key: np.array(values) for key, values in zip(("loss", "words"), zip(*(losses[name] for name in result.image_ids)))}
        about = f"vocab:{self.vocabulary.digest[:8]}|max:{self.batches.images.max_length}|{self.prepared.references.about}"
        signatures = {name: f"{name}|{about}|impl:{implementation()}" for name in ("loss", "perplexity")}
        result = Result(result.image_ids, result.columns | columns, result.signatures | signatures)
        return Evaluation(result.metrics | said, captions, candidates, result)


def losses_of(decoder: Decoder, features: ImageFeatures, tokens: Tensor) -> Tensor:
    """(B,) of each image: the sum over its references (B*K, T). Those of like length go together, or half the work would be padding."""
    images, device = len(features.pooled), features.pooled.device
    lengths = (tokens != Vocabulary.pad).sum(dim=1).clamp(min=2)
    losses = torch.zeros(len(tokens), device=device)
    for rows in lengths.argsort().split(images):
        its = tokens[rows, : int(lengths[rows].max())].to(device)
        rows = rows.to(device)
        output = decoder(features.select(rows // (len(tokens) // images)), its[:, :-1])
        losses[rows] = caption_losses(output, its[:, 1:]).float()
    return losses.unflatten(0, (images, -1)).sum(dim=1)


def with_more(evaluation: Evaluation, prepared: "Prepared", training: Sequence[Record], with_java: bool) -> tuple[Evaluation, list[str]]:
    """What is looked at once, not after every epoch: novelty, diversity of candidates, METEOR and SPICE; and why some are left out."""
    captions = [evaluation.captions[name] for name in prepared.names]
    more = diversity([evaluation.candidates[name] for name in prepared.names], prepared.references)
    if training:
        more["novelty"] = novelty(captions, (text for record in training for text in record.captions))
    columns, notes = java_columns(captions, prepared.texts) if with_java else ({}, [])
    if len(captions) < FEW:
        notes.append(few_images(len(captions)))
    result = evaluation.result.extended(columns, prepared.references.about)
    return evaluation._replace(metrics=evaluation.metrics | result.metrics | more, result=result), notes


class Prepared(NamedTuple):
    names: list[str]  # image ids, in the order of the references
    texts: list[Sequence[str]]
    references: References


def prepare(references: Mapping[str, Sequence[str]]) -> Prepared:
    names = sorted(references)
    texts = [references[name] for name in names]
    return Prepared(names, texts, References(texts))


def grade(captions: Mapping[str, str], prepared: Prepared) -> tuple[Result, dict[str, float]]:
    """The result, and what the captions look like, for captions of at least these images."""
    hypotheses = [captions[name] for name in prepared.names]
    return prepared.references.result(hypotheses, prepared.names), describe(hypotheses)


def measure(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Metrics and caption statistics, for those who grade once. References are raw strings, by image id."""
    result, said = grade(captions, prepare(references))
    return result.metrics | said


def warning_of_collapse(captions: Mapping[str, str]) -> str | None:
    """Whether the pictures seem not to matter: one caption for many of them, or few captions in all."""
    counts, images = Counter(captions.values()), len(captions)
    advice = "train longer, or check that the pictures reach the model"
    if images and (most := max(counts.values())) > COMMON * images:
        return f"one caption is given to {most / images:.0%} of the images: {advice}"
    if len(counts) < DISTINCT * images:
        return f"{len(counts)} distinct captions for {images} images: {advice}"
    return None
