"""Ids of several features as one."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import EmbeddedFeature
from livetrain.configs.values import FeatureName


class CrossFeature(EmbeddedFeature):
    """The ids of two or three other features combined into one, within the model (missing where one of them is)."""

    type: Literal["cross"]
    of: Annotated[list[FeatureName], Field(min_length=2, max_length=3)] = Field(
        description="two or three features with at most one id per row; their order counts"
    )
    carrier: ClassVar[Literal["ids", "numbers", "features"]] = "features"
    apart: ClassVar[frozenset[str]] = EmbeddedFeature.apart | {"of"}

    @model_validator(mode="after")
    def _has_no_column(self) -> "CrossFeature":
        if self.column is not None:
            raise BadInput("column: a cross is made of other features within the model; leave the column out")
        if len({*self.of}) < len(self.of):
            raise BadInput("of: names a feature twice; name each once")
        return self

    @property
    def parts(self) -> list[str]:
        return self.of

    def signature(self, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
        return {"type": "cross", "of": self.of, "table": self.table, "made": "in the file; give no value"}
