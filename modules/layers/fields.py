"""The features of a row as fields: what each weighs by itself, and the factor by which it meets the others."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from livetrain.configs.errors import BadInput
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.gather import Gather


class Fields(nn.Module):
    """First-order logits, and a factor per field.

    first_t = b_t + u_t . dense + sum_f r_f[t],    v_f = r_f[T:]

    A field f is an id feature, with r_f its table row, or a sequence, with r_f the mean of its events' rows. Columns 0
    to T - 1 of a row are the id's weights for the T tasks, as in LR, and the others its factor: one lookup, and one
    exchange between ranks, serves both. A field without ids has r_f = 0.

    Args:
        inputs: the recipe's features.
        tasks: T, the tasks' outputs (see modules.tasks.heads.outputs).

    Attributes:
        dims: feature -> size of its factor, in the order of `forward`.

    Raises:
        BadInput: a table has no column left for factors.
    """

    def __init__(self, inputs: Inputs, tasks: int) -> None:
        super().__init__()
        self.tasks = tasks
        self.dims: dict[str, int] = {}
        for name, dim in {**inputs.ids, **inputs.sequences}.items():
            if dim <= tasks:
                raise BadInput(
                    f"model.kind: the table of features.{name} has dim {dim}, and its first {tasks}, one per output "
                    "of the tasks, are first-order weights, so that none is left for factors; raise its dim"
                )
            self.dims[name] = dim - tasks
        self.gather = Gather(inputs, list(inputs.sequences))
        self.weight = nn.Parameter(torch.zeros(tasks, len(inputs.dense)))
        self.bias = nn.Parameter(torch.zeros(tasks))

    def forward(
        self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Split the rows.

        Args:
            values: feature -> (sum of lengths, dim) embeddings.
            lengths: feature -> (B,), or fewer of a feature that rows share, see `Network`.
            dense: (B, D), normalised.

        Returns:
            (B, T) first-order logits, and (B, dim - T) per field, ids before sequences.
        """
        fields = self.gather.each(values, lengths, dense.size(0))
        parts = [F.linear(dense, self.weight, self.bias)] + [field[:, : self.tasks] for field in fields]
        return torch.stack(parts).sum(0), [field[:, self.tasks :] for field in fields]
