"""From a network's logits to what tasks learn and predict, chains of tasks included."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from livetrain.configs.schema import Task
from livetrain.modules.layers.precision import widen


class Heads(nn.Module):
    """The end of every network: its outputs become the tasks' logits.

    In training a logit is that of the training split, in evaluation and serving that of all impressions. They differ
    for a task of which only a share w of the negatives was kept: its odds in training are 1 / w times the true ones,

        training logit = logit - ln w,

    and the network learns the true logit. Where a task follows another one in a chain, its output is the logit of the
    conditional event, and its logit that of the joint one: of the product of both probabilities. The product is
    taken last, so the factors are corrected before it: in training it is of the sampled distribution as a whole.

    Args:
        tasks: the recipe's.
        before: task -> the task before it in its chain.
    """

    tasks: list[str]
    order: list[int]
    before: list[int]
    shift: list[float]

    def __init__(self, tasks: Mapping[str, Task], before: Mapping[str, str] | None = None) -> None:
        super().__init__()
        before = before or {}
        self.tasks = list(tasks)
        self.before = [self.tasks.index(before[task]) if task in before else -1 for task in tasks]
        self.order = sorted(range(len(tasks)), key=lambda i: len(_path(self.tasks[i], before)))
        self.shift = [-math.log(task.negatives_kept) for task in tasks.values()]

    def forward(self, outputs: list[Tensor]) -> dict[str, Tensor]:
        """Return the logits.

        Args:
            outputs: (B,) per task.

        Returns:
            task -> (B,), in float32 where autocast left less.
        """
        logits = [widen(output) for output in outputs]
        for i in self.order:
            if self.training and self.shift[i] != 0.0:
                logits[i] = logits[i] + self.shift[i]
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
