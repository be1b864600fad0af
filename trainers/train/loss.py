"""The tasks' losses over the global batch."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from livetrain.configs.schema import Recipe, Task
from livetrain.modules.batch import Batch
from livetrain.modules.tasks.registry import kinds
from livetrain.trainers.runtime import ranks


@dataclass
class Output:
    """What a step leaves for metrics, all local: batch, logits (B, T), sums of loss and weight (T,), number of rows."""

    batch: Batch
    logits: torch.Tensor
    loss_sums: torch.Tensor
    weight_sums: torch.Tensor
    count: torch.Tensor


class Loss(nn.Module):
    """The weighted mean of each task's own loss over the rows of the *global* batch whose label is known.

        L_t = R * sum_i s_it loss_t(z_it, y_it) / sum_ranks sum_i s_it

    s_it is 0 for padding and for a label that is not known yet, and otherwise the task's sample_weight, by default 1. R
    is the number of ranks: averaging the ranks' gradients then gives those of one rank on the global batch. A task of
    which the batch knows no label has a loss of 0; of a kind with `only_positives` only rows of label 1 count. How the
    tasks weigh in is not decided here.
    """

    only_positives: torch.Tensor | None

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.tasks = list(recipe.tasks)
        self.kinds = list(kinds(recipe.tasks).values())
        keys = [task.model_dump(exclude=set(Task.model_fields)) for task in recipe.tasks.values()]  # of a kind's own
        alike = [(type(kind), own) for kind, own in zip(self.kinds, keys, strict=True)]
        self.one_kind = all(one == alike[0] for one in alike)
        self.unknown = any(task.unknown for task in recipe.tasks.values())
        only = torch.tensor([kind.only_positives for kind in self.kinds])
        self.register_buffer("only_positives", only if only.any() else None, persistent=False)

    def forward(self, logits: dict[str, torch.Tensor], batch: Batch) -> tuple[torch.Tensor, Output]:
        """Return the losses (T,) and what metrics need, from logits (B,) by task and the batch."""
        given = stacked = torch.stack([logits[task] for task in self.tasks], dim=1)  # (B, T)
        labels, weights, count = batch.labels, batch.weights.unsqueeze(1), batch.weights.sum()  # (B, T), (B, 1), ()
        if batch.sample_weights is not None:
            weights = weights * batch.sample_weights  # (B, T)
        if self.unknown:
            known = ~labels.isnan()
            stacked, labels = torch.where(known, stacked, 0.0), torch.where(known, labels, 0.0)  # no inf times 0
            weights = weights * known
        if self.only_positives is not None:
            weights = weights * torch.where(self.only_positives, labels, 1.0)
        sums = (self._each(stacked, labels) * weights).sum(dim=0)  # (T,)
        alike = batch.sample_weights is None and not self.unknown and self.only_positives is None
        weight_sums = count.expand_as(sums) if alike else weights.sum(dim=0)  # (T,)
        total = weight_sums
        if ranks.world() > 1:
            total = weight_sums.clone()
            dist.all_reduce(total)
        losses = ranks.world() * sums / total.clamp(min=1e-30)  # 0 where nothing weighs
        return losses, Output(batch, given.detach(), sums.detach(), weight_sums, count)

    def _each(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of every row and task, (B, T)."""
        if self.one_kind:
            return self.kinds[0].loss(logits, labels)
        columns = zip(self.kinds, logits.unbind(1), labels.unbind(1), strict=True)
        return torch.stack([kind.loss(logit, label) for kind, logit, label in columns], dim=1)
