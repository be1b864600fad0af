"""Lists of ids."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from livetrain.configs.errors import BadInput
from livetrain.configs.features.times import Unit
from livetrain.configs.schema import EmbeddedFeature
from livetrain.configs.values import FeatureName, Length, Text


class SequenceFeature(EmbeddedFeature):
    """A list of ids per row, newest last; a longer list loses its oldest entries, and the loss is counted.

    Each id may carry a vector, which the network gets beside the id's embedding, or a time, of which networks that read
    times get how many seconds later the next one came.
    """

    type: Literal["sequence"]
    max_length: Length = Field(50, description="newest ids of a row that are used")
    vectors: Text | None = Field(
        None, description="column with a list of vectors per row, one of each id (null = missing)"
    )
    like: FeatureName | None = Field(
        None, description="the candidate's feature of type vector: width, normalisation and projection of `vectors`"
    )
    times: Text | None = Field(None, description="column with a list of times per row, one of each id, rising")
    until: Text | None = Field(None, description="with `times`: column of the row's own time, as timestamp")
    unit: Unit | None = Field(
        None, description="of times that are integers, counted since 1970; timestamps have theirs in their type"
    )
    form: ClassVar[Literal["id", "sequence", "dense"]] = "sequence"
    apart: ClassVar[frozenset[str]] = EmbeddedFeature.apart | {"max_length", "like", "times", "until", "unit"}

    @model_validator(mode="after")
    def _beside_fits(self) -> "SequenceFeature":
        if (self.vectors is None) != (self.like is None):
            raise BadInput(
                "vectors: name in `like` the feature of type vector that they are as wide as, or leave both out"
            )
        if (self.times is None) != (self.until is None):
            raise BadInput("times: name in `until` the column of the row's own time, or leave both out")
        if self.unit is not None and self.times is None:
            raise BadInput("unit: is that of `times`; name their column, or leave unit out")
        if self.times is not None and self.vectors is not None:
            raise BadInput(
                "times: an id carries either a vector or a time; name the column in a second feature for the other one"
            )
        return self

    @property
    def limit(self) -> int:
        return self.max_length

    @property
    def carried(self) -> str | None:
        return self.vectors or self.times

    @property
    def up_to(self) -> str | None:
        return self.until

    @property
    def time_unit(self) -> str | None:
        return self.unit

    @property
    def alike(self) -> str | None:
        return self.like

    @property
    def plain(self) -> bool:
        return True

    def signature(self, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
        beside = {}
        if self.like:
            beside = {"vectors": f"in dense under the feature's name, one like '{self.like}' of each id"}
        if self.times:
            beside = {
                "times": "in dense under the feature's name, float32: the seconds from each id's time to the next "
                f"one's, of the newest to '{self.until}', the request's own; NaN where one is not known"
            }
        return {
            "type": "sequence",
            "dtype": "int64",
            "table": self.table,
            "order": "newest last",
            "max_length": self.max_length,
            **beside,
            "missing": "length 0",
        }
