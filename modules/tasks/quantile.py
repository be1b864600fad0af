"""Numbers of which a quantile is predicted."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from livetrain.configs.schema import Task
from livetrain.configs.values import real
from livetrain.modules.tasks.number import Number
from livetrain.modules.tasks.registry import register_task


class QuantileTask(Task):
    """A number of 0 or more, of which a quantile is predicted."""

    quantile: Annotated[float, real(0.001, 0.999)] = Field(
        0.5, description="share of the labels that are to lie below the prediction"
    )


@register_task("quantile", QuantileTask)
class Quantile(Number):
    """A number of 0 or more: the pinball loss of its logarithm.

    loss = max(q e, (q - 1) e),  e = log(1 + y) - z,  prediction = e^z - 1

    A quantile of the logarithm is the logarithm of the quantile, so the prediction is the q-quantile of the label. In
    logarithms a long tail makes no large gradients. Several quantiles are several tasks.

    Args:
        task: see `QuantileTask`.

    Source: Koenker and Bassett, "Regression quantiles", Econometrica 1978.
    """

    output = "quantile, in the label's unit"

    def __init__(self, task: QuantileTask) -> None:
        super().__init__(task)
        self.quantile = task.quantile

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        error = labels.log1p() - logits
        return torch.maximum(self.quantile * error, (self.quantile - 1) * error)

    def forward(self, logits: Tensor) -> Tensor:
        return torch.expm1(logits)
