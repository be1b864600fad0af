"""Times whose expected value is predicted."""

import torch
from torch import Tensor
from torch.nn import functional as F

from livetrain.modules.tasks.number import Number
from livetrain.modules.tasks.registry import register_task


@register_task("watch_time")
class WatchTime(Number):
    """A time of 0 or more: weighted logistic regression whose odds are the expected time.

    loss = -T log sigmoid(z) - log(1 - sigmoid(z)),  prediction = e^z

    A row with T > 0 is a positive of weight T *and* a negative of weight 1, one with T = 0 a negative of weight 1. So
    the loss is least where e^z = E[T] exactly. Without the negative part of positives, as the method was published, it
    is E[T] / (1 - P(T > 0)): too much wherever clicks are not rare.

    Source: Covington et al., "Deep neural networks for YouTube recommendations", RecSys 2016, section 4.2; the
    correction is this project's.
    """

    output = "expected value, in the label's unit"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return labels * F.softplus(-logits) + F.softplus(logits)

    def forward(self, logits: Tensor) -> Tensor:
        return torch.exp(logits)
