"""How often an id comes up in batches, learned while they go by."""

import torch
from torch import Tensor

from livetrain.modules.layers.moving import Moving
from livetrain.modules.tables.hashing import row

BUCKETS, RATE = 2**20, 0.01  # 12 MB of state; a bucket remembers about the last 1 / RATE times that it came up


class Rarity(Moving):
    """log of the expected number of times an id comes up in a global batch.

        gap = (t - A[h]) / c,   B[h] <- gap where h is new, else (1 - rate) B[h] + rate gap,   A[h] <- t,   q = 1 / B[h]

    t counts batches, h is the hash of the id, c how often h is in batch t, A[h] the batch in which it last was, and
    B[h] the number of batches from one time to the next. Ids that share a bucket share their estimate. The state is a
    function of the batches alone: every rank that is given all ranks' ids holds the same, and it goes with the
    checkpoint.

    Source: Yi et al., "Sampling-bias-corrected neural modeling for large corpus item recommendations", RecSys 2019
    (10.1145/3298689.3346996), algorithm 2, where c is always 1: with batches so large that a popular id is in each of
    them, B would end at 1 for all of these alike.
    """

    batches: Tensor
    last: Tensor
    between: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))
        self.register_buffer("last", torch.zeros(BUCKETS, dtype=torch.int32))  # A, 0 where a bucket is new
        self.register_buffer("between", torch.zeros(BUCKETS))  # B

    def forward(self, ids: Tensor, valid: Tensor) -> Tensor:
        """Take in a batch and return what is known after it.

        Args:
            ids: (N,) int64, those of all ranks, in one order on every rank.
            valid: (N,) bool; what is not valid is not counted.

        Returns:
            (N,) float32 log q, also of ids that are not valid; -inf of one that never came up.
        """
        batches, bucket = self.batches + 1, row(ids, BUCKETS, False)
        count = torch.zeros_like(self.last).index_add_(0, bucket, valid.to(self.last.dtype))[bucket]
        last = self.last[bucket]
        gap = ((batches - last) / count.clamp(min=1)).to(self.between.dtype)
        between = torch.where(last == 0, gap, torch.lerp(self.between[bucket], gap, RATE))
        between = torch.where(count > 0, between, self.between[bucket])
        last = torch.where(count > 0, batches.to(last.dtype), last)
        # Rows of one bucket write one value, so their order does not matter.
        self.move({"batches": batches, "between": (bucket, between), "last": (bucket, last)})
        return torch.where(last > 0, -between.clamp(min=1e-6).log(), -torch.inf)
