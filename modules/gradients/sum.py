"""The plain sum."""

import torch
from torch import Tensor

from livetrain.configs.schema import Measured
from livetrain.modules.gradients.combiner import Combiner, register_combiner


@register_combiner("sum", Measured)
class Sum(Combiner[Measured]):
    """w = 1: the gradient of the sum of the losses.

    Example:
        >>> from livetrain.modules.gradients.combiner import Start
        >>> Sum(Measured(), Start(torch.zeros(2), seed=1))(None, None, 0).tolist()
        [1.0, 1.0]
    """

    def forward(self, gram: Tensor | None, losses: Tensor | None, step: int) -> Tensor:
        return torch.ones(self.tasks, dtype=torch.float64)
