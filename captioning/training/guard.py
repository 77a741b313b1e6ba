"""Steps that must not be taken: a loss or a gradient that is not finite never reaches the weights; it is counted, and its images named."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from captioning.errors import UserError
from captioning.models.encoders import Encoder
from captioning.models.weights import digest_of
from captioning.training.console import say
from captioning.training.distributed import World
from captioning.training.settings import Progress

IN_A_ROW = 5  # such steps, and training ends


class Guard:
    """Judges every step before the optimizer takes it. All ranks come to the same verdict: they judge sums over all of them.

    On a GPU the verdict is read one step later, so that nobody waits for it: Adam's fused kernel heeds it on the device.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, world: World):
        self.model, self.optimizer, self.scaler, self.world = model, optimizer, scaler, world
        self.unread: deque[tuple[int, Sequence[str], Tensor]] = deque()
        self.is_obeyed_on_device = isinstance(optimizer, torch.optim.Adam) and bool(optimizer.defaults.get("fused"))

    def moving(self) -> list[Tensor]:
        """What a forward pass changes by itself: running statistics of a BatchNorm that is trained."""
        return [buffer for module in self.model.modules() if module.training for buffer in module.buffers(recurse=False)]

    def remember(self) -> list[tuple[Tensor, Tensor]]:
        """These, and what they were before it."""
        return [(buffer, buffer.clone()) for buffer in self.moving()]

    def step(self, loss: Tensor, norm: Tensor, remembered: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The optimizer's step, unless loss or norm is not finite. -> (), whether it was left out."""
        is_bad = ~(loss.isfinite() & norm.isfinite())
        if self.is_obeyed_on_device:
            self.optimizer.grad_scale, self.optimizer.found_inf = None, is_bad.float()  # type: ignore[attr-defined]
            self.optimizer.step()
            del self.optimizer.grad_scale, self.optimizer.found_inf  # type: ignore[attr-defined]
        elif not is_bad:  # fused SGD would begin its momentum with memory that nobody has written
            self.optimizer.step()
        for buffer, before in remembered:
            buffer.copy_(torch.where(is_bad, before, buffer))
        return is_bad

    def note(self, at: Progress, image_ids: Sequence[str], verdict: Tensor) -> bool:
        """verdict: (3,) whether the step was left out, whether its loss was finite, how many ranks are to end. -> Whether the run is."""
        self.unread.append((at.step + 1, image_ids, verdict))
        return self.read(at, later=int(self.world.device.type == "cuda"))

    def read(self, at: Progress, later: int = 0) -> bool:
        """Count and name what was left out, but for the `later` last steps. Raises UserError after IN_A_ROW in a row."""
        is_asked = False
        while len(self.unread) > later:
            step, image_ids, verdict = self.unread.popleft()
            is_bad, is_finite, asked = verdict.tolist()
            is_asked = is_asked or asked > 0
            if not is_bad:
                at.skipped_in_a_row = 0
                continue
            at.skipped += 1
            if is_finite and self.scaler.is_enabled() and self.scaler.get_scale() > 1:
                continue  # fp16's way to find its scale
            at.skipped_in_a_row += 1
            here = " in this process" if self.world.size > 1 else ""
            what = "the gradient" if is_finite else "the loss"
            say(f"warning: step {step}: {what} is not finite; the step is left out. Its images{here}: {', '.join(image_ids)}")
            if at.skipped_in_a_row >= IN_A_ROW:
                raise UserError(
                    f"step {step}: {what} was not finite in {IN_A_ROW} steps in a row, last with {', '.join(image_ids[:4])}, ...{here}; "
                    "nothing of it is in the weights. Look at these images, lower optimizer.lr, or take trainer.precision=fp32"
                )
        return is_asked


def frozen_part(encoder: Encoder) -> dict[str, Tensor]:
    """What training may not change: parameters without a gradient, and statistics of modules in eval mode."""
    moving = {id(parameter) for parameter in encoder.parameters() if parameter.requires_grad}
    moving |= {id(buffer) for module in encoder.modules() if module.training for buffer in module.buffers(recurse=False)}
    return {name: value for name, value in encoder.state_dict(keep_vars=True).items() if id(value) not in moving}


@contextmanager
def unmoved(encoder: Encoder) -> Iterator[None]:
    """Inside this block the frozen part of the encoder does not change: BatchNorm's statistics are what usually drifts."""
    before = {name: digest_of({name: value}) for name, value in frozen_part(encoder).items()}
    yield
    if moved := [name for name, value in frozen_part(encoder).items() if before.get(name) != digest_of({name: value})]:
        raise AssertionError(f"the encoder is frozen, and yet {', '.join(moved[:3])} changed in training: what was learned is of no use")
