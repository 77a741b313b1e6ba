"""Losses: sums over words, so that whoever adds them up divides by the words of the whole step."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from captioning.kinds import Fraction, Number
from captioning.models.decoders.base import DecoderOutput

PAD = 0


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of the next word, summed over the words of a batch.

    label_smoothing: Szegedy et al. 2016, section 7.
    doubly_stochastic: the weight of Show, Attend and Tell's penalty (equation 14), (1 - the attention a cell gets over a caption)^2,
        here averaged over the cells and counted once a word of the caption, so that it shares the loss's denominator.
    """

    label_smoothing: Fraction = 0.0
    doubly_stochastic: Number = 0.0

    def __call__(self, output: DecoderOutput, targets: Tensor) -> Tensor:
        """DecoderOutput for tokens[:, :-1] and targets tokens[:, 1:] (B, T) -> a scalar, in float32."""
        loss = cross_entropy(output, targets, self.label_smoothing)
        if self.doubly_stochastic and output.attention is not None:
            said = (targets != PAD).float()
            received = (output.attention.float() * said[:, :, None]).sum(dim=1)  # (B, N)
            loss = loss + self.doubly_stochastic * ((1 - received).square().mean(dim=1) * said.sum(dim=1)).sum()
        return loss


def cross_entropy(output: DecoderOutput, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Summed over words; the plain one is what validation reports."""
    logits = output.logits.flatten(0, 1).float()
    return F.cross_entropy(logits, targets.flatten(), ignore_index=PAD, reduction="sum", label_smoothing=label_smoothing)
