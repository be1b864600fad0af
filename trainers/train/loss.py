"""The tasks' losses over the global batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import nn

from livetrain.configs.schema import Recipe, Task
from livetrain.modules.batch import Batch
from livetrain.modules.layers.distributed import all_gather
from livetrain.modules.tasks.kind import TaskKind
from livetrain.modules.tasks.registry import kinds
from livetrain.trainers.runtime import ranks


@dataclass
class Output:
    """What a step leaves for metrics, all local: batch, sums of loss and weight (T,), number of rows.

    The logits, (B, T), are those of an evaluation; of a training step nobody asks for them.
    """

    batch: Batch
    logits: torch.Tensor | None
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

    A kind that is `by_group` gets the rows of all ranks, for a group may lie on several: every rank computes what each
    row of the global batch adds, and takes its own rows' part. The gather hands each logit the gradients of all parts.

    An evaluation needs the logits alone: it has losses of 0, and no rank waits for another.
    """

    only_positives: torch.Tensor | None

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.tasks = list(recipe.tasks)
        found = list(kinds(recipe.tasks).values())
        self.kinds = cast(Sequence[TaskKind], nn.ModuleList(found))
        keys = [task.model_dump(exclude=set(Task.model_fields)) for task in recipe.tasks.values()]  # of a kind's own
        alike = [(type(kind), own) for kind, own in zip(found, keys, strict=True)]
        stacked = found[0].outputs == 1 and not found[0].by_group
        self.one_kind = stacked and all(one == alike[0] for one in alike)
        self.unknown = any(task.unknown for task in recipe.tasks.values())
        columns = list(dict.fromkeys(recipe.groups().values()))
        self.groups = {task: columns.index(column) for task, column in recipe.groups().items()}
        only = torch.tensor([kind.only_positives for kind in found])
        self.register_buffer("only_positives", only if only.any() else None, persistent=False)

    def forward(self, logits: dict[str, torch.Tensor], batch: Batch) -> tuple[torch.Tensor, Output]:
        """Return the losses (T,) and what metrics need, from logits by task and the batch.

        Args:
            logits: task -> (B,), or in training (B, outputs).
            batch: of this rank.
        """
        given = [logits[task] for task in self.tasks]
        labels, weights, count = batch.labels, batch.weights.unsqueeze(1), batch.weights.sum()  # (B, T), (B, 1), ()
        if not self.training:
            none = torch.zeros(len(given), device=count.device)
            return none, Output(batch, torch.stack(given, dim=1).detach(), none, none, count)
        if batch.sample_weights is not None:
            weights = weights * batch.sample_weights  # (B, T)
        if self.unknown:
            known = ~labels.isnan()
            labels = torch.where(known, labels, 0.0)
            given = [_where(own, column) for own, column in zip(known.unbind(1), given, strict=True)]  # no inf times 0
            weights = weights * known
        if self.only_positives is not None:
            weights = weights * torch.where(self.only_positives, labels, 1.0)
        if self.one_kind:
            sums = (self.kinds[0].loss(torch.stack(given, dim=1), labels) * weights).sum(dim=0)  # (T,)
            alike = batch.sample_weights is None and not self.unknown and self.only_positives is None
            weight_sums = count.expand_as(sums) if alike else weights.sum(dim=0)  # (T,)
        else:
            columns = zip(given, labels.unbind(1), weights.expand_as(labels).unbind(1), strict=True)
            parts = [self._part(t, *column, batch.task_groups) for t, column in enumerate(columns)]
            sums, weight_sums = (torch.stack(part) for part in zip(*parts, strict=True))  # (T,)
        total = weight_sums
        if ranks.world() > 1:
            total = weight_sums.clone()
            dist.all_reduce(total)
        losses = ranks.world() * sums / total.clamp(min=1e-30)  # 0 where nothing weighs
        return losses, Output(batch, None, sums.detach(), weight_sums, count)

    def _part(
        self, t: int, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, groups: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the t-th task's sums of loss and of weight over this rank's rows."""
        kind = self.kinds[t]
        if not kind.by_group:
            return (kind.loss(logits, labels) * weights).sum(), weights.sum()
        assert groups is not None  # the recipe names them
        everyone, first = all_gather(logits)
        known, _ = all_gather(torch.stack([labels, weights], dim=1))
        every_group, _ = all_gather(groups[:, self.groups[self.tasks[t]]])
        added, counted = kind.group_loss(everyone, known[:, 0], known[:, 1], every_group)
        own = slice(first, first + len(logits))
        return added[own].sum(), counted[own].sum()


def _where(known: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return the logits, (B,) or (B, outputs), with 0 where a row's label is not known."""
    return torch.where(known if logits.dim() == 1 else known.unsqueeze(1), logits, 0.0)
