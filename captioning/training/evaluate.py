"""Evaluation: captions made freely, one an image, and what the metrics say of them. No metric sees a teacher-forced caption."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from captioning.data.dataset import ReferenceBatches
from captioning.data.vocabulary import Vocabulary
from captioning.metrics.score import References, describe
from captioning.models.caption_model import CaptionModel
from captioning.models.features import ImageFeatures, Inputs
from captioning.search import Search
from captioning.training.distributed import World
from captioning.training.losses import cross_entropy


class Evaluation(NamedTuple):
    metrics: dict[str, float]
    captions: dict[str, str]  # image id -> caption


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
        device, captions = self.world.device, {}
        losses: list[Tensor] = []
        words = 0
        model.eval()
        for batch in self.batches:
            with self.autocast():
                features = model.encoder(to_device(batch.images, device))
                found = self.search(model.decoder.step, model.decoder.init_state(features))
                tokens = batch.tokens.to(device)
                output = model.decoder(features, tokens[:, :-1])
            losses.append(cross_entropy(output, tokens[:, 1:]))
            words += int((batch.tokens[:, 1:] != Vocabulary.pad).sum())
            texts = (self.vocabulary.decode(ids) for ids in found.tokens[:, 0].tolist())
            captions.update(zip(batch.image_ids, texts))
            progress(len(batch.image_ids))
        captions = {name: text for its in self.world.gather(captions) for name, text in its.items()}
        totals = self.world.gather((sum(float(loss) for loss in losses), words))
        loss, words = (sum(its) for its in zip(*totals))
        return Evaluation(grade(captions, self.prepared) | {"loss": loss / max(1, words)}, captions)


class Prepared(NamedTuple):
    names: list[str]  # image ids, in the order of the references
    references: References


def prepare(references: Mapping[str, Sequence[str]]) -> Prepared:
    names = sorted(references)
    return Prepared(names, References([references[name] for name in names]))


def grade(captions: Mapping[str, str], prepared: Prepared) -> dict[str, float]:
    """Metrics and caption statistics, for captions of at least these images."""
    hypotheses = [captions[name] for name in prepared.names]
    return prepared.references.score(hypotheses) | describe(hypotheses)


def measure(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """`grade`, for those who grade once. References are raw strings, by image id."""
    return grade(captions, prepare(references))


def warning_of_collapse(metrics: Mapping[str, float]) -> str | None:
    if metrics["most_common_share"] > 0.2 and metrics["distinct_captions"] > 0:
        share = metrics["most_common_share"]
        return f"one caption is given to {share:.0%} of the images: train longer, or check that the pictures reach the model"
    return None
