"""One optimizer step: from batches to weights, for one process or many, in any precision."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from captioning.data.dataset import Batch
from captioning.models.caption_model import CaptionModel
from captioning.randomness import generator_for, seed_for
from captioning.training.averaging import AverageWeights
from captioning.training.distributed import World
from captioning.training.evaluate import to_device
from captioning.training.guard import Guard
from captioning.training.losses import Loss, Turn
from captioning.training.schedules import Schedule
from captioning.training.settings import Progress, Settings, autocast


class Taken(NamedTuple):
    """What a step was, on all ranks together."""

    means: Tensor  # (F,) the loss, then its facts
    count: Tensor  # what they are means over
    norm: Tensor  # of the gradient
    is_bad: Tensor  # loss or gradient was not finite: the weights are as before
    is_asked: bool  # a rank was told to end (on a GPU known one step later)


class Stepper:
    def __init__(
        self,
        settings: Settings,
        *,
        model: CaptionModel,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        world: World,
        seed: int,
        steps_per_epoch: int,
    ):
        self.settings, self.model, self.loss, self.optimizer, self.schedule = settings, model, loss, optimizer, schedule
        self.world, self.seed, self.steps_per_epoch = world, seed, steps_per_epoch
        self.total = min(settings.max_steps or math.inf, settings.epochs * steps_per_epoch)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=settings.precision == "fp16")
        self.guard = Guard(model, optimizer, self.scaler, world)
        self.average = AverageWeights(model, settings.average)
        self.late = [p for p in model.encoder.parameters() if p.requires_grad] if model.encoder.finetune_epoch else []
        self.parallel: nn.Module = model
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]

    def begin_epoch(self, epoch: int) -> None:
        """Freeze or free what is fine-tuned late. DDP must be told which parameters take part, so it is wrapped anew."""
        for parameter in self.late:
            parameter.requires_grad_(epoch >= self.model.encoder.finetune_epoch)
        if self.world.size > 1:
            # a fine-tuned layer that the decoder never looks at (VGG's fc2 under attention) gets no gradient
            self.parallel = DistributedDataParallel(self.model, find_unused_parameters=not self.model.encoder.is_frozen)
        self.model.train()

    def __call__(self, group: list[Batch], at: Progress, asked: Callable[[], bool] = lambda: False) -> Taken:
        """Step `at.step` on these batches; their gradients add up. asked: whether this rank is to end."""
        rank, device = self.world.rank, self.world.device
        torch.manual_seed(seed_for(self.seed, "step", at.step, rank))
        turn = Turn(self.settings.scheduled_sampling * at.step / self.total, generator_for(self.seed, "sampling", at.step, rank))
        count = self.world.sum(torch.tensor(sum(map(self.loss.count, group)), device=device, dtype=torch.float32))
        totals = torch.zeros(1 + len(self.loss.facts), device=device)
        self.share_statistics()
        remembered = self.guard.remember()
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
        factor = self.schedule.factor(at.step, int(self.total), self.steps_per_epoch)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = parameters["base_lr"] * factor
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip or math.inf)
        sums = self.world.sum(torch.cat([totals, totals.new_tensor([asked()])]))
        means, ending = sums[:-1], sums[-1]
        is_bad = self.guard.step(means[0], norm, remembered)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(is_bad)
        image_ids = [image_id for batch in group for image_id in batch.image_ids]
        is_asked = self.guard.note(at, image_ids, torch.stack([is_bad.float(), means[0].isfinite().float(), ending]))
        return Taken(means, count, norm, is_bad, is_asked)

    def share_statistics(self) -> None:
        """The first rank's, where BatchNorm is trained: only they are kept. DDP does so too, but not for what is said in eval mode."""
        for buffer in self.guard.moving() if self.world.size > 1 else ():
            self.world.share(buffer)

    def autocast(self) -> AbstractContextManager:
        return autocast(self.world.device, self.settings.precision)
