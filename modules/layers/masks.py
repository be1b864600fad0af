"""Dropout that drops the same numbers of an item wherever it stands, on every rank."""

from typing import NamedTuple

import torch
from torch import Tensor

from livetrain.modules.layers.moving import Moving
from livetrain.modules.tables.hashing import mix, row

ROWS = 1024  # masks of a step


class Masks(NamedTuple):
    """A step's masks.

    Args:
        cells: (ROWS, d) of 0 and 1 / (1 - p).
        salt: () int64, which an item's mask is found with: items that share one do so in this step alone.
    """

    cells: Tensor
    salt: Tensor


class ItemDropout(Moving):
    """Drop a share p of the numbers of items' vectors, and divide the others by 1 - p.

        out_c = v_c m[h, c] / (1 - p),   m[k, c] = 1 where hash(s, k, c) >= p,   h = hash(id + s) mod `ROWS`

    with s = hash(seed, step).

    An item's vector is what events read, what a target is, and what a candidate is. With one mask for all of them, as
    though the whole table had been masked once in the step, what is left of it can be compared; with a mask for each of
    its places an event does not know itself.

    The masks are a function of the seed and the number of the step, so that every rank has the same ones.

    Args:
        share: p.
    """

    seed: Tensor
    steps: Tensor

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.register_buffer("seed", torch.randint(2**62, ()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def masks(self, size: int) -> Masks | None:
        """Begin a step: return its masks of `size` columns, or None where nothing is dropped."""
        if not self.training or not self.share:
            return None
        steps = self.steps + 1
        self.move({"steps": steps})
        salt = mix(self.seed + steps)
        kept = mix(torch.arange(ROWS * size, device=steps.device) + salt) >= int(self.share * 2**63)
        return Masks((kept.float() / (1 - self.share)).view(ROWS, size), salt)


def masked(vectors: Tensor, keys: Tensor, masks: Masks | None) -> Tensor:
    """Return items' vectors (N, d) of the ids (N,) without what a step's masks drop."""
    if masks is None:
        return vectors
    return vectors * masks.cells.to(vectors.dtype).index_select(0, row(keys + masks.salt, ROWS, False))
