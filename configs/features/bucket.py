"""Numbers that are cut into buckets, one per row."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from livetrain.configs.errors import BadInput
from livetrain.configs.features.dense import Bound
from livetrain.configs.schema import EmbeddedFeature
from livetrain.configs.values import whole

_MOST = 65_536  # as many rows as quantiles are taken of


class BucketFeature(EmbeddedFeature):
    """A number of which the bucket is looked up: 0 where it is missing, 1 below the first bound, then one by one."""

    type: Literal["bucket"]
    bounds: Annotated[list[Bound], Field(min_length=1, max_length=_MOST)] | None = Field(
        None, description="least number of each bucket but the lowest, rising"
    )
    quantiles: Annotated[int, *whole(2, _MOST)] | None = Field(
        None, description="how many buckets of equally many rows of the training split, in place of bounds"
    )
    carrier: ClassVar[Literal["ids", "numbers"]] = "numbers"

    @property
    def ids(self) -> int:
        return 1 + (self.quantiles or len(self.bounds or []) + 1)

    @field_validator("bounds")
    @classmethod
    def _rise(cls, bounds: list[float] | None) -> list[float] | None:
        if bounds is not None and bounds != sorted(set(bounds)):
            raise BadInput(f"{bounds} do not rise; give each bound once, in order")
        return bounds

    @model_validator(mode="after")
    def _one_way(self) -> "BucketFeature":
        if (self.bounds is None) == (self.quantiles is None):
            raise BadInput("wants either bounds or quantiles: give one of the two")
        return self

    def signature(self, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
        return {"type": "bucket", "dtype": "float32", "table": self.table, "missing": "NaN"}
