"""Numbers that are embedded by automatic discretisation."""

from typing import Annotated, Literal

from pydantic import Field

from livetrain.configs.features.dense import NumberFeature
from livetrain.configs.values import Positive, PositiveOrZero, Size, whole


class AutodisFeature(NumberFeature):
    """A number per row, of which the network gets a mixture of learned embeddings (AutoDis, KDD 2021)."""

    type: Literal["autodis"]
    dim: Size = Field(8, description="numbers that the network gets")
    embeddings: Annotated[int, *whole(2, 1024)] = Field(16, description="meta-embeddings that are mixed: the paper's H")
    skip: PositiveOrZero = Field(0.1, description="part of the first layer that is added to the second: the paper's α")
    temperature: Positive = Field(
        1.0, description="small: nearly one embedding counts; large: all alike; the paper's τ"
    )
