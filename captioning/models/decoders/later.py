"""A linear map of the time loop whose weight's gradient is made once, after the loop, instead of at every step."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Map = Callable[[Tensor], Tensor]


def later(linear: nn.Linear) -> Map:
    """The same map, for all steps of one teacher-forced pass.

    A step's part of the weight's gradient is a product over the batch alone: a thin one, bound by reading and writing the whole
    weight. Over all steps at once it is a wide one, three times faster for 2048 channels on a CPU. A backward must ask for the
    weight's gradient too: one that wants the input's alone leaves its steps to the next.
    """
    weight, steps = linear.weight, list[tuple[Tensor, Tensor]]()
    if not (torch.is_grad_enabled() and weight.requires_grad):
        return linear
    kind = weight.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    cast, bias = weight.detach().to(dtype), None if linear.bias is None else linear.bias.detach().to(dtype)

    def gathered() -> tuple[Tensor, Tensor | None]:
        gradient, x = (torch.cat(parts) for parts in zip(*steps))
        steps.clear()
        to_bias = gradient.sum(dim=0, dtype=weight.dtype) if bias is not None else None
        return (gradient.t() @ x).to(weight.dtype), to_bias

    end = End.apply(gathered, weight, linear.bias)
    return lambda x: Product.apply(x.to(dtype), cast, bias, end, steps)


class Product(torch.autograd.Function):
    """A step: the gradient of its input now; what the weight's gradient needs is put aside."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, end: Tensor, steps: list) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.steps = steps
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        x, weight = ctx.saved_tensors
        ctx.steps.append((gradient.flatten(0, -2), x.flatten(0, -2)))
        return gradient @ weight, None, None, gradient.new_empty(0), None


class End(torch.autograd.Function):
    """Stands before the first step, so that its backward comes after the last: an empty tensor on which every step depends.

    gathered: gives the gradients of the tensors, one of which may be None, once all steps have put theirs aside.
    """

    @staticmethod
    def forward(ctx, gathered: Callable[[], tuple[Tensor | None, ...]], first: Tensor, *others: Tensor | None) -> Tensor:
        ctx.gathered = gathered
        return first.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx, _):
        return None, *ctx.gathered()
