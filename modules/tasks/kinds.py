"""What a task's kind means: which labels it has, its loss, and what its logit predicts. And the end of every network.

network -> one output a task -> Heads -> logit -> loss (training), metrics and prediction (evaluation, serving)
"""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from livetrain.configs.schema import Task

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
