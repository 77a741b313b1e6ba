"""The training loop: the same for every encoder and decoder, for one process or many, fresh or resumed."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captioning.data.dataset import Batch, TrainingBatches
from captioning.errors import WorkerFailure
from captioning.models.caption_model import CaptionModel
from captioning.models.standard import sums_of
from captioning.training.console import Advance, progress, say
from captioning.training.curve import Window
from captioning.training.distributed import World
from captioning.training.evaluate import Evaluation, Evaluator, to_device, warning_of_collapse
from captioning.training.guard import unmoved
from captioning.training.keeper import Keeper
from captioning.training.logger import Logger
from captioning.training.losses import Loss
from captioning.training.memory import forget_peak, peak_memory
from captioning.training.schedules import Schedule
from captioning.training.settings import Progress, Settings, ended_by
from captioning.training.signals import Signals
from captioning.training.step import Stepper

MEASURED = 8  # batches whose features are looked at before the first step


class Asked(Exception):
    """By a signal, to end: raised where nothing is half done."""


class Trainer:
    def __init__(
        self,
        settings: Settings,
        *,
        model: CaptionModel,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        batches: TrainingBatches,
        evaluator: Evaluator,
        logger: Logger,
        world: World,
        run: Path,
        seed: int,
        identity: dict[str, Any],
        show: Callable[[CaptionModel, Logger, int], None],
        hparams: dict[str, Any],
        gives_up: Callable[[Progress], bool] = lambda at: False,
    ):
        """identity: what a checkpoint must be of, to go on from it. gives_up: asked after each validation; True ends training there (a
        search over settings prunes by it)."""
        self.settings, self.model, self.loss, self.schedule = settings, model, loss, schedule
        self.batches, self.evaluator, self.logger, self.world, self.run = batches, evaluator, logger, world, run
        self.show, self.hparams, self.gives_up = show, hparams, gives_up
        self.steps_per_epoch = math.ceil(len(batches.order(0)) / settings.accumulate)
        self.step = Stepper(
            settings,
            model=model,
            loss=loss,
            optimizer=optimizer,
            schedule=schedule,
            world=world,
            seed=seed,
            steps_per_epoch=self.steps_per_epoch,
        )
        self.keeper = Keeper(run, settings, steps=self.step, batches=batches, identity=identity)
        self.progress, self.signals = Progress(), Signals()

    # The whole run

    def fit(self) -> Evaluation | None:
        """Train to the end, from the last checkpoint if there is one. Returns the last evaluation; None when all was done before.

        Raises Stopped after a signal, with a checkpoint of the last step. One process alone keeps one when a data worker fails, too.
        """
        self.progress = at = self.keeper.resume()
        if self.is_finished:
            return None
        self.open_logger()
        forget_peak(self.world.device)
        self.measure_features()
        evaluation = None
        with self.signals, closing(self.logger):
            while not self.is_finished:
                try:
                    if not at.is_due:
                        self.train_epoch()
                    if self.world.size > 1:
                        self.save()  # ranks validate together: a signal has to wait, and whoever sent it may not
                    evaluation = self.validate()
                except Asked:
                    self.stop()
                except WorkerFailure:
                    self.save()
                    if not self.signals.received:  # else the signal was for the whole group, and ended the workers
                        raise
                    self.stop()
                else:
                    if self.gives_up(at):
                        self.logger.settings(at.step, self.hparams, at.metrics)
                        break
            if self.signals.received:
                self.stop()  # the run is at its end, but what it is one of is not
        return evaluation

    @torch.no_grad()
    def measure_features(self) -> None:
        """The decoder's standard of its features, from some training images; unless it has one, from a checkpoint."""
        encoder, decoder = self.model.encoder, self.model.decoder
        if decoder.standard.measured:
            return
        encoder.eval()
        batches = self.batches.first(MEASURED)
        seen = (decoder.looks_at(encoder(to_device(batch.images, self.world.device))) for batch in batches)
        decoder.standard.set(self.world.sum(torch.stack([sums_of(x) for x in seen]).sum(dim=0)))

    @property
    def is_finished(self) -> bool:
        return self.ended_by is not None

    @property
    def ended_by(self) -> str | None:
        return ended_by(self.settings, self.progress)

    def stop(self) -> None:
        """Raises Stopped, unless whoever handled the signal before lets the run go on."""
        self.save()
        epoch = min(self.settings.epochs, self.progress.epoch + (not self.progress.is_due))
        self.signals.obey(f"at epoch {epoch}, step {self.progress.step}")

    def save(self) -> None:
        self.logger.flush()  # first: no checkpoint is ahead of its curve
        self.keeper.save(self.progress)

    # One epoch

    def train_epoch(self) -> None:
        """From where the epoch is to its end, or to the last step of the run. Raises Asked where the run is to end before."""
        at, settings = self.progress, self.settings
        self.step.begin_epoch(at.epoch)
        epoch = self.batches.epoch(at.epoch, start=at.batch)
        self.window, self.clock = Window(("loss", *self.loss.facts), at.window, self.world.device), time.monotonic()
        title, done = f"epoch {at.epoch + 1}/{settings.epochs}", at.batch // settings.accumulate
        try:
            with unmoved(self.model.encoder), progress(title, self.steps_per_epoch, done, self.world.is_main) as advance:
                while group := take(epoch, settings.accumulate):
                    taken = self.step(group, at, asked=lambda: bool(self.signals.received))
                    at.batch, at.step = at.batch + len(group), at.step + 1
                    self.window.add(taken.means, taken.count, taken.is_bad)
                    advance(1, self.log(taken.norm) if at.step % settings.log_every == 0 else "")
                    if settings.max_steps and at.step >= settings.max_steps:
                        break
                    if taken.is_asked:
                        raise Asked
                    if self.keeper.is_time(at):
                        self.settle()
                        self.save()
                else:
                    at.epoch, at.batch = at.epoch + 1, 0
            self.step.share_statistics()
            at.is_due = True
        finally:
            self.settle()

    def log(self, norm: Tensor) -> str:
        """The means since the last log into the logger; in words, for the terminal."""
        at, rates = self.progress, [group["lr"] for group in self.step.optimizer.param_groups]
        means, speed = self.window.close()
        at.loss = means.get("loss", at.loss)
        figures = means | {"gradient_norm": norm.item(), f"{self.loss.counts}_per_second": speed, "skipped_steps": at.skipped}
        figures |= {f"lr_{number}": rate for number, rate in enumerate(rates)}
        at.logged_at, at.logged = at.step, {f"train/{name}": value for name, value in figures.items()}
        self.logger.scalars(at.step, at.logged)
        return ", ".join(f"{name} {value:.3f}" for name, value in means.items())

    def settle(self) -> None:
        """Progress is told what is known of the steps until now, and of their time."""
        at, now = self.progress, time.monotonic()
        self.step.guard.read(at)
        at.window = self.window.sums.tolist()
        at.seconds, self.clock = at.seconds + now - self.clock, now
        at.peak_memory = max(at.peak_memory, peak_memory(self.world.device))

    def open_logger(self) -> None:
        """What was logged after the checkpoint is hidden. Where a validation is due, it may have been logged, at this very step: then
        the step goes too, and its training figures are written again."""
        at = self.progress
        self.logger.open(self.run / "tensorboard", at.step + (not at.is_due))
        if at.is_due and at.step == at.logged_at:
            self.logger.scalars(at.step, at.logged)

    # After an epoch

    def validate(self) -> Evaluation:
        """Raises Asked where the run is to end before it is through; of several processes none leaves the others."""
        at, settings, began = self.progress, self.settings, time.monotonic()
        with self.step.average.in_place():
            with progress("validation", len(self.evaluator.references), 0, self.world.is_main) as advance:
                evaluation = self.evaluator(self.model, self.unless_asked(advance))
            value = evaluation.metrics[settings.monitor]
            at.metrics, at.is_due = evaluation.metrics, False
            about = {"epoch": at.epoch, "step": at.step, "seconds": round(at.seconds, 1), "train_loss": at.loss}
            at.history.append(about | at.metrics)
            better = at.best is None or (value < at.best if settings.monitor == "loss" else value > at.best)
            improved = better and math.isfinite(value)
            at.best, at.waited = (value, 0) if improved else (at.best, at.waited + 1)
            if improved:
                self.keeper.save_best(at)
            if self.world.is_main:
                self.logger.scalars(at.step, {f"val/{name}": value for name, value in at.metrics.items()})
                self.show(self.model, self.logger, at.step)
        self.schedule.observe(improved)
        if self.is_finished:
            self.logger.settings(at.step, self.hparams, at.metrics)
        self.save()
        if self.world.is_main:
            names = ("loss", "bleu1", "bleu4", "rouge_l", "cider")
            figures = "  ".join(f"{name} {at.metrics[name]:.3f}" for name in names)
            say(f"epoch {at.epoch}, step {at.step}: {figures}{'  *' if improved else ''}  ({time.monotonic() - began:.0f} s)")
            if warning := warning_of_collapse(evaluation.captions):
                say(f"warning: {warning}")
        return evaluation

    def unless_asked(self, advance: Advance) -> Callable[[int], None]:
        def step(images: int) -> None:
            if self.signals.received and self.world.size == 1:
                raise Asked
            advance(images)

        return step


def take(batches: Iterator[Batch], count: int) -> list[Batch]:
    group = []
    for batch in batches:
        group.append(batch)
        if len(group) == count:
            break
    return group
