"""Vectors as they are, normalised place by place or projected where the recipe says so."""

from torch import nn

from livetrain.configs.features.vector import VectorFeature
from livetrain.modules.features.registry import register_feature
from livetrain.modules.features.transform import Transform


@register_feature("vector", VectorFeature)
class Vector(Transform):
    """v -> v; then W v + b with `projection`."""

    def __init__(self, feature: VectorFeature) -> None:
        super().__init__(feature)
        self.measured = feature.width if feature.normalise else 0
        self.projection = feature.projection

    def encoder(self) -> nn.Module | None:
        return None if self.projection is None else nn.Linear(self.columns, self.projection)
