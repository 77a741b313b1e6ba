"""The scores of additive attention without their table of tanh, which for a whole caption is the largest thing in training."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from captioning.models.decoders.later import End

NUMBERS_AT_ONCE = 2**18  # in float32 they fit a processor's cache


def rows_at_once(device: torch.device, numbers: int) -> int:
    """Of rows with so many numbers each, those to be worked on together; a GPU takes 256 times as many."""
    return max(1, NUMBERS_AT_ONCE * (1 if device.type == "cpu" else 256) // numbers)


class Scores:
    """score = weights . tanh(key + query) for all steps of a pass over the same keys, whose gradient is added up in one place."""

    def __init__(self, weights: Tensor):
        self.weights, self.total = weights, list[Tensor]()
        self.end: Tensor | None = None

    def __call__(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(B, K, A) and (B, N, A) -> (B, K, N) in float32."""
        if self.end is None:
            total, dtype = self.total, keys.dtype  # not self, which holds the end: a circle that would never be freed
            self.end = End.apply(lambda: (total.pop().to(dtype),), keys)
        return AdditiveScores.apply(queries, keys.detach(), self.weights, self.end, self.total)


class AdditiveScores(torch.autograd.Function):
    """The table (B, K, N, A) of a step is made for a few images at a time, which stay in the processor's cache, and made again for
    the gradient instead of kept: on a CPU 2-3 times faster, with none of the B*K*N*A numbers a word that autograd keeps."""

    @staticmethod
    def forward(ctx, queries: Tensor, keys: Tensor, weights: Tensor, end: Tensor, total: list[Tensor]) -> Tensor:
        ctx.save_for_backward(queries, keys, weights)
        ctx.total = total
        with torch.autocast(keys.device.type, enabled=False):
            return torch.cat([table @ weights.float() for _, table in tables(queries, keys)])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        queries, keys, weights = ctx.saved_tensors
        if not ctx.total:
            ctx.total.append(torch.zeros_like(keys, dtype=torch.float32))
        to_keys, to_queries, to_weights = ctx.total[0], torch.empty_like(queries), torch.zeros_like(weights, dtype=torch.float32)
        for part, table in tables(queries, keys):
            its = gradient[part]
            to_weights += its.flatten() @ table.flatten(0, 2)
            pulled = table.mul_(table).neg_().add_(1).mul_(weights).mul_(its[..., None])  # through tanh: 1 - tanh^2
            to_queries[part] = pulled.sum(dim=2)
            to_keys[part] += pulled.sum(dim=1) if pulled.shape[1] > 1 else pulled[:, 0]
        return to_queries, None, to_weights.to(weights.dtype), gradient.new_empty(0), None


def tables(queries: Tensor, keys: Tensor):
    """tanh(key + query) of a few images after the others: (b, K, N, A) in float32."""
    B, K, A = queries.shape
    size = rows_at_once(keys.device, K * keys.shape[1] * A)
    for start in range(0, B, size):
        part = slice(start, start + size)
        yield part, (keys[part, None].float() + queries[part, :, None].float()).tanh_()
