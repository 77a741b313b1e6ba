"""Learning-rate schedules: a factor for every step. Plateau alone has a memory, which is saved with the checkpoint."""

import math
from dataclasses import dataclass, field
from typing import Any

from captioning.kinds import Count, Fraction, Whole


@dataclass
class Schedule:
    """Warm-up, then constant. All others warm up in the same way: linearly, over `warmup` steps."""

    warmup: Whole = 0

    def factor(self, step: int, total: int, per_epoch: int) -> float:
        """What the learning rates are multiplied with in this step (counted from 0)."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return self.after_warmup(step - self.warmup, max(1, total - self.warmup), per_epoch)

    def after_warmup(self, step: int, total: int, per_epoch: int) -> float:
        return 1.0

    def observe(self, improved: bool) -> None:
        """Told after each validation whether the monitored metric is the best so far."""

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


@dataclass
class Cosine(Schedule):
    """Down to `floor` times the learning rate at the last step (Loshchilov and Hutter 2017, without restarts)."""

    floor: Fraction = 0.0

    def after_warmup(self, step: int, total: int, per_epoch: int) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * min(1.0, step / total))) / 2


@dataclass
class StepDecay(Schedule):
    """Times `gamma` after every `every` epochs."""

    every: Count = 3
    gamma: Fraction = 0.8

    def after_warmup(self, step: int, total: int, per_epoch: int) -> float:
        return self.gamma ** (step // (self.every * per_epoch))


@dataclass
class Plateau(Schedule):
    """Times `gamma` whenever the monitored metric has not improved for `patience` validations."""

    patience: Count = 2
    gamma: Fraction = 0.5
    memory: dict[str, float] = field(default_factory=lambda: {"factor": 1.0, "waited": 0}, init=False)

    def after_warmup(self, step: int, total: int, per_epoch: int) -> float:
        return self.memory["factor"]

    def observe(self, improved: bool) -> None:
        self.memory["waited"] = 0 if improved else self.memory["waited"] + 1
        if self.memory["waited"] >= self.patience:
            self.memory = {"factor": self.memory["factor"] * self.gamma, "waited": 0}

    def state(self) -> dict[str, Any]:
        return {"memory": self.memory}
