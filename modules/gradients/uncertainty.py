"""Task weights from a learned variance per task."""

import torch
from pydantic import Field
from torch import Tensor

from livetrain.configs.schema import Measured
from livetrain.configs.values import Positive
from livetrain.modules.gradients.combiner import Combiner, Start, register_combiner


class UncertaintyConfig(Measured):
    """Task weights exp(-s) with a learned s per task (1705.07115)."""

    lr: Positive = Field(0.025, description="of s, whatever the schedule")


@register_combiner("uncertainty", UncertaintyConfig)
class Uncertainty(Combiner[UncertaintyConfig]):
    """Weigh by a learned variance per task: L = sum_i exp(-s_i) L_i + s_i / 2, s = log sigma^2, from s = 0.

    s follows plain gradient descent; at rest exp(-s_i) = 1 / (2 L_i).

    Example:
        >>> combiner = Uncertainty(UncertaintyConfig(kind="uncertainty", lr=0.1), Start(torch.zeros(2), seed=1))
        >>> [combiner(None, torch.tensor([0.5, 2.0], dtype=torch.float64), step).tolist() for step in (0, 1)]
        [[1.0, 1.0], [1.0, 0.8607079764250578]]

    Source: Kendall, Gal and Cipolla, "Multi-task learning using uncertainty", 1705.07115, section 3.2, the form for
    classification.
    """

    needs_losses = True

    log_variance: Tensor

    def __init__(self, config: UncertaintyConfig, start: Start) -> None:
        super().__init__(config, start)
        self.register_buffer("log_variance", torch.zeros(self.tasks, dtype=torch.float64))

    def forward(self, gram: Tensor | None, losses: Tensor | None, step: int) -> Tensor:
        assert losses is not None
        used = torch.exp(-self.log_variance)
        self.log_variance -= self.config.lr * (0.5 - used * losses)
        return used
