"""What the model does with a feature before its table or its network."""

from torch import Tensor, nn

from livetrain.configs.schema import Feature


class Transform(nn.Module):
    """From the values that a feature's carrier holds to those that are looked up, or that the network gets.

    It has no parameters, acts on each row by itself, and torch.jit.script must accept it: training, evaluation and
    the exported file run the same module. By itself it changes nothing. What is learned of numbers is `encoder`'s.

    Args:
        feature: the recipe's section.

    Attributes:
        columns: how many numbers per row a feature of the form dense makes of its `feature.numbers`.
        measured: how many of these, from the first on, are normalised: with the mean and the deviation that they have
            on the training split, as this transform makes them; a missing one then is the mean.
        quantiles: n, where `cut_at` is to be given the training split's quantiles before training; otherwise 0.
    """

    def __init__(self, feature: Feature) -> None:
        super().__init__()
        self.columns = feature.numbers
        self.measured = feature.numbers if feature.plain else 0
        self.quantiles = 0

    def forward(self, values: Tensor) -> Tensor:
        """Transform one feature of a batch.

        Args:
            values: of the carrier ids: (N,) int64, all ids of all rows. Of the carrier numbers: float32, (B,), or
                (B, w) of a feature of w > 1 numbers per row, as they are in the data; NaN where a row has none, and in
                padding rows.

        Returns:
            Of the form id or sequence: int64 ids, one for each id, or one per row of numbers; their table's hash makes
            rows of them. Of the form dense: float32, (B,) or (B, `columns`); NaN becomes 0, or the mean if `measured`.
        """
        return values

    def cut_at(self, quantiles: Tensor) -> None:
        """Take what the training split's numbers are cut at into parts of equally many rows, and keep it in a buffer.

        Args:
            quantiles: (n - 1,) float32, the k/n quantiles, k = 1 .. n - 1, of a feature of one number per row.
        """
        raise NotImplementedError(f"{type(self).__name__} asks for quantiles and has no cut_at")

    def encoder(self) -> nn.Module | None:
        """Return what the network gets the feature's numbers through, with parameters of its own; None if directly.

        It takes (B, `columns`) float32 without NaN and returns (B, d). It belongs to the dense part: its parameters
        are learned as a network's are, and torch.jit.script must accept it too.
        """
        return None
