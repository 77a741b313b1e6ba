"""The settings of a training run, as `configs/trainer/` has them, and where such a run is."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal

import torch

from captioning.kinds import Count, Dropout, Fraction, Number, Whole

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """
    max_steps: stop there, should the epochs not be over before; 0: no limit.
    accumulate: batches a step; the gradient is that of one large batch.
    clip: the largest norm of the gradient; 0: no limit.
    validate_every: epochs between validations; the last is always followed by one.
    monitor: the validation metric that decides on the best checkpoint, on plateaus and on stopping (`loss`: the lower the better).
    patience: stop after so many validations without a new best; 0: never.
    average: decay of an exponential moving average of the weights, which is then what is validated and kept as best; 0: none.
    scheduled_sampling: the share of input words taken from the model itself, reached linearly at the end (Bengio et al. 2015).
    checkpoint_every: steps between checkpoints inside an epoch; 0: none by steps.
    checkpoint_minutes: minutes between them; 0: none by time. There is one after each epoch in any case.
    samples: how many validation pictures are logged with their captions.
    """

    epochs: Count = 10
    max_steps: Whole = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: Count = 1
    clip: Number = 5.0
    validate_every: Count = 1
    monitor: str = "cider"
    patience: Whole = 0
    average: Dropout = 0.0
    scheduled_sampling: Fraction = 0.0
    compile: bool = False
    deterministic: bool = False
    checkpoint_every: Whole = 0
    checkpoint_minutes: Number = 10.0
    log_every: Count = 20
    samples: Whole = 4


@dataclass
class Progress:
    """Where a run is. With the weights, the optimizer, the schedule and the scaler it is all that a resume needs."""

    epoch: int = 0  # epochs completed
    batch: int = 0  # batches taken in the current one
    step: int = 0
    is_due: bool = False  # the epoch's validation is
    best: float | None = None
    waited: int = 0  # validations since the best
    metrics: dict[str, float] = field(default_factory=dict)  # of the last validation
    history: list[dict[str, float | None]] = field(
        default_factory=list
    )  # of every validation: epoch, step, seconds, train_loss and its metrics
    loss: float | None = None  # in training, as last logged
    logged_at: int = 0  # the step of the last log
    logged: dict[str, float] = field(default_factory=dict)  # what the curve has of it
    window: list[float] = field(default_factory=list)  # sums since then, and of how many steps
    skipped: int = 0  # steps that were left out: their loss or gradient was not finite
    skipped_in_a_row: int = 0
    seconds: float = 0.0  # in training steps
    peak_memory: int = 0  # bytes: the GPU's, or the process's on a CPU


def ended_by(settings: Settings, at: Progress) -> str | None:
    """The setting that ended the run, if it is over."""
    if at.is_due:
        return None
    over = {
        "trainer.epochs": at.epoch >= settings.epochs,
        "trainer.max_steps": bool(settings.max_steps and at.step >= settings.max_steps),
        "trainer.patience": bool(settings.patience and at.waited >= settings.patience),
    }
    return next((name for name, is_over in over.items() if is_over), None)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")
