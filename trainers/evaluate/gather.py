"""What an evaluation sums and gathers over ranks. Between two of these rank 0 may sort for long: the others wait."""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from livetrain.trainers.runtime import ranks

_CHUNK = 2**20  # rows that a rank sends at once, which bounds the receiver's buffers


def _reduce(array: np.ndarray, operation: Any = dist.ReduceOp.SUM) -> np.ndarray:
    """Return the elementwise sum (or another operation) over ranks, on every rank."""
    if ranks.world() == 1:
        return array
    tensor = torch.tensor(array)
    dist.all_reduce(tensor, operation, group=ranks.patient())
    return tensor.numpy()


def _gather(column: np.ndarray) -> np.ndarray:
    """Return every rank's (n,) column, one after the other, on rank 0; an empty one on the others."""
    world, main = ranks.world(), ranks.is_main()
    if world == 1:
        return column
    sizes = np.zeros(world, np.int64)
    sizes[ranks.rank()] = len(column)
    sizes = _reduce(sizes)
    parts: list[list[np.ndarray]] = [[column[:0]] for _ in range(world)]
    for start in range(0, int(sizes.max()), _CHUNK):
        piece = torch.from_numpy(np.ascontiguousarray(column[start : start + _CHUNK]))
        sent = piece.new_zeros(min(_CHUNK, int(sizes.max()) - start))
        sent[: len(piece)] = piece
        received = [torch.empty_like(sent) for _ in range(world)] if main else None
        dist.gather(sent, received, dst=0, group=ranks.patient())
        for rank, tensor in enumerate(received or []):
            parts[rank].append(tensor[: max(int(sizes[rank]) - start, 0)].numpy())
    return np.concatenate([piece for rank in parts for piece in rank])
