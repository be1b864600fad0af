"""What features of times have in common."""

import zoneinfo
from typing import Literal

from pydantic import Field, field_validator

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import EmbeddedFeature
from livetrain.configs.schema.feature import Holds

Unit = Literal["s", "ms", "us", "ns"]
UNIT = Field(None, description="of a column of integers, counted since 1970; timestamps have theirs in their type")


class TimeFeature(EmbeddedFeature):
    """A point in time of which something is looked up that the clocks of a place say (null = the zero vector)."""

    unit: Unit | None = UNIT
    zone: str = Field("UTC", description="whose clocks, as Asia/Shanghai or Europe/Berlin")

    @property
    def holds(self) -> Holds:
        return "time" if self.unit is None else "unix time"

    @property
    def time_unit(self) -> str | None:
        return self.unit

    @field_validator("zone")
    @classmethod
    def _known(cls, zone: str) -> str:
        try:
            zoneinfo.ZoneInfo(zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise BadInput(f"there is no time zone '{zone}'; use a name such as Asia/Shanghai or UTC") from error
        return zone
