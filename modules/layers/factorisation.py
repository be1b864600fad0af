"""Pairwise products of factors in linear time: what FM, NFM and DeepFM have in common."""

import torch
from torch import Tensor, nn

from livetrain.configs.errors import BadInput
from livetrain.modules.layers.fields import Fields


class BiInteraction(nn.Module):
    """f = sum_{i<j} v_i * v_j = ((sum_i v_i)^2 - sum_i v_i^2) / 2, element by element.

    i and j run over the fields and over the dense features, of which x_i has a learned vector w_i and v_i = x_i w_i.

    Args:
        fields: whose factors are multiplied.
        dense: D, number of dense features.

    Attributes:
        width: k, size of a factor.

    Raises:
        BadInput: the factors differ in size, or there is no table to say their size.

    Source: Rendle, "Factorization machines", ICDM 2010, lemma 3.1; He and Chua, 1708.05027, equation 4.
    """

    def __init__(self, fields: Fields, dense: int) -> None:
        super().__init__()
        if not fields.dims:
            raise BadInput(
                "model.kind: factors are as large as the tables' rows, and no feature has a table; add an id or a "
                "sequence feature, or use kind dnn"
            )
        (first, self.width), *others = fields.dims.items()
        for name, width in others:
            if width != self.width:
                raise BadInput(
                    f"model.kind: factors are multiplied element by element, and an id of features.{first} has "
                    f"{self.width + fields.tasks} numbers, one of features.{name} {width + fields.tasks}; give all "
                    "tables one dim and sequences no vectors, or use kind kfm"
                )
        self.dense = nn.Parameter(torch.empty(dense, self.width).normal_(std=0.01))  # as rows of tables begin

    def forward(self, factors: list[Tensor], dense: Tensor) -> Tensor:
        """Args: factors (B, k) per field, dense (B, D). Returns: (B, k)."""
        v = torch.cat([torch.stack(factors, 1), dense.unsqueeze(2) * self.dense], 1)  # (B, F + D, k)
        return (v.sum(1).square() - v.square().sum(1)) / 2


class Factorisation(nn.Module):
    """The second-order term of a factorisation machine: a logit per task from f of `BiInteraction`.

    s_t = h_t . f

    With one task h is constantly 1, which is the textbook's sum_{i<j} v_i . v_j. Several tasks share the factors, and
    each learns h_t, from 1 on; that is a decision of this project.

    Args:
        fields: whose factors are multiplied.
        dense: D, number of dense features.

    Raises:
        BadInput: see `BiInteraction`.

    Source: Rendle, "Factorization machines", ICDM 2010, equation 1.
    """

    def __init__(self, fields: Fields, dense: int) -> None:
        super().__init__()
        self.pairs = BiInteraction(fields, dense)
        ones = torch.ones(fields.tasks, self.pairs.width)
        self.weight = nn.Parameter(ones) if fields.tasks > 1 else None

    def forward(self, factors: list[Tensor], dense: Tensor, weights: Tensor | None) -> Tensor:
        """Args: factors (B, k) per field, dense (B, D), weights unused. Returns: (B, T)."""
        f = self.pairs(factors, dense)  # (B, k)
        if self.weight is None:
            return f.sum(1, keepdim=True)
        return f @ self.weight.t()
