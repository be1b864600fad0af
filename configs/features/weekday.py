"""Days of the week."""

from collections.abc import Sequence
from typing import Any, Literal

from livetrain.configs.features.times import TimeFeature


class WeekdayFeature(TimeFeature):
    """The day of the week of a time, 0 (Monday) to 6, by the clocks of `zone`, summer time included."""

    type: Literal["weekday"]

    @property
    def ids(self) -> int:
        return 7

    def signature(self, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
        return super().signature(mean, std) | {"unit": "s", "wanted": "seconds since 1970, UTC"}
