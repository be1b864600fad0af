"""Vectors: lists of equally many numbers."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from livetrain.configs.schema import Feature
from livetrain.configs.values import Length, Size


class VectorFeature(Feature):
    """A list of `width` numbers per row, as a content model makes them (null = missing = zeros, or the mean)."""

    type: Literal["vector"]
    width: Length = Field(description="numbers of each row's list")
    normalise: bool = Field(False, description="normalise each place with the training split's mean and deviation")
    projection: Size | None = Field(None, description="numbers that a learned linear layer makes of the vector")

    @property
    def plain(self) -> bool:
        return True

    @property
    def numbers(self) -> int:
        return self.width

    @property
    def holds(self) -> Literal["vector"]:
        return "vector"

    def signature(self, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
        moments = {"mean": [*mean], "std": [*std]} if self.normalise else {}
        return {"type": "vector", "dtype": "float32", "width": self.width, "missing": "NaN"} | moments
