"""What a dense network is given: the features of a recipe with their embedding sizes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Inputs:
    """The features by type, in the recipe's order.

    Args:
        ids: id feature -> dim of its embedding.
        sequences: sequence feature -> dim of its embeddings.
        dense: the feature of each column of the dense tensor; a feature of several columns is there as often.
    """

    ids: dict[str, int]
    sequences: dict[str, int]
    dense: list[str]
