"""Sums and collections over all ranks that autograd sees through."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every rank's loss depends on every rank's x.
        return _AllReduceSum.apply(gradient)


def all_reduce_sum(x: Tensor) -> Tensor:
    """Return the sum of x over the ranks; its gradient is the sum of the ranks' gradients.

    The identity without a process group. All ranks must call it, and run backward through it, in the same order.

    Args:
        x: any shape, the same on every rank.

    Returns:
        The sum, same shape, the same on every rank.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    return _AllReduceSum.apply(x)


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        everyone = x.new_empty(dist.get_world_size() * x.size(0), *x.shape[1:])
        dist.all_gather_into_tensor(everyone, x.contiguous())
        return everyone

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every rank's loss depends on every rank's x.
        return _AllReduceSum.apply(gradient).chunk(dist.get_world_size())[dist.get_rank()]


def all_gather(x: Tensor) -> tuple[Tensor, int]:
    """Return the ranks' tensors one after another; the gradient of x is the sum of what the ranks' results got.

    x itself without a process group. All ranks must call it, and run backward through it, in the same order.

    Args:
        x: (B, ...), the same shape on every rank.

    Returns:
        (R * B, ...), the same on every rank, and where this rank's rows begin in it.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return x, 0
    return _AllGather.apply(x), dist.get_rank() * x.size(0)
