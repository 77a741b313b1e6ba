"""The training curve: means over the steps since the last log. They outlive a kill, so that the curve has no seam."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor


class Window:
    def __init__(self, names: Sequence[str], sums: Sequence[float], device: torch.device):
        """names: of the figures that each step gives. sums: of these and of the steps, as a run that was killed had them."""
        self.names = names
        self.sums = torch.tensor(sums or [0.0] * (len(names) + 1), device=device)
        self.words, self.began = torch.zeros((), device=device), time.monotonic()

    def add(self, means: Tensor, count: Tensor, is_bad: Tensor) -> None:
        """means (F,) of one step over `count` words; a step that was left out says nothing of the loss."""
        step = torch.cat([means, means.new_ones(1)])
        self.sums = self.sums + torch.where(is_bad, torch.zeros_like(step), step)
        self.words = self.words + count

    def close(self) -> tuple[dict[str, float], float]:
        """The means, none where every step was left out, and words a second of this process. A new window begins."""
        now = time.monotonic()
        steps = self.sums[-1].item()
        means = dict(zip(self.names, (self.sums[:-1] / steps).tolist())) if steps else {}
        rate = self.words.item() / (now - self.began)
        self.sums, self.words, self.began = torch.zeros_like(self.sums), torch.zeros_like(self.words), now
        return means, rate
