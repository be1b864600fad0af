"""Numbers, one per row."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Feature
from livetrain.configs.values import real

Bound = Annotated[float, real(-1e38, 1e38)]  # float32 knows it


class NumberFeature(Feature):
    """A number per row that is clipped, taken the logarithm of and normalised, as far as the recipe says so."""

    clip: Annotated[list[Bound], Field(min_length=2, max_length=2)] | None = Field(
        None, description="[least, most]: numbers beyond are moved there"
    )
    log1p: bool = Field(False, description="take log(1 + x), after clip; of a negative x -log(1 - x)")
    missing_flag: bool = Field(False, description="a second number for the network: 1 where the first is missing, or 0")

    @property
    def plain(self) -> bool:
        return not (self.clip or self.log1p or self.missing_flag)

    @field_validator("clip")
    @classmethod
    def _rises(cls, clip: list[float] | None) -> list[float] | None:
        if clip is not None and clip[0] >= clip[1]:
            raise BadInput(f"{clip} does not rise; give the least number first, then the most")
        return clip

    def signature(self, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
        moments = {"mean": mean[0], "std": std[0]}
        own = {} if self.plain else self.model_dump(include={"clip", "log1p", "missing_flag"})
        return {"type": self.type, "dtype": "float32", "missing": "NaN"} | own | moments


class DenseFeature(NumberFeature):
    """One number per row, normalised with the training split's mean and deviation (null = missing = the mean)."""

    type: Literal["dense"]
