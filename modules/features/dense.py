"""Numbers, normalised by the training split's statistics."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from livetrain.configs.features.dense import DenseFeature, NumberFeature
from livetrain.modules.features.registry import register_feature
from livetrain.modules.features.transform import Transform


@register_feature("dense", DenseFeature)
class Number(Transform):
    """x -> sign(y) log(1 + |y|), y = min(max(x, least), most), as far as the recipe asks for each; NaN stays NaN.

    With `missing_flag` a second column is 1 where x is missing, and otherwise 0. The first is normalised, together with
    all other features', by `Normalise`.
    """

    def __init__(self, feature: NumberFeature) -> None:
        super().__init__(feature)
        self.clip, self.log1p, self.flag = feature.clip is not None, feature.log1p, feature.missing_flag
        self.least, self.most = feature.clip or (0.0, 0.0)
        self.columns, self.measured = 1 + feature.missing_flag, 1

    def forward(self, values: Tensor) -> Tensor:
        """Args: values (B,). Returns: (B,), or (B, 2) with `missing_flag`."""
        return self.number(values)

    def number(self, values: Tensor) -> Tensor:
        """Do what `forward` does: for kinds that begin otherwise."""
        number = values
        if self.clip:
            number = number.clamp(self.least, self.most)  # of NaN NaN
        if self.log1p:
            number = number.sign() * number.abs().log1p()
        if self.flag:
            return torch.stack([number, values.isnan().to(number.dtype)], 1)
        return number


class Normalise(nn.Module):
    """Numbers as (x - mean) / std of the training split; a missing value (NaN) becomes the mean, 0.

    A column that is not normalised (see `Transform.measured`) has mean 0 and deviation 1 here.

    Args:
        width: how many columns there are.
        like: sequence feature whose events carry vectors -> the first of the columns that these are as.
    """

    mean: torch.Tensor
    std: torch.Tensor
    like: dict[str, int]

    def __init__(self, width: int, like: Mapping[str, int]) -> None:
        super().__init__()
        self.like = dict(like)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def forward(self, dense: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Normalise columns.

        Args:
            dense: (B, d) float32, NaN = missing.
            first: which column its first one is.

        Returns:
            (B, d) float32 without NaN.
        """
        stop = first + dense.size(1)
        return torch.nan_to_num((dense - self.mean[first:stop]) / self.std[first:stop], nan=0.0)

    def events(self, vectors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Do the same to the vectors (N, w) that events carry, by feature; gaps between times stay as they are."""
        out: dict[str, torch.Tensor] = {}
        for name, part in vectors.items():
            out[name] = self.forward(part, self.like[name]) if name in self.like else part
        return out
