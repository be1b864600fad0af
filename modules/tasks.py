"""What a task's kind means: which labels it has, its loss, and what its logit predicts. And the end of every network.

network -> one output a task -> Heads -> logit -> loss (training), metrics and prediction (evaluation, serving)
"""

import math
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.schema import Task
from modules.layers.precision import widen

_LARGEST = torch.finfo(torch.float32).max
Array = TypeVar("Array")  # a tensor or a numpy array


class Binary(nn.Module):
    """A label of 0 or 1: binary cross-entropy, and its probability.

    loss = -y log sigmoid(z) - (1 - y) log(1 - sigmoid(z)),  prediction = sigmoid(z)
    """

    wanted = "0 or 1"
    output = "probability"
    numeric = False
    retrieval = False

    @staticmethod
    def fits(labels: Array) -> Array:
        """Return which labels, of any shape, are of this kind."""
        return (labels == 0) | (labels == 1)

    @staticmethod
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        """Return each row's loss; all of one shape."""
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")

    def forward(self, logits: Tensor) -> Tensor:
        """Return the predictions; of one shape."""
        return torch.sigmoid(logits)


class WatchTime(nn.Module):
    """A time of 0 or more: weighted logistic regression whose odds are the expected time.

    loss = -T log sigmoid(z) - log(1 - sigmoid(z)),  prediction = e^z

    A row with T > 0 is a positive of weight T *and* a negative of weight 1, one with T = 0 a negative of weight 1. So
    the loss is least where e^z = E[T] exactly. Without the negative part of positives, as the method was published, it
    is E[T] / (1 - P(T > 0)): too much wherever clicks are not rare.

    Source: Covington et al., "Deep neural networks for YouTube recommendations", RecSys 2016, section 4.2; the
    correction is this project's.
    """

    wanted = "a number from 0 on"
    output = "expected value, in the label's unit"
    numeric = True
    retrieval = False

    @staticmethod
    def fits(labels: Array) -> Array:
        """Return which labels, of any shape, are of this kind."""
        return (labels >= 0) & (labels <= _LARGEST)

    @staticmethod
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        """Return each row's loss; all of one shape."""
        return labels * F.softplus(-logits) + F.softplus(logits)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the predictions; of one shape."""
        return torch.exp(logits)


class Regression(nn.Module):
    """A number of 0 or more with a long tail: squared error of its logarithm.

    loss = (z - log(1 + y))^2,  prediction = e^z - 1

    The prediction is a typical value, near the median; with a long tail it lies below the expected one, which kind
    watch_time predicts.
    """

    wanted = "a number from 0 on"
    output = "typical value, in the label's unit"
    numeric = True
    retrieval = False

    @staticmethod
    def fits(labels: Array) -> Array:
        """Return which labels, of any shape, are of this kind."""
        return (labels >= 0) & (labels <= _LARGEST)

    @staticmethod
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        """Return each row's loss; all of one shape."""
        return (logits - labels.log1p()).square()

    def forward(self, logits: Tensor) -> Tensor:
        """Return the predictions; of one shape."""
        return torch.expm1(logits)


class Retrieval(Binary):
    """A label of 0 or 1 whose positives are to be found among all items: softmax over the items of a batch.

    loss = -log sigmoid(z) = softplus(-z), of positives only,  prediction = the score itself

    In training z is the logit of the row's item against all others of the batch, s_i - log sum_{j != i} e^s_j: then
    sigmoid(z) is its softmax. The prediction ranks items and is no probability.
    """

    output = "score, by which items are ranked"
    retrieval = True

    @staticmethod
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        """Return each row's loss, were its label 1; all of one shape."""
        return F.softplus(-logits)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the predictions; of one shape."""
        return logits


Kind = Binary | WatchTime | Regression | Retrieval
_KINDS: dict[str, type[nn.Module]] = {
    "binary": Binary,
    "watch_time": WatchTime,
    "regression": Regression,
    "retrieval": Retrieval,
}


def kinds(tasks: Mapping[str, Task]) -> dict[str, Kind]:
    """Return each task's kind."""
    return {name: _KINDS[task.kind]() for name, task in tasks.items()}


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
            outputs: (B,) a task.

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
