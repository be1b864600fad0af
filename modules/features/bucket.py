"""Numbers to their buckets."""

import torch
from torch import Tensor

from livetrain.configs.features.bucket import BucketFeature
from livetrain.modules.features.registry import register_feature
from livetrain.modules.features.transform import Transform


@register_feature("bucket", BucketFeature)
class Bucket(Transform):
    """x -> 1 + how many bounds are at most x; 0 where x is missing.

    Of equal quantiles, as of a number that is 0 in most rows, the buckets between stay empty.
    """

    bounds: Tensor

    def __init__(self, feature: BucketFeature) -> None:
        super().__init__(feature)
        self.quantiles = feature.quantiles or 0
        bounds = torch.zeros(self.quantiles - 1) if feature.bounds is None else torch.tensor(feature.bounds)
        self.register_buffer("bounds", bounds.float())

    def cut_at(self, quantiles: Tensor) -> None:
        self.bounds.copy_(quantiles)

    def forward(self, values: Tensor) -> Tensor:
        """Args: values (B,). Returns: (B,) int64."""
        return torch.where(values.isnan(), 0, torch.bucketize(values.contiguous(), self.bounds, right=True) + 1)
