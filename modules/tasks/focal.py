"""Labels of 0 and 1, of which the rows that are predicted well hardly count."""

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from livetrain.configs.schema import Task
from livetrain.configs.values import real
from livetrain.modules.tasks.binary import Binary
from livetrain.modules.tasks.registry import register_task


class FocalTask(Task):
    """A label of 0 or 1; rows that are predicted well count less."""

    gamma: Annotated[float, real(0, 100)] = Field(2.0, description="how little rows count that are predicted well")
    alpha: Annotated[float, real(0, 1)] | None = Field(
        None, description="weight of positives; that of negatives is 1 - alpha. By default both are 1"
    )


@register_task("focal", FocalTask)
class Focal(Binary):
    """A label of 0 or 1: focal loss.

    loss = -alpha_y (1 - p_y)^gamma log p_y,  p_1 = sigmoid(z), p_0 = 1 - p_1,  prediction = sigmoid(z)

    The prediction orders rows and is no calibrated probability: it is nearer to 1/2 than the truth is.

    Args:
        task: see `FocalTask`.

    Source: Lin et al., "Focal loss for dense object detection", ICCV 2017, 1708.02002, equation 5.
    """

    output = "score between 0 and 1, not calibrated"
    odds = False

    def __init__(self, task: FocalTask) -> None:
        super().__init__(task)
        self.gamma, self.alpha = task.gamma, task.alpha
        # With alpha it depends on how many labels are 1.
        self.untrained = 0.0 if task.alpha is not None else Binary.untrained / 2**task.gamma

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        own = logits * (2 * labels - 1)  # the logit of the row's own class
        loss = F.softplus(-own) * (self.gamma * F.logsigmoid(-own)).exp()
        if self.alpha is None:
            return loss
        return loss * (self.alpha * labels + (1 - self.alpha) * (1 - labels))
