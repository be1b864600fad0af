"""The time between two points in time."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from livetrain.configs.features.dense import NumberFeature
from livetrain.configs.features.times import Timed
from livetrain.configs.values import Text


class AgeFeature(Timed, NumberFeature):
    """The time from `column` to `until`, a number per row, normalised (see DenseFeature).

    It is missing where one of the two is null, and negative where `until` is the earlier one.
    """

    type: Literal["age"]
    until: Text = Field("timestamp", description="Parquet column of the later time, by default the row's own")
    per: Literal["seconds", "hours", "days"] = Field("days", description="what is counted, and what clip is given in")

    @property
    def plain(self) -> bool:
        return False

    @property
    def second_column(self) -> str:
        return self.until

    def signature(self, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
        return super().signature(mean, std) | {"per": self.per, "wanted": f"seconds until '{self.until}'"}
