"""Ids that are made of several features' ids."""

from torch import Tensor

from livetrain.configs.features.cross import CrossFeature
from livetrain.modules.features.registry import register_feature
from livetrain.modules.features.transform import Transform
from livetrain.modules.layers import jagged
from livetrain.modules.tables.hashing import mix


@register_feature("cross", CrossFeature)
class Cross(Transform):
    """The ids of `cross`, as they are."""


def cross(parts: list[Tensor], lengths: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Combine the ids of two or more features: a row that lacks one of them has none.

        c(a, b) = mix(mix(a) + b),    c(a, b, c) = mix(mix(mix(a) + b) + c)

    with `hashing.mix`, and sums that wrap at 64 bits. c(a, b) and c(b, a) are different ids. Two pairs meet in one id
    about as often as two of as many random numbers of 63 bits; what the table's hash makes of them meets far sooner.

    Args:
        parts: (N_k,) ids of each feature, at most one per row.
        lengths: (B,) of each feature, 0 or 1; or (1,) of a feature whose one row counts for all.

    Returns:
        (M,) ids and their lengths (B,), M = their sum.

    Example:
        >>> import torch
        >>> both, second = torch.tensor([1, 1]), torch.tensor([0, 1])
        >>> ids, lengths = cross([torch.tensor([7, 8]), torch.tensor([5])], [both, second])
        >>> lengths, torch.equal(ids, mix(mix(torch.tensor([8])) + 5))
        (tensor([0, 1]), True)
    """
    made = jagged.rows(parts[0].unsqueeze(1), lengths[0]).squeeze(1)  # (B,)
    there = lengths[0] > 0
    for part, length in zip(parts[1:], lengths[1:]):  # noqa: B905 (TorchScript knows no strict)
        made = mix(made) + jagged.rows(part.unsqueeze(1), length).squeeze(1)
        there = there & (length > 0)
    return _kept(mix(made), there), there.long()


def _kept(ids: Tensor, there: Tensor) -> Tensor:
    """Return the ids (B,) of rows that have all features. How many these are is what the host waits for."""
    return ids[there]
