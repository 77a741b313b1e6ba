"""An exponential moving average of the trained weights, for validation and the best checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AverageWeights:
    """With a decay of 0 the average is the weights themselves, and nothing is kept."""

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.average = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad and decay}

    @torch.no_grad()
    def update(self, is_bad: Tensor) -> None:
        """is_bad: (), whether the step was left out."""
        for name, parameter in self.model.named_parameters():
            if name in self.average:
                mine = self.average[name]
                mine.copy_(torch.where(is_bad, mine, mine.lerp(parameter, 1 - self.decay)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights inside this block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        for name, parameter in self.model.named_parameters():
            if name in self.average:
                mine = parameter.clone()
                parameter.copy_(self.average[name])
                self.average[name] = mine

    def load(self, average: dict[str, Tensor]) -> None:
        for name, value in self.average.items():
            value.copy_(average[name])
