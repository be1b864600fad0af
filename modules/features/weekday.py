"""Times to the day of the week."""

from torch import Tensor

from livetrain.configs.features.weekday import WeekdayFeature
from livetrain.modules.features.local import Local
from livetrain.modules.features.registry import register_feature


@register_feature("weekday", WeekdayFeature)
class Weekday(Local):
    """seconds since 1970 -> 0 (Monday) .. 6"""

    def forward(self, values: Tensor) -> Tensor:
        return (self.local(values).div(86_400, rounding_mode="floor") + 3).remainder(7)  # 1970 began on a Thursday
