"""Two views of one user pulled together, other users' views apart: FARM's alignment of domains."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from livetrain.modules.layers.distributed import Later, all_gather
from livetrain.modules.layers.moving import Moving
from livetrain.modules.layers.others import logsumexp_of_others
from livetrain.modules.layers.precision import widen


def signature(embeddings: Tensor) -> Tensor:
    """Return one number per row, equal where the embeddings are bitwise equal: rows of one id have one signature.

    A network is given embeddings, not ids; within a batch those of one id are copies of one table row. Different
    rows agree with the chance of a 64-bit hash, unless a table was initialised with equal rows (init_std: 0).

    Args:
        embeddings: (B, d) float32 or a 16-bit type.

    Returns:
        (B,) int64.
    """
    bits = embeddings.detach().float().contiguous().view(torch.int32).long()  # (B, d)
    odd = torch.arange(1, bits.size(1) + 1, device=bits.device) * -0x61C8864680B583EB | 1
    return ((bits ^ (bits << 17)) * odd).sum(1)


class Align(Moving):
    """Symmetric InfoNCE between two representations of each row's user, as a loss on its own.

        L = lambda(step) / (2 n) sum_i [-log softmax_j(a_i b_j / tau)_i - log softmax_j(b_i a_j / tau)_i]

    over n valid rows, a and b L2-normalised; -log softmax_j(s_ij)_i = softplus(log sum_{j != i} e^s_ij - s_ii). j runs
    over i itself and the valid rows of *other* users: another row of the same user is neither a positive nor a
    negative. lambda rises linearly to `weight` over `warmup` steps.

    Like every loss here it is multiplied by the number of ranks and divided by the global n, so that averaging the
    ranks' gradients gives those of one rank on the global batch. With `gathered` the negatives are the rows of all
    ranks, and that holds exactly; without, they are the rank's own and fewer on more ranks.

    Args:
        weight: lambda after the warm-up.
        temperature: tau.
        warmup: steps.
        gathered: negatives from all ranks.

    Source: FARM, 2502.09375, aligns domains by contrast; the form is decided here after CLIP (2103.00020).
    """

    steps: Tensor

    def __init__(self, weight: float, temperature: float, warmup: int, gathered: bool) -> None:
        super().__init__()
        self.weight, self.temperature, self.warmup, self.gathered = weight, temperature, warmup, gathered
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))  # trained so far; goes with the checkpoint

    @torch.jit.unused
    def count(self, valid: Tensor) -> Later:
        """Return how many rows take part on all ranks: known early, it rides on a sum of others.

        Args:
            valid: (B,) bool, rows that take part.
        """
        return Later(valid.sum().float())

    @torch.jit.unused
    def forward(self, one: Tensor, other: Tensor, user: Tensor, valid: Tensor, count: Later | None = None) -> Tensor:
        """Return the loss of one training step and count it.

        Args:
            one: (B, d), a domain's representation.
            other: (B, d), the other domain's.
            user: (B,) int64, equal for rows of one user (see `signature`).
            valid: (B,) bool, rows that take part.
            count: of them, if that was asked for before.

        Returns:
            (), float32.
        """
        steps = self.steps + 1
        self.move({"steps": steps})
        rise = self.weight if self.warmup == 0 else self.weight * (steps / self.warmup).clamp(max=1.0)
        with torch.autocast(one.device.type, enabled=False):
            a, b = F.normalize(widen(one), dim=1), F.normalize(widen(other), dim=1)
            world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
            taking_part = (count or self.count(valid)).total().clamp(min=1.0)
            return rise * world * self._sum(a, b, user, valid) / (2 * taking_part)

    def _sum(self, a: Tensor, b: Tensor, user: Tensor, valid: Tensor) -> Tensor:
        """Return the two directions' losses summed over this rank's valid rows: ()."""
        views, users, kept = torch.cat([a, b], 1), user, valid
        if self.gathered:
            views, _ = all_gather(views)
            marks, _ = all_gather(torch.stack([user, valid.long()], 1))
            users, kept = marks[:, 0], marks[:, 1] > 0
        every_a, every_b = views.chunk(2, 1)  # (R B, d)
        bias = torch.zeros_like(every_a[:, 0]).masked_fill(~kept, -float("inf"))
        own = (a * b).sum(1) / self.temperature  # (B,), in either direction
        total = a.new_zeros(())
        for view, others in ((a, every_b), (b, every_a)):
            apart = logsumexp_of_others(view / self.temperature, others, bias, user, users)  # (B,)
            total = total + F.softplus(apart - own).mul(valid).sum()
        return total
