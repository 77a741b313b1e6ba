"""Scheduled sampling (Bengio et al. 2015): some input words of teacher forcing are the model's own."""

import torch
from torch import Tensor

from captioning.data.vocabulary import Vocabulary
from captioning.models.caption_model import CaptionModel
from captioning.models.features import Inputs
from captioning.sampling import draw


@torch.no_grad()
def with_own_words(model: CaptionModel, images: Inputs, tokens: Tensor, replaced: Tensor) -> Tensor:
    """tokens (B*K, T) with the words at `replaced` (B*K, T) drawn from the model, which has read the words replaced before them.

    No gradient flows through a draw, so teacher forcing on the result is the gradient of the step-by-step method. <bos>, <eos> and
    <pad> stay: the captions keep their lengths.
    """
    replaced = replaced.to(tokens.device) & (tokens != Vocabulary.pad) & (tokens != Vocabulary.eos) & (tokens != Vocabulary.bos)
    mixed = tokens.clone()
    state = model.decoder.begin(model.encoder(images), len(tokens))
    for t in range(tokens.shape[1] - 2):
        logits, state = model.decoder.step(mixed[:, t], state)
        drawn = draw(logits.float())
        mixed[:, t + 1] = torch.where(replaced[:, t + 1], drawn, tokens[:, t + 1])
    return mixed
