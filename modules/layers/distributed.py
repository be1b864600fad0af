"""Sums and collections over all ranks that autograd sees through, on a process group of their own.

Tables exchange ids and rows on the default group. What is summed here has another, so that neither stands in the
other's queue. Every rank makes the same calls in the same order, on either group: NCCL asks for no less.

A sum costs a GPU or a CPU more time in waiting than in adding up, so there are few. What several layers ask for at once
goes in one (`summed`), and what nobody needs at once rides on the next (`Later`).
"""

import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_own: weakref.WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup] = weakref.WeakKeyDictionary()
_waiting: list["Later"] = []


def use(group: dist.ProcessGroup) -> None:
    """Sum over this group of all ranks from now on, as long as the default group lives."""
    assert dist.group.WORLD is not None
    _own[dist.group.WORLD] = group


def group() -> dist.ProcessGroup:
    """Return the group that sums travel on: that of `use`, or the default one."""
    everyone = dist.group.WORLD
    assert everyone is not None
    return _own.get(everyone, everyone)


def alone() -> bool:
    """Return whether there is no other rank."""
    return not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1


# An operator of its own: torch.compile has no need to look into it, and vmap sums for all tasks at once. It is defined
# step by step, for torch.library.custom_op loads the compiler, which costs every process seconds.
_library = torch.library.Library("livetrain_sums", "FRAGMENT")
_library.define("over_ranks(Tensor x) -> Tensor")
_sum_over_ranks = torch.ops.livetrain_sums.over_ranks


@torch.library.impl(_library, "over_ranks", "CompositeExplicitAutograd")
def _reduce(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group())
    return total


@torch.library.register_fake("livetrain_sums::over_ranks", lib=_library)
def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _back(_: Any, gradient: Tensor) -> Tensor:
    return _sum_over_ranks(gradient)  # every rank's loss depends on every rank's x


def _of_tasks(_: Any, in_dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
    return _sum_over_ranks(x.movedim(in_dims[0], 0)), 0


torch.library.register_autograd("livetrain_sums::over_ranks", _back, lib=_library)
torch.library.register_vmap("livetrain_sums::over_ranks", _of_tasks, lib=_library)


class Later:
    """The sum over the ranks of a tensor without gradient, which rides on the next sum of any kind.

    All ranks must make them in the same order, and ask in the same order.

    Args:
        x: any shape, the same on every rank.

    Example: without a process group a sum is what is summed.
        >>> import torch
        >>> Later(torch.tensor([1.0, 2.0])).total()
        tensor([1., 2.])
    """

    def __init__(self, x: Tensor) -> None:
        self.part = x.detach()
        self._total = self.part if alone() else None
        if self._total is None:
            _waiting.append(self)

    def total(self) -> Tensor:
        """Return the sum, of the part's shape. Collective where no sum was made since."""
        if self._total is None:
            _with_riders([])
        assert self._total is not None
        return self._total

    def come(self, total: Tensor) -> None:
        """Take the sum, in any shape."""
        self._total = total.detach().view_as(self.part).to(self.part.dtype)


def forget() -> None:
    """Begin a step: what one that failed left waiting is no part of it."""
    _waiting.clear()


def all_reduce_sum(x: Tensor) -> Tensor:
    """Return the sum of x over the ranks; its gradient is the sum of the ranks' gradients.

    The identity without a process group. All ranks must call it, and run backward through it, in the same order.

    Args:
        x: any shape, the same on every rank.

    Returns:
        The sum, same shape, the same on every rank.
    """
    return x if alone() else _with_riders([x])[0]


def summed(parts: Sequence[Tensor]) -> list[Tensor]:
    """Return the sums over the ranks of several tensors, by one reduction; see `all_reduce_sum`."""
    return list(parts) if alone() or not parts else _with_riders(parts)


def _with_riders(parts: Sequence[Tensor]) -> list[Tensor]:
    riders = list(_waiting)
    _waiting.clear()
    flat, sizes = side_by_side([*parts, *(rider.part for rider in riders)])
    totals = _sum_over_ranks(flat).split(sizes)
    for rider, total in zip(riders, totals[len(parts) :], strict=True):
        rider.come(total)
    return [total.view_as(part).to(part.dtype) for part, total in zip(parts, totals, strict=False)]


class Bucket:
    """Sums over the ranks that are made while the rank goes on; those that wait for a sum ride along. Collective.

    Args:
        parts: without gradients, the same shapes on every rank, at least one.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._parts = list(parts)
        self._riders = list(_waiting)
        _waiting.clear()
        self._flat, self._sizes = side_by_side([*self._parts, *(rider.part for rider in self._riders)])
        self._work = None if alone() else dist.all_reduce(self._flat, group=group(), async_op=True)

    def wait(self) -> list[Tensor]:
        """Return the sums, as wide as the widest of the parts: views of one tensor."""
        if self._work is not None:
            self._work.wait()
        totals = self._flat.split(self._sizes)
        for rider, total in zip(self._riders, totals[len(self._parts) :], strict=True):
            rider.come(total)
        return [total.view_as(part) for part, total in zip(self._parts, totals, strict=False)]


def side_by_side(parts: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """Return tensors as one vector of the widest of their types, and how much of it is each one's."""
    kind = parts[0].dtype
    for part in parts[1:]:
        kind = torch.promote_types(kind, part.dtype)
    return torch.cat([part.reshape(-1).to(kind) for part in parts]), [part.numel() for part in parts]


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        everyone = x.new_empty(dist.get_world_size() * x.size(0), *x.shape[1:])
        dist.all_gather_into_tensor(everyone, x.contiguous(), group=group())
        return everyone

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every rank's loss depends on every rank's x.
        return _sum_over_ranks(gradient).chunk(dist.get_world_size())[dist.get_rank()]


def all_gather(x: Tensor) -> tuple[Tensor, int]:
    """Return the ranks' tensors one after another; the gradient of x is the sum of what the ranks' results got.

    x itself without a process group. All ranks must call it, and run backward through it, in the same order.

    Args:
        x: (B, ...), the same shape on every rank.

    Returns:
        (R * B, ...), the same on every rank, and where this rank's rows begin in it.
    """
    if alone():
        return x, 0
    return _AllGather.apply(x), dist.get_rank() * x.size(0)
