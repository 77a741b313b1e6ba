"""Losses: what a batch teaches, and a sum over its words; whoever adds the sums up divides by the count of the whole step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.autograd.function import once_differentiable

from captioning.data.dataset import Batch
from captioning.data.records import Record
from captioning.data.vocabulary import Vocabulary
from captioning.kinds import Fraction, Number
from captioning.models.caption_model import CaptionModel
from captioning.models.decoders.additive import rows_at_once
from captioning.models.decoders.base import DecoderOutput
from captioning.training.scheduled_sampling import with_own_words

PAD = 0


class Turn(NamedTuple):
    """A step of the run, for what is drawn in it."""

    own_words: float  # the share of scheduled sampling that it has reached
    draws: Generator


class Lesson(NamedTuple):
    """What a batch teaches, by teacher forcing: the logits after `inputs[:, :-1]` are to give `tokens[:, 1:]`."""

    inputs: Tensor  # (B*K, T + 1)
    tokens: Tensor  # (B*K, T + 1)
    weights: Tensor | None = None  # (B*K, T): how much each word counts; None: every word 1, <pad> 0
    facts: Sequence[Tensor] = ()  # sums of what the loss has names for


class Loss:
    """What a training step makes smaller: the sum over all its batches, divided by their count."""

    counts = "words"  # what `count` counts
    facts: tuple[str, ...] = ()  # names of more figures for the log, which are divided by the count too
    reads_captions = True  # False: the captions of a batch are not looked at, so each image is one item

    def read(self, records: Sequence[Record], vocabulary: Vocabulary) -> None:
        """Told of the training split before the first step."""

    def count(self, batch: Batch) -> int:
        """Known before anything is drawn, so that all ranks can divide by the sum of it."""
        raise NotImplementedError

    def lesson(self, model: CaptionModel, batch: Batch, turn: Turn) -> Lesson:
        """No gradient flows through it. It may draw, from `turn.draws` and from torch's own generator, and from nothing else."""
        raise NotImplementedError

    def __call__(self, output: DecoderOutput, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """DecoderOutput for inputs[:, :-1], targets tokens[:, 1:] (B*K, T) and their weights -> a scalar, in float32."""
        raise NotImplementedError


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Cross-entropy of the next word, summed over the words of a batch.

    label_smoothing: Szegedy et al. 2016, section 7.
    doubly_stochastic: the weight of Show, Attend and Tell's penalty (equation 14), (1 - the attention a cell gets over a caption)^2,
        here averaged over the cells and counted once a word of the caption, so that it shares the loss's denominator.
    """

    label_smoothing: Fraction = 0.0
    doubly_stochastic: Number = 0.0

    def count(self, batch: Batch) -> int:
        return int((batch.tokens[:, 1:] != PAD).sum())

    def lesson(self, model: CaptionModel, batch: Batch, turn: Turn) -> Lesson:
        """The captions themselves; with scheduled sampling, some of the words read are the model's own."""
        if not turn.own_words:
            return Lesson(batch.tokens, batch.tokens)
        replaced = torch.rand(batch.tokens.shape, generator=turn.draws) < turn.own_words
        return Lesson(with_own_words(model, batch.images, batch.tokens, replaced), batch.tokens)

    def __call__(self, output: DecoderOutput, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        loss = cross_entropy(output, targets, self.label_smoothing, weights)
        if self.doubly_stochastic and output.attention is not None:
            said = (targets != PAD).float()
            received = (output.attention.float() * said[:, :, None]).sum(dim=1)  # (B, N)
            loss = loss + self.doubly_stochastic * ((1 - received).square().mean(dim=1) * said.sum(dim=1)).sum()
        return loss


def cross_entropy(output: DecoderOutput, targets: Tensor, label_smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """Summed over words, each as often as it weighs; the plain one is what validation reports."""
    weights = (targets != PAD).float() if weights is None else weights
    return SummedCrossEntropy.apply(output.logits.flatten(0, 1), targets.flatten(), weights.flatten(), label_smoothing)


def caption_losses(output: DecoderOutput, targets: Tensor) -> Tensor:
    """(B*K,): each caption's own sum, in float32, a few captions at a time; no gradient."""
    captions = max(1, rows_at_once(output.logits.device, output.logits.shape[2]) // max(1, targets.shape[1]))
    parts = [
        F.cross_entropy(logits.float().transpose(1, 2), target, ignore_index=PAD, reduction="none").sum(dim=1)
        for logits, target in zip(output.logits.split(captions), targets.split(captions))
    ]
    return torch.cat(parts)


class SummedCrossEntropy(torch.autograd.Function):
    """Logits (R, V) of any precision, targets (R,) and their weights (R,) -> the sum in float32, a few rows at a time.

    The gradient of the logits is made at once, beside them, while their rows are in the processor's cache: no float32 copy, no
    table of log-probabilities. For 10,000 words half the time and a third of the memory of `F.cross_entropy` on float32 copies.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, weights: Tensor, label_smoothing: float) -> Tensor:
        V, wanted = logits.shape[1], logits.requires_grad
        total = torch.zeros((), device=logits.device)
        # fp16 has no room for small probabilities, and the scale of the loss comes only later
        gradient = torch.empty_like(logits, dtype=torch.float32 if logits.dtype == torch.float16 else None) if wanted else None
        rows = rows_at_once(logits.device, V)
        for start in range(0, len(logits), rows):
            part = slice(start, start + rows)
            target, weight = targets[part, None], weights[part, None]
            log_p = logits[part].float().log_softmax(dim=1)
            loss = (label_smoothing - 1) * log_p.gather(1, target) - label_smoothing * log_p.mean(dim=1, keepdim=True)
            total += (loss * weight).sum()
            if gradient is not None:
                p = log_p.exp_() - label_smoothing / V
                p.scatter_add_(1, target, p.new_full(target.shape, label_smoothing - 1))
                gradient[part] = p.mul_(weight)
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, scale: Tensor):
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(scale).to(ctx.dtype), None, None, None
