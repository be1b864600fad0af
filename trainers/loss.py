"""The tasks' losses over the global batch."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from configs.schema import Recipe
from modules.batch import Batch
from trainers import ranks


@dataclass
class Output:
    """What a step leaves for metrics: the batch, logits (B, T), loss sums (T,) and the summed weight, all local."""

    batch: Batch
    logits: torch.Tensor
    loss_sums: torch.Tensor
    count: torch.Tensor


class Loss(nn.Module):
    """The mean binary cross-entropy of each task over the *global* batch.

        L_t = R * sum_i s_i BCE(z_it, y_it) / sum_ranks sum_i s_i

    R is the number of ranks: averaging the ranks' gradients then gives those of one rank on the global batch. How the
    tasks weigh in is not decided here.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.tasks = list(recipe.tasks)

    def forward(self, logits: dict[str, torch.Tensor], batch: Batch) -> tuple[torch.Tensor, Output]:
        """Return the losses (T,) and what metrics need, from logits (B,) by task and the batch."""
        stacked = torch.stack([logits[task] for task in self.tasks], dim=1)  # (B, T)
        each = nn.functional.binary_cross_entropy_with_logits(stacked, batch.labels, reduction="none")  # (B, T)
        sums = (each * batch.weights.unsqueeze(1)).sum(dim=0)  # (T,)
        count = batch.weights.sum()
        total = count.clone()
        if ranks.world() > 1:
            dist.all_reduce(total)
        losses = ranks.world() * sums / total.clamp(min=1.0)
        return losses, Output(batch, stacked.detach(), sums.detach(), count)
