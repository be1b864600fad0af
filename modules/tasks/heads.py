"""From a network's logits to what tasks learn and predict, chains of tasks included."""

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from livetrain.configs.schema import Task
from livetrain.modules.layers.precision import widen
from livetrain.modules.network import PerTask
from livetrain.modules.tasks.kind import TaskKind
from livetrain.modules.tasks.registry import kinds


def outputs(tasks: Mapping[str, Task]) -> list[int]:
    """Return how many numbers a network must answer for each task: one of nearly every kind."""
    return [kind.outputs for kind in kinds(tasks).values()]


class Heads(nn.Module):
    """The end of every network: its outputs become the tasks' logits.

    In training a logit is that of the training split, in evaluation and serving that of all impressions. They differ
    for a task of which only a share w of the negatives was kept: its odds in training are 1 / w times the true ones,

        training logit = logit - ln w,

    and the network learns the true logit. Where a task follows another one in a chain, its output is the logit of the
    conditional event, and its logit that of the joint one: of the product of both probabilities. The product is
    taken last, so the factors are corrected before it: in training it is of the sampled distribution as a whole.

    A task with several outputs (see `TaskKind.outputs`) keeps them in training, where the last one is corrected; in
    evaluation and serving its kind makes its logit of them.

    Args:
        tasks: the recipe's.
        before: task -> the task before it in its chain.
    """

    tasks: list[str]
    order: list[int]
    before: list[int]
    shift: list[float]
    counts: list[int]

    def __init__(self, tasks: Mapping[str, Task], before: Mapping[str, str] | None = None) -> None:
        super().__init__()
        before = before or {}
        self.tasks = list(tasks)
        self.before = [self.tasks.index(before[task]) if task in before else -1 for task in tasks]
        self.order = sorted(range(len(tasks)), key=lambda i: len(_path(self.tasks[i], before)))
        self.kinds = cast(Sequence[TaskKind], PerTask(kinds(tasks).values()))
        self.counts = outputs(tasks)
        self.shift = [-math.log(task.negatives_kept) for task in tasks.values()]

    def forward(self, outputs: list[Tensor]) -> dict[str, Tensor]:
        """Return the logits.

        Args:
            outputs: (B,) each, those of a task one after the other: as many as `outputs` says.

        Returns:
            task -> (B,), in float32 where autocast left less; in training (B, outputs) of a task with several.

        Raises:
            ValueError: there are more or fewer outputs.
        """
        if len(outputs) != sum(self.counts):
            raise ValueError("the tasks need " + str(sum(self.counts)) + " outputs, not " + str(len(outputs)))
        logits: list[Tensor] = []
        first = 0
        for i, kind in enumerate(self.kinds):
            own = [widen(output) for output in outputs[first : first + self.counts[i]]]
            first += self.counts[i]
            if self.training and self.shift[i] != 0.0:
                own[-1] = own[-1] + self.shift[i]
            logit = own[0]
            if len(own) > 1:
                logit = torch.stack(own, 1)
                if not self.training:
                    logit = kind.score(logit)
            logits.append(logit)
        for i in self.order:
            if self.before[i] >= 0:
                logits[i] = both(logits[self.before[i]], logits[i])
        return {task: logits[i] for i, task in enumerate(self.tasks)}


def _path(task: str, before: Mapping[str, str]) -> list[str]:
    """Return the tasks before `task`, nearest first."""
    return [before[task], *_path(before[task], before)] if task in before else []


def both(a: Tensor, b: Tensor) -> Tensor:
    """Return the logit of sigmoid(a) sigmoid(b), without a probability that rounds to 0 or 1.

    logit(p q) = -log(e^-a + e^-b + e^-(a + b)),  since 1 / (p q) = (1 + e^-a) (1 + e^-b)

    Args:
        a: logits of any shape.
        b: of the same shape.
    """
    return -torch.logaddexp(torch.logaddexp(-a, -b), -(a + b))
