"""The tasks' losses over the global batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import nn

from livetrain.configs.schema import Recipe, Task
from livetrain.modules.batch import Batch
from livetrain.modules.layers.distributed import Later, all_gather
from livetrain.modules.network import TARGETS
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


class Weights(NamedTuple):
    """What a batch's rows weigh in training."""

    rows: torch.Tensor  # (B, T), or (B, 1) where the tasks do not differ
    sums: torch.Tensor | None  # (T,) over this rank's rows; None where that depends on other rows
    total: Later | None  # the same over all ranks

    @classmethod
    def summed(cls, rows: torch.Tensor, sums: torch.Tensor) -> "Weights":
        """Sum over the ranks too, when the next sum is made."""
        return cls(rows, sums, Later(sums))


class Weigh(nn.Module):
    """Batch -> what its rows weigh, None in evaluation: apart from the loss, for it is known before the network begins.

    So its sum over ranks rides on the first that the network makes.
    """

    only_positives: torch.Tensor | None

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        found = list(kinds(recipe.tasks).values())
        self.tasks = len(found)
        self.unknown = any(task.unknown for task in recipe.tasks.values())
        self.by_group = any(kind.by_group for kind in found)
        only = torch.tensor([kind.only_positives for kind in found])
        self.register_buffer("only_positives", only if only.any() else None, persistent=False)

    def forward(self, batch: Batch) -> Weights | None:
        if not self.training:
            return None
        rows = batch.weights.unsqueeze(1)  # (B, 1)
        if batch.sample_weights is not None:
            rows = rows * batch.sample_weights  # (B, T)
        if self.unknown:
            rows = rows * ~batch.labels.isnan()
        if self.only_positives is not None:
            rows = rows * torch.where(self.only_positives, batch.labels.nan_to_num(), 1.0)
        if self.by_group:
            return Weights(rows, None, None)
        return Weights.summed(rows, rows.sum(dim=0).expand(self.tasks))


class Loss(nn.Module):
    """The weighted mean of each task's own loss over the rows of the *global* batch whose label is known.

        L_t = R * sum_i s_it loss_t(z_it, y_it) / sum_ranks sum_i s_it

    s_it is 0 for padding and for a label that is not known yet, and otherwise the task's sample_weight, by default 1. R
    is the number of ranks: averaging the ranks' gradients then gives those of one rank on the global batch. A task of
    which the batch knows no label has a loss of 0; of a kind with `only_positives` only rows of label 1 count. How the
    tasks weigh in is not decided here.

    A kind that is `by_group` gets the rows of all ranks, for a group may lie on several: every rank computes what each
    row of the global batch adds, and takes its own rows' part. The gather hands each logit the gradients of all parts.

    Of a network that answers several logits per row (`TARGETS`) each of them counts as a row with that row's label and
    weight.

    An evaluation needs the logits alone: it has losses of 0, and no rank waits for another.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.weigh = Weigh(recipe)
        self.tasks = list(recipe.tasks)
        found = list(kinds(recipe.tasks).values())
        self.kinds = cast(Sequence[TaskKind], nn.ModuleList(found))
        keys = [task.model_dump(exclude=set(Task.model_fields)) for task in recipe.tasks.values()]  # of a kind's own
        alike = [(type(kind), own) for kind, own in zip(found, keys, strict=True)]
        stacked = found[0].outputs == 1 and not found[0].by_group
        self.one_kind = stacked and all(one == alike[0] for one in alike)
        columns = list(dict.fromkeys(recipe.groups().values()))
        self.groups = {task: columns.index(column) for task, column in recipe.groups().items()}

    def forward(
        self, logits: dict[str, torch.Tensor], batch: Batch, weights: Weights | None = None
    ) -> tuple[torch.Tensor, Output]:
        """Return the losses (T,) and what metrics need, from logits by task and the batch. Collective in training.

        Args:
            logits: task -> (B,), or in training (B, outputs); with `TARGETS` -> (B,) as many as that says.
            batch: of this rank.
            weights: of the batch, from `weigh`, where that was asked before.
        """
        given, labels, count = [logits[task] for task in self.tasks], batch.labels, batch.weights.sum()  # (B, T), ()
        if not self.training:
            none = torch.zeros(len(given), device=count.device)
            return none, Output(batch, torch.stack(given, dim=1).detach(), none, none, count)
        weights = weights or self.weigh(batch)
        assert weights is not None  # in training
        if (targets := logits.get(TARGETS)) is not None:
            each = partial(torch.repeat_interleave, repeats=targets, dim=0, output_size=len(given[0]))
            labels, rows = each(labels), each(weights.rows)
            weights = Weights.summed(rows, rows.sum(dim=0).expand(len(given)))
        if self.weigh.unknown:
            known = ~labels.isnan()
            labels = torch.where(known, labels, 0.0)
            given = [_where(own, column) for own, column in zip(known.unbind(1), given, strict=True)]  # no inf times 0
        if self.one_kind:
            sums = (self.kinds[0].loss(torch.stack(given, dim=1), labels) * weights.rows).sum(dim=0)  # (T,)
        else:
            columns = zip(given, labels.unbind(1), weights.rows.expand_as(labels).unbind(1), strict=True)
            parts = [self._part(t, *column, batch.task_groups) for t, column in enumerate(columns)]
            sums, counted = (torch.stack(part) for part in zip(*parts, strict=True))  # (T,)
            if weights.total is None:
                weights = Weights.summed(weights.rows, counted)
        assert weights.sums is not None
        assert weights.total is not None
        total = weights.total.total()
        losses = ranks.world() * sums / total.clamp(min=1e-30)  # 0 where nothing weighs
        return losses, Output(batch, None, sums.detach(), weights.sums, count)

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
