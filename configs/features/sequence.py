"""Lists of ids."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import EmbeddedFeature
from livetrain.configs.values import FeatureName, Length, Text


class SequenceFeature(EmbeddedFeature):
    """A list of ids per row, newest last; a longer list loses its oldest entries, and the loss is counted.

    Each id may carry a vector, which the network gets beside the id's embedding.
    """

    type: Literal["sequence"]
    max_length: Length = Field(50, description="newest ids of a row that are used")
    vectors: Text | None = Field(
        None, description="column with a list of vectors per row, one of each id (null = missing)"
    )
    like: FeatureName | None = Field(
        None, description="the candidate's feature of type vector: width, normalisation and projection of `vectors`"
    )
    form: ClassVar[Literal["id", "sequence", "dense"]] = "sequence"
    apart: ClassVar[frozenset[str]] = EmbeddedFeature.apart | {"max_length", "like"}

    @model_validator(mode="after")
    def _vectors_are_like_some(self) -> "SequenceFeature":
        if (self.vectors is None) != (self.like is None):
            raise BadInput(
                "vectors: name in `like` the feature of type vector that they are as wide as, or leave both out"
            )
        return self

    @property
    def limit(self) -> int:
        return self.max_length

    @property
    def carried(self) -> str | None:
        return self.vectors

    @property
    def alike(self) -> str | None:
        return self.like

    @property
    def plain(self) -> bool:
        return True

    def signature(self, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
        return {
            "type": "sequence",
            "dtype": "int64",
            "table": self.table,
            "order": "newest last",
            "max_length": self.max_length,
            **(
                {"vectors": f"in dense under the feature's name, one like '{self.like}' of each id"}
                if self.like
                else {}
            ),
            "missing": "length 0",
        }
