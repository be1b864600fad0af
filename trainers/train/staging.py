"""The copy of a rank's state in host memory from which a checkpoint is written while training goes on."""

import copy
import platform
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, ShardedTensorBase

from livetrain.trainers.runtime import ranks
from livetrain.trainers.train import memory

_ALIGNED = 64  # bytes; where tensors begin


class Staging:
    """Host memory for the copies of one rank's states, one state at a time. It is made by the first copy and kept.

    It is one piece, as large as the state (to 64 bytes per tensor), pinned where the state lies on a GPU. torch's own
    pinned memory would round each tensor up to a power of two: nearly twice as much.

    Example:
        >>> import torch
        >>> staging, live = Staging(), {"weight": torch.ones(2)}
        >>> copied = staging.copy(live)
        >>> live["weight"] += 1
        >>> copied["weight"]
        tensor([1., 1.])
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._taken = 0

    def copy(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state on the host that training does not change, until the next call. A GPU may be at it still."""
        self._taken = 0
        if (size := bytes_of(state)) > self._memory.numel():
            self._memory = torch.empty(size, dtype=torch.uint8)
            if any(tensor.is_cuda for tensor in _tensors(state)):
                _pin(self._memory)
        return self._copied(state)

    def _copied(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._copied(part) for key, part in value.items()}
        if isinstance(value, ShardedTensor):
            shards = [
                Shard.from_tensor_and_offsets(self._copied(shard.tensor), shard.metadata.shard_offsets, ranks.rank())
                for shard in value.local_shards()
            ]
            # The base class asks neither for a process group nor for shards on the planned device.
            return ShardedTensorBase._init_from_local_shards_and_global_metadata(
                shards, value.metadata(), value.sharding_spec()
            )
        if isinstance(value, torch.Tensor):
            place = self._memory[self._taken : self._taken + value.nbytes].view(value.dtype).view(value.shape)
            self._taken += _room(value)
            return place.copy_(value.detach(), non_blocking=True)
        return copy.deepcopy(value)


def bytes_of(state: dict[str, Any]) -> int:
    """Return the bytes that a rank's copy of a state takes."""
    return sum(map(_room, _tensors(state)))


def refused(state: dict[str, Any]) -> str | None:
    """Return in words that the ranks of some machine cannot copy their states, or None. Collective."""
    machines: dict[str, tuple[int, int]] = {}
    for machine, size, free in ranks.gather((platform.node(), bytes_of(state), memory.free_memory())):
        before, least = machines.get(machine, (0, free))
        machines[machine] = before + size, min(least, free)
    found = (memory.waits(size, free, machine) for machine, (size, free) in machines.items())
    return next((reason for reason in found if reason is not None), None)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield what this rank holds of a state."""
    if isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, ShardedTensor):
        yield from (shard.tensor for shard in value.local_shards())
    elif isinstance(value, torch.Tensor):
        yield value


def _room(tensor: torch.Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNED) * _ALIGNED


def _pin(memory: torch.Tensor) -> None:
    """Pin memory for as long as it is there; where the system refuses, copies are slower."""
    cuda, place = torch.cuda.cudart(), memory.data_ptr()
    if int(cuda.cudaHostRegister(place, memory.nbytes, 1)) == 0:  # portable: for every GPU
        weakref.finalize(memory, cuda.cudaHostUnregister, place)
