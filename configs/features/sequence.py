"""Lists of ids."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from livetrain.configs.schema import EmbeddedFeature
from livetrain.configs.values import Length


class SequenceFeature(EmbeddedFeature):
    """A list of ids per row, newest last; a longer list loses its oldest entries, and the loss is counted."""

    type: Literal["sequence"]
    max_length: Length = Field(50, description="newest ids of a row that are used")
    form: ClassVar[Literal["id", "sequence", "dense"]] = "sequence"
    apart: ClassVar[frozenset[str]] = EmbeddedFeature.apart | {"max_length"}

    @property
    def limit(self) -> int:
        return self.max_length

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
            "missing": "length 0",
        }
