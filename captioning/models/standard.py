"""Features of one scale: every channel with mean 0 and variance 1, whichever encoder they come from."""

import torch
from torch import Tensor, nn

LEAST = 0.1  # of the mean deviation: channels that hardly move are not blown up to noise


class Standard(nn.Module):
    """x -> (x - mean) / deviation, channel by channel, with statistics that are measured once, before the first step.

    Channels of a CNN's features have means of their own, larger than what differs between images. Adam moves all weights at one rate, so
    without this the means are learned first. Measured once, a caption's loss depends on no other caption of its batch.
    (Krähenbühl et al. 2016 and Salimans and Kingma 2016 start networks from their data; BatchNorm would go on measuring.)
    """

    mean: Tensor
    scale: Tensor
    measured: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("measured", torch.zeros(()))  # vectors that were; 0: not yet

    def train(self, mode: bool = True) -> "Standard":
        return super().train(False)  # nothing moves in passing: no step has to remember it, no rank to share it

    def forward(self, x: Tensor) -> Tensor:
        """(..., C), in its own precision."""
        return (x - self.mean.to(x.dtype)) * self.scale.to(x.dtype)

    def set(self, sums: Tensor) -> None:
        """sums: (3, C), what `sums_of` gives, added up over all that is measured."""
        count, total, squares = sums
        deviation = (squares / count - (total / count).square()).clamp(min=0).sqrt()
        self.mean.copy_(total / count)
        self.scale.copy_(1 / deviation.clamp(min=LEAST * deviation.mean().clamp(min=1e-6)))
        self.measured.copy_(count[0])


def sums_of(x: Tensor) -> Tensor:
    """(..., C) -> (3, C): how many vectors, their sum, the sum of their squares."""
    rows = x.flatten(0, -2).float()
    return torch.stack([torch.full_like(rows[0], len(rows)), rows.sum(dim=0), rows.square().sum(dim=0)])
