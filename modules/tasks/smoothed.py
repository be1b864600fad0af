"""Labels of 0 and 1 that are not wholly believed."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from livetrain.configs.schema import Task
from livetrain.configs.values import real
from livetrain.modules.tasks.binary import Binary
from livetrain.modules.tasks.registry import register_task


class SmoothedTask(Task):
    """A label of 0 or 1, drawn towards 1/2."""

    smoothing: Annotated[float, real(0, 1)] = Field(0.1, description="share of a label that is spread over 0 and 1")


@register_task("smoothed", SmoothedTask)
class Smoothed(Binary):
    """A label of 0 or 1: cross-entropy of smoothed labels.

    loss = -y' log sigmoid(z) - (1 - y') log(1 - sigmoid(z)),  y' = (1 - e) y + e / 2,  prediction = sigmoid(z)

    The least loss is at sigmoid(z) = (1 - e) P(y = 1) + e / 2: the prediction orders rows, and is no calibrated
    probability. Of a rare label it is far too large.

    Args:
        task: see `SmoothedTask`.

    Source: Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016, 1512.00567,
    section 7.
    """

    output = "score between 0 and 1, not calibrated"
    odds = False

    def __init__(self, task: SmoothedTask) -> None:
        super().__init__(task)
        self.smoothing = task.smoothing

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().loss(logits, (1 - self.smoothing) * labels + self.smoothing / 2)
