"""Numbers whose typical value is predicted, whatever a few of them are."""

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from livetrain.configs.schema import Task
from livetrain.configs.values import Positive
from livetrain.modules.tasks.number import Number
from livetrain.modules.tasks.registry import register_task


class HuberTask(Task):
    """A number of 0 or more, of which large errors count by their size and small ones by their square."""

    delta: Positive = Field(1.0, description="largest error, in the label's unit, that counts by its square")


@register_task("huber", HuberTask)
class Huber(Number):
    """A number of 0 or more: Huber's loss of the number itself.

    loss = (z - y)^2 / 2 where |z - y| <= delta, and delta (|z - y| - delta / 2) beyond,  prediction = z

    The prediction lies between the median (delta small) and the mean (delta large).

    Args:
        task: see `HuberTask`.

    Source: Huber, "Robust estimation of a location parameter", 1964.
    """

    output = "typical value, in the label's unit"

    def __init__(self, task: HuberTask) -> None:
        super().__init__(task)
        self.delta = task.delta

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.huber_loss(logits, labels, reduction="none", delta=self.delta)

    def forward(self, logits: Tensor) -> Tensor:
        return logits
