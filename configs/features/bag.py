"""Sets of ids."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import EmbeddedFeature
from livetrain.configs.values import Length, Text


class BagFeature(EmbeddedFeature):
    """Several ids per row, as tags, whose embeddings become one; a network takes it as it takes an id."""

    type: Literal["bag"]
    pooling: Literal["mean", "sum", "sqrtn", "max"] = Field(
        "mean", description="how a row's embeddings become one; sqrtn divides their sum by the root of their number"
    )
    weights: Text | None = Field(
        None, description="column with a list of numbers per row, a weight of each id (null = 1)"
    )
    max_length: Length = Field(50, description="ids of a row that are used, the last of a longer list")
    apart: ClassVar[frozenset[str]] = EmbeddedFeature.apart | {"max_length"}

    @model_validator(mode="after")
    def _weights_fit(self) -> "BagFeature":
        if self.weights is not None and self.pooling == "max":
            raise BadInput("weights: the largest of each number has no weights; use another pooling, or leave them out")
        return self

    @property
    def plain(self) -> bool:
        return True

    @property
    def limit(self) -> int:
        return self.max_length

    @property
    def pooled(self) -> str | None:
        return self.pooling

    @property
    def weighted(self) -> str | None:
        return self.weights

    def signature(self, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
        return {
            "type": "bag",
            "dtype": "int64",
            "table": self.table,
            "pooling": self.pooling,
            "weights": "in dense under the feature's name, one of each id" if self.weights else None,
            "max_length": self.max_length,
            "missing": "length 0",
        }
