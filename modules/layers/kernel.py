"""Products of every two fields' factors, each pair through a learned matrix of its own: the kernel of KFM."""

import torch
from torch import Tensor, nn

from livetrain.modules.layers.fields import Fields


class Kernel(nn.Module):
    """s_t = sum_{i<j} v_i^T W_tij v_j, with W_tij of size d_i x d_j.

    i and j run over the fields and, as the last one, the dense features together, whose vector is their numbers
    themselves: each meets every other field, and no dense feature meets another one. That is a decision of this
    project, and so is a W per task.

    All W_tij of a task are the blocks above the diagonal of one square matrix, so that s_t = v^T W_t v of the
    concatenated vectors v, and one matrix product serves all pairs and tasks. What lies on the diagonal and below it
    is masked.

    Args:
        fields: whose factors are multiplied.
        dense: D, number of dense features.

    Source: Qu et al., "Product-based neural networks for user response prediction over multi-field categorical data",
    TOIS 2018, 1807.00311: kernel FM.
    """

    masked: Tensor

    def __init__(self, fields: Fields, dense: int) -> None:
        super().__init__()
        dims = [*fields.dims.values(), dense]
        field = torch.repeat_interleave(torch.arange(len(dims)), torch.tensor(dims), output_size=sum(dims))  # (S,)
        # (S, S); it follows from the dims, so no checkpoint needs it.
        self.register_buffer("masked", field.unsqueeze(1) >= field, persistent=False)
        self.weight = nn.Parameter(torch.zeros(fields.tasks, len(field), len(field)))
        for of_task in self.weight.detach():
            for i, rows in enumerate(of_task.split(dims)):
                for block in rows.split(dims, 1)[i + 1 :]:
                    nn.init.xavier_normal_(block)

    def forward(self, factors: list[Tensor], dense: Tensor, weights: Tensor | None) -> Tensor:
        """Args: factors (B, d_i) per field, dense (B, D), weights unused. Returns: (B, T)."""
        v = torch.cat(factors + [dense], 1)  # (B, S)
        weight = self.weight.masked_fill(self.masked, 0.0).transpose(0, 1).flatten(1)  # (S, T * S)
        return ((v @ weight).view(v.size(0), -1, v.size(1)) * v.unsqueeze(1)).sum(2)
