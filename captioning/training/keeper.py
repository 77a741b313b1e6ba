"""What a run keeps: `last`, everything that its next step depends on, the one before it, and `best`."""

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from captioning.data.dataset import TrainingBatches
from captioning.training import checkpoint
from captioning.training.console import say
from captioning.training.settings import Progress, Settings
from captioning.training.step import Stepper


class Keeper:
    """Only the first rank writes; all read."""

    def __init__(self, run: Path, settings: Settings, *, steps: Stepper, batches: TrainingBatches, identity: dict[str, Any]):
        """identity: what a checkpoint must be of, to go on from it."""
        self.run, self.settings, self.steps, self.batches, self.identity = run, settings, steps, batches, identity
        self.model, self.saved = steps.model, time.monotonic()
        encoder = self.model.encoder
        self.frozen = {f"encoder.{name}" for name in encoder.state_dict()} if encoder.is_frozen else set()

    def is_time(self, at: Progress) -> bool:
        """For a checkpoint inside an epoch: by steps, or by the clock."""
        every, minutes = self.settings.checkpoint_every, self.settings.checkpoint_minutes
        return bool(every and at.step % every == 0) or bool(minutes and time.monotonic() - self.saved > 60 * minutes)

    def weights(self) -> dict[str, Tensor]:
        """Without a frozen encoder's: the run directory has them once."""
        return {name: value for name, value in self.model.state_dict().items() if name not in self.frozen}

    def save(self, at: Progress) -> None:
        self.saved = time.monotonic()
        if not self.steps.world.is_main:
            return
        optimizer, rest = checkpoint.taken_apart(self.steps.optimizer)
        average = self.steps.average.average
        tensors = {"model": self.weights(), "optimizer": optimizer} | ({"average": average} if average else {})
        state = {
            "of": self.identity,
            "progress": asdict(at),
            "optimizer": rest,
            "schedule": self.steps.schedule.state(),
            "scaler": self.steps.scaler.state_dict(),
            "together": self.batches.together,
        }
        checkpoint.save(self.run / "last", tensors=tensors, state=state, keep_before=True)

    def save_best(self, at: Progress) -> None:
        if self.steps.world.is_main:
            state = {"epoch": at.epoch, "step": at.step, "metrics": at.metrics, "of": self.identity}
            checkpoint.save(self.run / "best", tensors={"model": self.weights()}, state=state)

    def resume(self) -> Progress:
        """From the last checkpoint that is whole, if there is any. Raises UserError for one of another model or vocabulary."""
        steps, average = self.steps, self.steps.average
        folder, problem = checkpoint.newest_whole(self.run / "last", "model", "optimizer", *(["average"] if average.average else []))
        if folder is None:
            return Progress()
        state = checkpoint.load_state(folder)
        checkpoint.refuse_another(folder, state.get("of", {}), self.identity)
        checkpoint.load_weights(self.model, checkpoint.load_tensors(folder, "model"), folder)
        if average.average:
            average.load(checkpoint.load_tensors(folder, "average"))
        checkpoint.put_together(steps.optimizer, checkpoint.load_tensors(folder, "optimizer"), state["optimizer"])
        steps.schedule.load(state["schedule"])
        steps.scaler.load_state_dict(state["scaler"])
        at = Progress(**state["progress"])
        if steps.world.is_main:
            if problem:
                say(f"warning: {problem}; going on from the one before it")
                shutil.rmtree(self.run / "last")  # or the next save would take it for the one to keep
            checkpoint.tidy(self.run / "last", keep_before=True)
            checkpoint.tidy(self.run / "best", keep_before=False)
            say(f"resuming {self.run} at epoch {at.epoch + (not at.is_due)}, step {at.step}")
        return at
