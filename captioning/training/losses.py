"""Losses: sums over words, so that whoever adds them up divides by the words of the whole step."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from captioning.kinds import Fraction, Number
from captioning.models.decoders.additive import rows_at_once
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
    return SummedCrossEntropy.apply(output.logits.flatten(0, 1), targets.flatten(), label_smoothing)


def caption_losses(output: DecoderOutput, targets: Tensor) -> Tensor:
    """(B*K,): each caption's own sum, in float32, a few captions at a time; no gradient."""
    captions = max(1, rows_at_once(output.logits.device, output.logits.shape[2]) // max(1, targets.shape[1]))
    parts = [
        F.cross_entropy(logits.float().transpose(1, 2), target, ignore_index=PAD, reduction="none").sum(dim=1)
        for logits, target in zip(output.logits.split(captions), targets.split(captions))
    ]
    return torch.cat(parts)


class SummedCrossEntropy(torch.autograd.Function):
    """Logits (R, V) of any precision and targets (R,) -> the sum in float32, a few rows at a time.

    The gradient of the logits is made at once, beside them, while their rows are in the processor's cache: no float32 copy, no
    table of log-probabilities. For 10,000 words half the time and a third of the memory of `F.cross_entropy` on float32 copies.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        V, wanted = logits.shape[1], logits.requires_grad
        total = torch.zeros((), device=logits.device)
        # fp16 has no room for small probabilities, and the scale of the loss comes only later
        gradient = torch.empty_like(logits, dtype=torch.float32 if logits.dtype == torch.float16 else None) if wanted else None
        rows = rows_at_once(logits.device, V)
        for start in range(0, len(logits), rows):
            part = slice(start, start + rows)
            target, is_word = targets[part, None], (targets[part, None] != PAD).float()
            log_p = logits[part].float().log_softmax(dim=1)
            loss = (label_smoothing - 1) * log_p.gather(1, target) - label_smoothing * log_p.mean(dim=1, keepdim=True)
            total += (loss * is_word).sum()
            if gradient is not None:
                p = log_p.exp_() - label_smoothing / V
                p.scatter_add_(1, target, p.new_full(target.shape, label_smoothing - 1))
                gradient[part] = p.mul_(is_word)
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, scale: Tensor):
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(scale).to(ctx.dtype), None, None
