"""Hours of the day."""

from collections.abc import Sequence
from typing import Any, Literal

from livetrain.configs.features.times import TimeFeature


class HourFeature(TimeFeature):
    """The hour of a time, 0 to 23, by the clocks of `zone`, summer time included."""

    type: Literal["hour"]

    @property
    def ids(self) -> int:
        return 24

    def signature(self, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
        return super().signature(mean, std) | {"unit": "s", "wanted": "seconds since 1970, UTC"}
