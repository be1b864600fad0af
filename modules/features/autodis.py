"""Automatic discretisation: a number becomes a learned mixture of learned embeddings."""

import torch
from torch import Tensor, nn

from livetrain.configs.features.autodis import AutodisFeature
from livetrain.modules.features.dense import Number
from livetrain.modules.features.registry import register_feature


class Mixture(nn.Module):
    """The embedding of a number x, already normalised, from H meta-embeddings of d numbers each, the rows of M:

        h = LeakyReLU(w x),  u = W h + α h,  p = softmax(u / τ),  e = p M

    w is (H,), W (H, H). A missing x is 0 here, the mean of the training split; its embedding is the mean of the rows of
    M. A flag in a second column is handed on.

    Args:
        dim: d.
        embeddings: H.
        skip: α.
        temperature: τ, one for all x; the paper learns one of each x around it.

    Source: Guo et al., "An embedding learning framework for numerical features in CTR prediction", KDD 2021
    (2012.08986), equations 5 to 8, with weighted-average aggregation.

    Example:
        >>> mixture = Mixture(dim=4, embeddings=16, skip=0.1, temperature=1.0)
        >>> mixture(torch.zeros(3, 1)).shape
        torch.Size([3, 4])
    """

    def __init__(self, dim: int, embeddings: int, skip: float, temperature: float) -> None:
        super().__init__()
        self.first = nn.Linear(1, embeddings, bias=False)
        self.second = nn.Linear(embeddings, embeddings, bias=False)
        self.meta = nn.Linear(embeddings, dim, bias=False)
        self.skip, self.temperature = skip, temperature

    def forward(self, numbers: Tensor) -> Tensor:
        """Args: numbers (B, 1), or (B, 2) with a flag. Returns: (B, d), or (B, d + 1)."""
        hidden = nn.functional.leaky_relu(self.first(numbers[:, :1]))  # (B, H)
        scores = self.second(hidden) + self.skip * hidden  # (B, H)
        mixed = self.meta(torch.softmax(scores / self.temperature, 1))
        return torch.cat([mixed, numbers[:, 1:]], 1)


@register_feature("autodis", AutodisFeature)
class Autodis(Number):
    """x as of a dense feature; then `Mixture`."""

    def __init__(self, feature: AutodisFeature) -> None:
        super().__init__(feature)
        self.measured = 1
        self.mixture = (feature.dim, feature.embeddings, feature.skip, feature.temperature)

    def encoder(self) -> nn.Module:
        return Mixture(*self.mixture)
