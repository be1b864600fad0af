"""A kind of feature of one's own, for ``features: {price: {type: steps, table: price, edges: [1, 10, 100]}}``."""

from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import EmbeddedFeature
from livetrain.modules.features.registry import register_feature
from livetrain.modules.features.transform import Transform


class StepsFeature(EmbeddedFeature):
    """A number whose step is looked up: 0 where it is missing, 1 below the first edge, and so on."""

    type: Literal["steps"]
    edges: list[float] = Field(min_length=1)
    carrier: ClassVar[Literal["ids", "numbers"]] = "numbers"  # what the column holds; a network sees an id

    @field_validator("edges")
    @classmethod
    def _rise(cls, edges: list[float]) -> list[float]:
        if edges != sorted(set(edges)):
            raise BadInput(f"{edges} do not rise; give each edge once, in order")
        return edges


@register_feature("steps", StepsFeature)
class Steps(Transform):
    def __init__(self, feature: StepsFeature) -> None:
        super().__init__(feature)
        self.register_buffer("edges", torch.tensor(feature.edges), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        step = torch.bucketize(values, self.edges, right=True) + 1
        return torch.where(values.isnan(), 0, step)
