"""Steps that are not finite: nothing of them is in weights, memory, statistics, averages or files; they are counted, and named."""

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.faults.kills import DECODERS
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.training import CNN, MODEST, differences, trainer_of
from captioning.errors import UserError

STEPS, SPOILT, KILLED = 10, (2, 3), 6  # of these, counted from 0; a checkpoint is there after the fifth
WORDS = [
    *MODEST, *CNN, "data.batch_size=4", "trainer.average=0.9", "logger=none", "trainer.samples=0", f"trainer.max_steps={STEPS}",
]  # fmt: skip
SCALE = 2.0**21  # too large for fp16 by a factor that is halved away in a few steps


class Killed(Exception):
    pass


def guards(folder: Path, decoders: tuple[str, ...] = ("lstm", "gru", "attention"), faults: tuple[str, ...] = ()) -> Outcome:
    """faults: all of them, if none is given."""
    problems, skipped = {}, []
    for decoder in decoders:
        for name in faults or FAULTS:
            spoil = FAULTS[name]
            precision = ["trainer.precision=fp16"] if spoil is overflow else []
            words = [*WORDS, *DECODERS[decoder], *precision]
            try:
                whole, text = trained(folder, words, f"{decoder}-{name}", spoil)
                killed, _ = trained(folder, words, f"{decoder}-{name}-killed", spoil, KILLED)
            except UserError as error:
                problems[f"{name}, {decoder}"] = [f"ended: {error}"]
                continue
            its = [f"not finite: {place}" for place in not_finite(whole) + not_finite(killed)]
            its += differences(whole.run, killed.run)
            its += wrongly_told(whole, text, spoil)
            problems[f"{name}, {decoder}"] = its
            skipped.append(whole.progress.skipped)
    wrong = [f"{name}: {', '.join(its)}" for name, its in problems.items() if its]
    note = f"{sum(skipped)} steps left out of {STEPS * len(skipped)}; 0 tensors that are not finite"
    return Outcome(
        "NaN loss, infinite gradient, poisoned sample, overflow", len(problems), len(problems) - len(wrong), "; ".join([note, *wrong])
    )


def trained(folder: Path, words: list[str], name: str, spoil: Callable[[Any], None], killed: int = 0) -> tuple[Any, str]:
    """The trainer when all is over, and what it has said. killed: in this step, and started again."""
    words, said = [*words, f"run={folder / name.replace(' ', '-')}"], io.StringIO()
    with redirect_stdout(said):
        trainer = with_statistics(folder, words)
        spoil(trainer)
        if killed:
            die_in(trainer, killed)
            try:
                trainer.fit()
            except Killed:
                trainer = with_statistics(folder, words)
                spoil(trainer)
        trainer.fit()
    return trainer, said.getvalue()


def with_statistics(folder: Path, words: list[str]) -> Any:
    """The small encoder, with BatchNorm: a network that has it by itself writes a hundred megabytes in every checkpoint."""
    with patch.object(nn, "GroupNorm", lambda groups, channels: nn.BatchNorm2d(channels)):
        return trainer_of(folder, words)


def die_in(trainer: Any, step: int) -> None:
    judge = trainer.step.guard.step

    def dying(*arguments):
        if trainer.progress.step == step:
            raise Killed
        return judge(*arguments)

    trainer.step.guard.step = dying


# What must hold


def not_finite(trainer: Any) -> list[str]:
    """Of all that the process has, and of all that it has written."""
    from captioning.training import checkpoint

    groups: dict[str, dict[str, Tensor]] = {"weights and statistics": trainer.model.state_dict(), "average": trainer.step.average.average}
    groups["memory"] = checkpoint.taken_apart(trainer.step.optimizer)[0]
    for file in sorted(trainer.run.glob("*/*.safetensors")):
        groups[f"{file.parent.name}/{file.name}"] = checkpoint.load_tensors(file.parent, file.stem)
    groups["statistics"] = {name: value for name, value in trainer.model.state_dict().items() if "running" in name}
    absent = [name for name, tensors in groups.items() if not tensors] + ([] if len(groups) > 5 else ["files"])
    return [name for name, tensors in groups.items() if not all(value.isfinite().all() for value in tensors.values())] + absent


def wrongly_told(trainer: Any, text: str, spoil: Callable[[Any], None]) -> list[str]:
    """Every step that was left out is counted, and named with its images; an overflow is counted only: so fp16 finds its scale."""
    warnings = [line for line in text.splitlines() if line.startswith("warning: step ")]
    skipped = trainer.progress.skipped
    if spoil is overflow:
        return [] if 0 < skipped < STEPS - 2 and not warnings else [f"{skipped} left out, said {warnings}"]
    what = "the gradient" if spoil is infinite_gradient else "the loss"
    ids = [batch.image_ids for batch in trainer.batches.epoch(0)]
    steps = SPOILT[:1] if spoil is poisoned_sample else SPOILT
    expected = [
        f"warning: step {step + 1}: {what} is not finite; the step is left out. Its images: {', '.join(ids[step])}" for step in steps
    ]
    return [] if skipped == len(steps) and warnings == expected else [f"{skipped} left out, said {warnings}"]


# Faults: of positions, so that a run that goes on meets them too


def spoilt_loss(trainer: Any, change: Callable[[Tensor], Tensor]) -> None:
    loss = trainer.step.loss

    class Spoilt(type(loss)):
        def __call__(self, output, targets, weights=None):
            value = super().__call__(output, targets, weights)
            return change(value) if trainer.progress.step in SPOILT and torch.is_grad_enabled() else value

    object.__setattr__(loss, "__class__", Spoilt)  # it is frozen


def nan_loss(trainer: Any) -> None:
    spoilt_loss(trainer, lambda value: value * float("nan"))


def infinite_gradient(trainer: Any) -> None:
    def change(value: Tensor) -> Tensor:
        value.register_hook(lambda gradient: gradient * float("inf"))  # the loss itself stays finite
        return value

    spoilt_loss(trainer, change)


def poisoned_sample(trainer: Any) -> None:
    epoch = trainer.batches.epoch

    def poisoned(number: int, start: int = 0):
        for place, batch in enumerate(epoch(number, start=start), start=start):
            if place == SPOILT[0]:
                batch.images[1, 0, 5, 5] = float("nan")
            yield batch

    trainer.batches.epoch = poisoned


def overflow(trainer: Any) -> None:
    if not (trainer.run / "last").exists():
        trainer.step.scaler.load_state_dict(trainer.step.scaler.state_dict() | {"scale": SCALE})


FAULTS = {
    "NaN loss": nan_loss,
    "infinite gradient": infinite_gradient,
    "poisoned sample": poisoned_sample,
    "overflow of the scale": overflow,
}
