"""What the model does with a feature before its table or its network."""

from torch import Tensor, nn

from livetrain.configs.schema import Feature


class Transform(nn.Module):
    """From the values that a feature's carrier holds to those that are looked up, or that the network gets.

    It has no parameters, acts on each value by itself, and torch.jit.script must accept it: training, evaluation and
    the exported file run the same module. By itself it changes nothing.

    Args:
        feature: the recipe's section.
    """

    def __init__(self, feature: Feature) -> None:
        super().__init__()

    def forward(self, values: Tensor) -> Tensor:
        """Transform one feature of a batch.

        Args:
            values: of the carrier ids: (N,) int64, all ids of all rows. Of the carrier numbers: (B,) float32, one per
                row, as they are in the data; NaN where a row has none, and in padding rows.

        Returns:
            Of the form id or sequence: ids, int64, of the same shape; their table's hash makes rows of them. Of the
            form dense: float32, of the same shape; NaN becomes 0.
        """
        return values
