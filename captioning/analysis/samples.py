"""Pictures with their captions, references and attention: for TensorBoard, for eval.py and for a look."""

from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from captioning.analysis.overlay import attention_strip, labelled, sheet, stacked
from captioning.data.dataset import ReferenceImages
from captioning.data.transforms import Transform
from captioning.data.vocabulary import Vocabulary
from captioning.models.caption_model import CaptionModel
from captioning.search import Search
from captioning.training.evaluate import to_device
from captioning.training.logger import Logger


class SamplePictures:
    """After a validation: the first few pictures with what the model says of them, into the log."""

    def __init__(self, images: ReferenceImages, count: int, transform: Transform, vocabulary: Vocabulary, search: Search):
        self.images, self.count = images, min(count, len(images.records))
        self.transform, self.vocabulary, self.search = transform, vocabulary, search

    @torch.inference_mode()
    def __call__(self, model: CaptionModel, logger: Logger, step: int) -> None:
        if self.count:
            page, lines = captioned_pictures(model, self.images, self.count, self.transform, self.vocabulary, self.search)
            logger.picture(step, "val/samples", page, "  \n".join(lines))


def captioned_pictures(
    model: CaptionModel,
    images: ReferenceImages,
    count: int,
    transform: Transform,
    vocabulary: Vocabulary,
    search: Search,
) -> tuple[Image.Image, list[str]]:
    """The first `count` pictures with their captions (and attention), and lines of text with the references."""
    batch = images.__getitems__(range(min(count, len(images.records))))
    model.eval()
    inputs = to_device(batch.images, next(model.parameters()).device)
    tokens = model.generate(inputs, search).tokens[:, 0]  # (B, T)
    attention = model.look(model.encoder(inputs), tokens)
    strips, lines = [], []
    for row, record in enumerate(images.records[: len(tokens)]):
        caption = vocabulary.decode(tokens[row].tolist())
        picture = transform.picture(transform.read(record.path))
        strips.append(strip(picture, caption, None if attention is None else attention[row]))
        lines += [
            f"\n{record.image_id}",
            f"  caption:   {caption}",
            *(f"  reference: {text}" for text in record.captions),
        ]
    page = stacked(strips) if attention is not None else sheet(strips, columns=2)
    return page, lines


class Looked(NamedTuple):
    """Where each word of a caption looked."""

    picture: Image.Image  # what the encoder saw
    words: list[str]
    attention: Tensor  # (T, N)


@torch.inference_mode()
def looked(model: CaptionModel, transform: Transform, vocabulary: Vocabulary, file: Path, caption: str) -> Looked:
    """The model reads a caption of its own again, on its picture; the decoder must attend. UserError for an unreadable picture."""
    device = next(model.parameters()).device
    image, words = transform.read(file), caption.split()
    ids = [vocabulary.ids.get(word, vocabulary.unk) for word in words]
    attention = model.look(model.encoder(transform(image)[None].to(device)), torch.tensor([[*ids, vocabulary.eos]], device=device))
    assert attention is not None
    return Looked(transform.picture(image), words, attention[0, : len(words)])


def strip(picture: Image.Image, caption: str, attention: Tensor | None) -> Image.Image:
    """One captioned picture; with attention (T, N), a tile for each of its words."""
    if attention is None:
        return labelled(picture.resize((320, 320), Image.Resampling.BICUBIC), caption)
    words = caption.split()
    return attention_strip(picture, words, attention[: len(words)])
