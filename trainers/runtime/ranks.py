"""The few questions that a rank asks about the others. All answers are right without a process group too."""

import atexit
import contextlib
import functools
import gc
import weakref
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from livetrain.modules.layers import distributed

PATIENCE = timedelta(days=1)
_patient: weakref.WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup] = weakref.WeakKeyDictionary()


def world() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this rank's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Return whether this rank writes what a run writes once."""
    return rank() == 0


def barrier() -> None:
    """Wait until every rank is here."""
    if world() > 1:
        dist.barrier()


def patient() -> dist.ProcessGroup:
    """Return a group of all ranks that wait for each other as long as it takes, whatever cluster.timeout_s is.

    For what one rank works out while the others have nothing to do. It takes tensors on the host, by gloo. A process
    that dies ends the wait of the others all the same, for its connections close; of a machine that is cut off from the
    network they learn after `PATIENCE`. The first call is collective.
    """
    everyone = dist.group.WORLD
    assert everyone is not None
    if everyone not in _patient:
        _patient[everyone] = dist.new_group(backend="gloo", timeout=PATIENCE)
    return _patient[everyone]


def of_sums(cuda: bool, patience: timedelta) -> None:
    """Let sums over ranks (modules.layers.distributed) travel on a group of their own. Collective.

    It ends with the default group.

    Args:
        cuda: what is summed lies on GPUs.
        patience: for which a rank waits for another.
    """
    if world() > 1 and distributed.group() is dist.group.WORLD:
        distributed.use(dist.new_group(backend="nccl" if cuda else "gloo", timeout=patience))


def from_main(value: Any) -> Any:
    """Return rank 0's value on every rank, whenever it has one (pickled; small objects only)."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=patient())
    return box[0]


def gather(value: Any) -> list[Any]:
    """Return every rank's value, by rank, on every rank (pickled; small objects only)."""
    if world() == 1:
        return [value]
    out: list[Any] = [None] * world()
    dist.all_gather_object(out, value)
    return out


def summed(values: torch.Tensor) -> torch.Tensor:
    """Return the sum over ranks of a tensor."""
    if world() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def backend(cuda: bool) -> str:
    """Return the process group's backend; small objects and checkpoints travel over gloo beside NCCL."""
    return "cpu:gloo,cuda:nccl" if cuda else "gloo"


@functools.cache
def _end_with_the_process() -> None:
    """Have what trainings leave in reference cycles, threads among it, end before the interpreter does."""
    atexit.register(gc.collect)


@contextlib.contextmanager
def alone(cuda: bool) -> Iterator[None]:
    """Make this process the only rank of a group of its own, unless it already belongs to one."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group(backend(cuda), store=dist.HashStore(), rank=0, world_size=1)
    _end_with_the_process()
    try:
        yield
    finally:
        dist.destroy_process_group()


def seed_step(seed: int, step: int) -> None:
    """Make every random draw of a step a function of (seed, step, rank): no generator's state is left to save."""
    value = (seed * 1_000_003 + step) * 4096 + rank()
    # torch.manual_seed would do, but where there is no GPU it keeps a note of every call, in case one appears.
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(value)
