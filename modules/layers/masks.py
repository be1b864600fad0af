"""Dropout that drops the same numbers of an item wherever it stands, on every rank."""

import torch
from torch import Tensor

from livetrain.modules.layers.moving import Moving
from livetrain.modules.tables.hashing import mix, row

ROWS = 4096  # masks of a step; items that share one do so in this step alone, or almost


class ItemDropout(Moving):
    """out = v * m[h] / (1 - p),   m[h, c] = 1 where hash(seed, step, h, c) >= p,   h = hash(id) mod `ROWS`

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

    def masks(self, size: int) -> Tensor | None:
        """Begin a step: return its masks of `size` columns, (ROWS, size), or None where nothing is dropped."""
        if not self.training or not self.share:
            return None
        steps = self.steps + 1
        self.move({"steps": steps})
        cell = torch.arange(ROWS * size, device=steps.device) + mix(self.seed + steps)
        kept = mix(cell) >= int(self.share * 2**63)
        return (kept.float() / (1 - self.share)).view(ROWS, size)


def masked(vectors: Tensor, keys: Tensor, masks: Tensor | None) -> Tensor:
    """Return items' vectors (N, d) of the ids (N,) without what a step's masks drop."""
    return vectors if masks is None else vectors * masks.to(vectors.dtype).index_select(0, row(keys, ROWS, False))
