"""Times to the hour of the day."""

from torch import Tensor

from livetrain.configs.features.hour import HourFeature
from livetrain.modules.features.local import Local
from livetrain.modules.features.registry import register_feature


@register_feature("hour", HourFeature)
class Hour(Local):
    """seconds since 1970 -> 0 .. 23"""

    def forward(self, values: Tensor) -> Tensor:
        return self.local(values).div(3600, rounding_mode="floor").remainder(24)
