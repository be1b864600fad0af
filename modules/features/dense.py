"""Numbers, normalised by the training split's statistics."""

import torch
from torch import nn

from livetrain.configs.features.dense import DenseFeature
from livetrain.modules.features.registry import register_feature
from livetrain.modules.features.transform import Transform


@register_feature("dense", DenseFeature)
class Number(Transform):
    """number -> number; all of them are normalised at once, by `Normalise`."""


class Normalise(nn.Module):
    """Dense features as (x - mean) / std of the training split; a missing value (NaN) becomes the mean, 0.

    A kind with a transform of its own has mean 0 and deviation 1 here: what it answers is its own affair.

    Args:
        width: D, how many dense features there are.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def forward(self, dense: torch.Tensor) -> torch.Tensor:
        """Args: dense (B, D) float32, NaN = missing. Returns: (B, D) float32 without NaN."""
        return torch.nan_to_num((dense - self.mean) / self.std, nan=0.0)
