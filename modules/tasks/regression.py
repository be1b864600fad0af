"""Numbers whose typical value is predicted."""

import torch
from torch import Tensor

from livetrain.modules.tasks.number import Number
from livetrain.modules.tasks.registry import register_task


@register_task("regression")
class Regression(Number):
    """A number of 0 or more with a long tail: squared error of its logarithm.

    loss = (z - log(1 + y))^2,  prediction = e^z - 1

    The prediction is a typical value, near the median; with a long tail it lies below the expected one, which kind
    watch_time predicts.
    """

    output = "typical value, in the label's unit"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits - labels.log1p()).square()

    def forward(self, logits: Tensor) -> Tensor:
        return torch.expm1(logits)
