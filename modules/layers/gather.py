"""The features of a row without its histories, as one vector."""

import torch
from torch import Tensor, nn

from livetrain.modules.inputs import Inputs
from livetrain.modules.layers import jagged


class Gather(nn.Module):
    """Concatenate the embeddings of id features, the means of sequences and the dense features.

    Args:
        inputs: the recipe's features.
        pooled: sequence features to average; the others are left out.
    """

    ids: list[str]
    pooled: list[str]

    def __init__(self, inputs: Inputs, pooled: list[str]) -> None:
        super().__init__()
        self.ids = list(inputs.ids)
        self.pooled = list(pooled)
        self.width = sum(inputs.ids.values()) + sum(inputs.sequences[f] for f in pooled) + len(inputs.dense)

    def forward(self, values: dict[str, Tensor], lengths: dict[str, Tensor], dense: Tensor) -> Tensor:
        """Build the vector of each row.

        Args:
            values: feature -> (sum of lengths, dim) embeddings.
            lengths: feature -> (B,), or fewer of a feature that rows share, see `Network`.
            dense: (B, D), normalised.

        Returns:
            (B, width): ids, sequences, dense, each in the recipe's order.
        """
        return torch.cat(self.each(values, lengths, dense.size(0)) + [dense], 1)

    def each(self, values: dict[str, Tensor], lengths: dict[str, Tensor], size: int) -> list[Tensor]:
        """Return the parts without the dense features: (B, dim) each, of B = `size` rows."""
        parts = [jagged.rows(values[name], lengths[name]) for name in self.ids]
        parts += [jagged.pool(values[name], lengths[name], True) for name in self.pooled]
        return [jagged.of_rows(part, lengths, size) for part in parts]
