"""The training loop: the same for every encoder and decoder, for one process or many, fresh or resumed."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from captioning.data.dataset import Batch, TrainingBatches
from captioning.errors import UserError
from captioning.models.caption_model import CaptionModel
from captioning.randomness import generator_for, seed_for
from captioning.training import checkpoint
from captioning.training.averaging import AverageWeights
from captioning.training.console import progress, say
from captioning.training.distributed import World
from captioning.training.evaluate import Evaluation, Evaluator, to_device, warning_of_collapse
from captioning.training.logger import Logger
from captioning.training.losses import Loss, Turn
from captioning.training.memory import forget_peak, peak_memory
from captioning.training.schedules import Schedule
from captioning.training.settings import Progress, Settings, autocast, ended_by


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
        show: Callable[[CaptionModel, Logger, int], None],
        hparams: dict[str, Any],
        gives_up: Callable[[Progress], bool] = lambda at: False,
    ):
        """gives_up: asked after each validation; True ends training there (a search over settings prunes by it)."""
        self.settings, self.model, self.loss, self.optimizer, self.schedule = settings, model, loss, optimizer, schedule
        self.batches, self.evaluator, self.logger, self.world, self.run, self.seed = (
            batches,
            evaluator,
            logger,
            world,
            run,
            seed,
        )
        self.show, self.hparams, self.gives_up = show, hparams, gives_up
        self.progress = Progress()
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=settings.precision == "fp16")
        self.average = AverageWeights(model, settings.average)
        self.late = [p for p in model.encoder.parameters() if p.requires_grad] if model.encoder.finetune_epoch else []
        self.frozen = {f"encoder.{name}" for name in model.encoder.state_dict()} if model.encoder.is_frozen else set()
        self.parallel: nn.Module = model
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]

    def autocast(self) -> AbstractContextManager:
        return autocast(self.world.device, self.settings.precision)

    # The whole run

    def fit(self) -> Evaluation | None:
        """Train to the end, from the last checkpoint if there is one. Returns the last evaluation; None when all was done before."""
        self.resume()
        if self.is_finished:
            return None
        self.logger.open(self.run / "tensorboard", self.progress.step)
        forget_peak(self.world.device)
        evaluation = None
        while not self.is_finished:
            self.let_encoder_move(self.progress.epoch >= self.model.encoder.finetune_epoch)
            self.train_epoch()
            evaluation = self.validate()
            if self.gives_up(self.progress):
                break
        if evaluation:
            self.logger.settings(self.hparams, evaluation.metrics)
        self.logger.close()
        return evaluation

    @property
    def is_finished(self) -> bool:
        return self.ended_by is not None

    @property
    def ended_by(self) -> str | None:
        return ended_by(self.settings, self.progress)

    @cached_property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.batches.order(0)) / self.settings.accumulate)

    @property
    def total_steps(self) -> int:
        steps = self.settings.epochs * self.steps_per_epoch
        return min(self.settings.max_steps or steps, steps)

    def let_encoder_move(self, moves: bool) -> None:
        """Freeze or free what is fine-tuned late. DDP must be told which parameters take part, so it is wrapped anew."""
        for parameter in self.late:
            parameter.requires_grad_(moves)
        if self.world.size > 1:
            # a fine-tuned layer that the decoder never looks at (VGG's fc2 under attention) gets no gradient
            self.parallel = DistributedDataParallel(self.model, find_unused_parameters=not self.model.encoder.is_frozen)

    # One epoch

    def train_epoch(self) -> None:
        at, settings = self.progress, self.settings
        self.model.train()
        epoch = self.batches.epoch(at.epoch, start=at.batch)
        figures = ("loss", *self.loss.facts)
        sums, counted, steps, began = torch.zeros(len(figures), device=self.world.device), 0, 0, time.monotonic()  # since the last log
        title, length = f"epoch {at.epoch + 1}/{settings.epochs}", self.steps_per_epoch
        with progress(title, length, at.batch // settings.accumulate, self.world.is_main) as advance:
            while group := take(epoch, settings.accumulate):
                means, count, norm = self.train_step(group)
                at.batch, at.step = at.batch + len(group), at.step + 1
                sums, counted, steps = sums + means, counted + count, steps + 1
                if at.step % settings.log_every == 0:
                    now = time.monotonic()
                    since = dict(zip(figures, (sums / steps).tolist()))
                    self.logger.scalars(
                        at.step,
                        {f"train/{name}": value for name, value in since.items()}
                        | {
                            "train/gradient_norm": norm.item(),
                            f"train/{self.loss.counts}_per_second": float(counted) / (now - began),
                        }
                        | {f"train/lr_{i}": group["lr"] for i, group in enumerate(self.optimizer.param_groups)},
                    )
                    advance(0, ", ".join(f"{name} {value:.3f}" for name, value in since.items()))
                    at.loss, at.seconds, began = since["loss"], at.seconds + now - began, now
                    sums, counted, steps = torch.zeros_like(sums), 0, 0
                advance(1)
                if settings.max_steps and at.step >= settings.max_steps:
                    break
                if settings.checkpoint_every and at.step % settings.checkpoint_every == 0:
                    self.save()
            else:
                at.epoch, at.batch = at.epoch + 1, 0
        at.seconds += time.monotonic() - began
        at.peak_memory = max(at.peak_memory, peak_memory(self.world.device))

    def train_step(self, group: list[Batch]) -> tuple[Tensor, Tensor, Tensor]:
        """One optimizer step on these batches -> means (the loss, then its facts), what they are means over, the gradient's norm; of
        all ranks."""
        at, rank, device = self.progress, self.world.rank, self.world.device
        torch.manual_seed(seed_for(self.seed, "step", at.step, rank))
        turn = Turn(self.settings.scheduled_sampling * at.step / self.total_steps, generator_for(self.seed, "sampling", at.step, rank))
        count = self.world.sum(torch.tensor(sum(map(self.loss.count, group)), device=device, dtype=torch.float32))
        totals = torch.zeros(1 + len(self.loss.facts), device=device)
        for number, batch in enumerate(group, start=1):
            batch = batch._replace(images=to_device(batch.images, device), tokens=batch.tokens.to(device, non_blocking=True))
            waits = isinstance(self.parallel, DistributedDataParallel) and number < len(group)
            with self.autocast():  # not the one below: weights that it cast without a gradient would be kept
                lesson = self.loss.lesson(self.model, batch, turn)
            with self.parallel.no_sync() if waits else nullcontext():  # type: ignore[operator]
                with self.autocast():
                    output = self.parallel(batch.images, lesson.inputs)
                loss = self.loss(output, lesson.tokens[:, 1:], lesson.weights) / count
                self.scaler.scale(loss * self.world.size).backward()  # DDP takes the mean over ranks, this makes it a sum
            totals += torch.stack([loss.detach(), *(fact / count for fact in lesson.facts)])
        factor = self.schedule.factor(self.progress.step, self.total_steps, self.steps_per_epoch)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = parameters["base_lr"] * factor
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update()
        return self.world.sum(totals), count, norm

    # After an epoch

    def validate(self) -> Evaluation:
        at, settings, began = self.progress, self.settings, time.monotonic()
        with self.average.in_place():
            with progress("validation", len(self.evaluator.references), 0, self.world.is_main) as advance:
                evaluation = self.evaluator(self.model, advance)
            value = evaluation.metrics[settings.monitor]
            at.metrics = evaluation.metrics
            about = {"epoch": at.epoch, "step": at.step, "seconds": round(at.seconds, 1), "train_loss": at.loss}
            at.history.append(about | at.metrics)
            improved = at.best is None or (value < at.best if settings.monitor == "loss" else value > at.best)
            at.best, at.waited = (value, 0) if improved else (at.best, at.waited + 1)
            if improved and self.world.is_main:
                state = {"epoch": at.epoch, "step": at.step, "metrics": at.metrics}
                checkpoint.save(self.run / "best", tensors={"model": self.weights()}, optimizer=None, state=state)
            if self.world.is_main:
                self.logger.scalars(at.step, {f"val/{name}": value for name, value in at.metrics.items()})
                self.show(self.model, self.logger, at.step)
        self.schedule.observe(improved)
        self.save()
        if self.world.is_main:
            names = ("loss", "bleu1", "bleu4", "rouge_l", "cider")
            figures = "  ".join(f"{name} {at.metrics[name]:.3f}" for name in names)
            say(f"epoch {at.epoch}, step {at.step}: {figures}{'  *' if improved else ''}  ({time.monotonic() - began:.0f} s)")
            if warning := warning_of_collapse(at.metrics):
                say(f"warning: {warning}")
        return evaluation

    # Checkpoints

    def weights(self) -> dict[str, Tensor]:
        """Without a frozen encoder's: the run directory has them once."""
        return {name: value for name, value in self.model.state_dict().items() if name not in self.frozen}

    def save(self) -> None:
        if not self.world.is_main:
            return
        tensors = {"model": self.weights()} | ({"average": self.average.average} if self.average.average else {})
        state = {
            "progress": asdict(self.progress),
            "schedule": self.schedule.state(),
            "scaler": self.scaler.state_dict(),
            "processes": self.world.size,
        }
        checkpoint.save(self.run / "last", tensors=tensors, optimizer=self.optimizer.state_dict(), state=state)

    def resume(self) -> None:
        folder = checkpoint.find(self.run / "last")
        if folder is None:
            return
        checkpoint.verify(folder)
        checkpoint.load_weights(self.model, checkpoint.load_tensors(folder, "model"), self.run)
        if self.average.average:
            self.average.load(checkpoint.load_tensors(folder, "average"))
        self.optimizer.load_state_dict(checkpoint.load_optimizer(folder))
        state = checkpoint.load_state(folder)
        self.progress = Progress(**state["progress"])
        if self.progress.batch and state["processes"] != self.world.size:
            raise UserError(
                f"run={self.run}: stopped inside an epoch with {state['processes']} processes, now {self.world.size}: take as many"
            )
        self.schedule.load(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        if self.world.is_main and not self.is_finished:
            say(f"resuming {self.run} at epoch {self.progress.epoch + 1}, step {self.progress.step}")


def take(batches: Iterator[Batch], count: int) -> list[Batch]:
    group = []
    for batch in batches:
        group.append(batch)
        if len(group) == count:
            break
    return group
