"""What features of times have in common."""

import zoneinfo

from pydantic import Field, field_validator

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import EmbeddedFeature, Feature
from livetrain.configs.schema.feature import Holds
from livetrain.configs.values import Unit


class Timed(Feature):
    """A feature whose column holds points in time."""

    unit: Unit | None = Field(
        None, description="of a column of integers, counted since 1970; timestamps have theirs in their type"
    )

    @property
    def holds(self) -> Holds:
        return "time" if self.unit is None else "unix time"

    @property
    def time_unit(self) -> str | None:
        return self.unit


class TimeFeature(Timed, EmbeddedFeature):
    """A point in time of which something is looked up that the clocks of a place say (null = the zero vector)."""

    zone: str = Field("UTC", description="whose clocks, as Asia/Shanghai or Europe/Berlin")

    @field_validator("zone")
    @classmethod
    def _known(cls, zone: str) -> str:
        try:
            zoneinfo.ZoneInfo(zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise BadInput(f"there is no time zone '{zone}'; use a name such as Asia/Shanghai or UTC") from error
        return zone
