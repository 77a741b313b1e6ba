"""A trained model as a thing that captions: pictures in, sentences out. The service, the demo and `captioning caption` share it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from captioning.data.transforms import Transform
from captioning.data.vocabulary import Vocabulary
from captioning.models.caption_model import CaptionModel
from captioning.models.encoders import IMAGES_AT_ONCE
from captioning.models.features import ImageFeatures
from captioning.search import Beam


@dataclass(frozen=True)
class Asked:
    """What is wanted of a picture. Pictures of which the same is wanted can share a batch."""

    beam_size: int = 3
    max_length: int = 30  # words, <eos> among them
    candidates: int = 1  # captions, best first; at most beam_size
    looks: bool = False  # also where each word of the best caption looked


class Candidate(NamedTuple):
    caption: str  # as the metrics see it: lower case, words between spaces
    log_p: float
    attention: Tensor | None  # (T, N) on the CPU, where each of its words looked; only where asked, and of a decoder that attends

    @property
    def description(self) -> str:
        return sentence(self.caption)


class Captioner:
    """The model must be in eval mode. `read` and `prepare` may run in several threads at once, the call itself in one.

    beat: called between the parts of the work, for whoever watches whether it goes on.
    """

    def __init__(self, model: CaptionModel, vocabulary: Vocabulary, transform: Transform):
        self.model, self.vocabulary, self.transform = model, vocabulary, transform
        self.beat: Callable[[], None] = lambda: None

    @property
    def attends(self) -> bool:
        return self.model.decoder.attends

    def read(self, picture: Path | bytes) -> Image.Image:
        """Upright and in RGB. Raises UserError in one sentence for what is no picture; its name is `the image` where bytes are given."""
        return self.transform.read(BytesIO(picture) if isinstance(picture, bytes) else picture)

    def prepare(self, image: Image.Image) -> Tensor:
        """(3, size, size)."""
        return self.transform(image)

    @torch.inference_mode()
    def __call__(self, pixels: Sequence[Tensor], asked: Asked) -> list[list[Candidate]]:
        """So many candidates of each picture, best first; fewer where the beam found fewer. Raises ArithmeticError where the model gives
        no numbers."""
        device = next(self.model.parameters()).device
        images = torch.stack(list(pixels)).to(device)
        some = images.split(IMAGES_AT_ONCE if device.type == "cpu" else len(images))
        features = ImageFeatures(*(torch.cat(parts) for parts in zip(*(self.beating(self.model.encoder, few) for few in some))))
        search = Beam(asked.beam_size, asked.candidates, asked.max_length)
        found = search(partial(self.beating, self.model.decoder.step), self.model.decoder.init_state(features))
        if not found.scores[:, 0].isfinite().all():
            raise ArithmeticError("the model's log-probabilities are not finite")
        looked = self.model.look(features, found.tokens[:, 0]) if asked.looks else None  # (B, T, N)
        looked = None if looked is None else looked.float().cpu()
        result = []
        for row, (tokens, scores) in enumerate(zip(found.tokens.tolist(), found.scores.tolist())):
            captions = [self.vocabulary.decode(ids) for ids in tokens]
            result.append([Candidate(text, log_p, None) for text, log_p in zip(captions, scores) if log_p > -float("inf")])
            if looked is not None:
                result[row][0] = result[row][0]._replace(attention=looked[row, : len(captions[0].split())])
        return result

    def beating(self, part: Callable, *given: Any) -> Any:
        self.beat()
        return part(*given)


def sentence(caption: str) -> str:
    """`a dog runs` -> `A dog runs.`"""
    text = " ".join(word.capitalize() if word == "i" or word.startswith("i'") else word for word in caption.split())
    return f"{text[:1].upper()}{text[1:]}." if text else "No description."
