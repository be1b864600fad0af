"""The time between two points in time, as a number."""

from torch import Tensor

from livetrain.configs.features.age import AgeFeature
from livetrain.modules.features.dense import Number
from livetrain.modules.features.registry import register_feature

_SECONDS = {"seconds": 1.0, "hours": 3600.0, "days": 86_400.0}


@register_feature("age", AgeFeature)
class Age(Number):
    """seconds -> seconds, hours or days, and then as of a dense feature"""

    def __init__(self, feature: AgeFeature) -> None:
        super().__init__(feature)
        self.per = _SECONDS[feature.per]

    def forward(self, values: Tensor) -> Tensor:
        """Args: values (B,). Returns: (B,), or (B, 2) with `missing_flag`."""
        return self.number(values / self.per)
