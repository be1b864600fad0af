"""Times whose expected value is put together of the chances that they pass thresholds."""

from typing import Annotated

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Task
from livetrain.configs.values import Positive, PositiveOrZero
from livetrain.modules.tasks.number import Number
from livetrain.modules.tasks.registry import register_task


class OrdinalTask(Task):
    """A time of 0 or more, predicted by the chances that it passes thresholds."""

    thresholds: Annotated[list[Positive], Field(min_length=2, max_length=256)] = Field(
        description="rising, in the label's unit; longer times count as the last one"
    )
    restoration: PositiveOrZero = Field(1.0, description="weight of the restored time's error in the loss")
    order: PositiveOrZero = Field(0.1, description="weight, in the loss, of chances that rise from threshold to next")

    @field_validator("thresholds")
    @classmethod
    def _rise(cls, value: list[float]) -> list[float]:
        if any(above <= below for below, above in zip(value, value[1:], strict=False)):
            raise BadInput(f"{value} do not rise; give each threshold once, in order")
        return value

    def same_output(self, old: Task) -> bool:
        return isinstance(old, OrdinalTask) and self.thresholds == old.thresholds


@register_task("ordinal", OrdinalTask)
class Ordinal(Number):
    """A time of 0 or more: classification by thresholds t_1 < ... < t_M, and restoration of the time (CREAD).

    q_m = sigmoid(z_m),  prediction = sum_m q_m (t_m - t_{m-1}),  t_0 = 0

    loss = mean_m CE(z_m, y_m) + restoration ((prediction - y) / t_M)^2 / 2 + order sum_m max(q_{m+1} - q_m, 0)

    y_m is how much of the way from t_{m-1} to t_m the time goes, 1 beyond t_m, and y = min(time, t_M). So y is
    exactly sum_m y_m (t_m - t_{m-1}), and each term has its least where q_m = E[y_m]: the prediction is the expected
    y. As published y_m is 1 beyond t_m and 0 before, which loses, of each time, what lies beyond the last threshold
    that it passed. The published restoration is Huber's loss, which within 1 is this square.

    Args:
        task: see `OrdinalTask`; `thresholds` below picks them as the paper does.

    Source: Sun et al., "CREAD: a classification-restoration framework with error adaptive discretization for watch
    time prediction in video recommender systems", AAAI 2024, 2401.07521.
    """

    widths: Tensor
    starts: Tensor
    output = "expected value, in the label's unit"

    def __init__(self, task: OrdinalTask) -> None:
        super().__init__(task)
        ends = torch.tensor(task.thresholds)
        self.outputs = len(ends)
        self.restoration, self.rising, self.longest = task.restoration, task.order, task.thresholds[-1]
        self.register_buffer("starts", torch.cat([torch.zeros(1), ends[:-1]]), persistent=False)
        self.register_buffer("widths", ends - self.starts, persistent=False)

    def score(self, outputs: Tensor) -> Tensor:
        return (torch.sigmoid(outputs) * self.widths).sum(1)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        way = ((labels.unsqueeze(1) - self.starts) / self.widths).clamp(0, 1)  # (B, M)
        chances = torch.sigmoid(logits)
        apart = (self.score(logits) - labels.clamp(max=self.longest)) / self.longest
        classified = F.binary_cross_entropy_with_logits(logits, way, reduction="none").mean(1)
        rises = (chances[:, 1:] - chances[:, :-1]).relu().sum(1)
        return classified + self.restoration * apart.square() / 2 + self.rising * rises

    def forward(self, logits: Tensor) -> Tensor:
        return logits


def thresholds(times: np.ndarray, count: int, alpha: float = 1.0) -> list[float]:
    """Pick thresholds by error-adaptive discretisation: quantiles of the times, ever closer to one another.

    t_m = the g(m / count)-quantile,  g(x) = (1 - e^(-alpha x)) / (1 - e^(-alpha))

    With alpha near 0 all buckets hold equally many times; the larger alpha, the fewer times are in the last ones, which
    are then shorter. Equal thresholds are given once.

    Args:
        times: (n,), of the training split.
        count: of thresholds, at most.
        alpha: above 0.

    Returns:
        For ``tasks.X.thresholds``; the last one is the longest time.

    Source: as `Ordinal`, section 4.

    Example:
        >>> thresholds(np.arange(101.0), 4, alpha=1e-6)
        [25.0, 50.0, 75.0, 100.0]
    """
    x = np.arange(1, count + 1) / count
    found = np.quantile(np.asarray(times, np.float64), np.expm1(-alpha * x) / np.expm1(-alpha))
    return [float(f"{time:.6g}") for time in np.unique(found[found > 0])]
