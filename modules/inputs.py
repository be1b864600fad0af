"""What a dense network is given: the features of a recipe with their embedding sizes."""

from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Inputs:
    """The features by type, in the recipe's order.

    Args:
        ids: id feature -> dim of its embedding.
        sequences: sequence feature -> size of an event: dim of its embedding, and columns of the vector beside it.
        dense: the feature of each column of the dense tensor; a feature of several columns is there as often.
        like: sequence feature whose events carry vectors -> the candidate's dense feature of the same columns.
        timed: sequence features whose events have times, which modules.layers.jagged.gaps_of reads.
        tables: id or sequence feature -> its table.
        limits: sequence feature -> its max_length.
    """

    ids: dict[str, int]
    sequences: dict[str, int]
    dense: list[str]
    like: dict[str, str] = field(default_factory=dict)
    timed: list[str] = field(default_factory=list)
    tables: dict[str, str] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)

    def only(self, names: Collection[str]) -> "Inputs":
        """Return some of the features, with neither `like` nor what follows it.

        >>> Inputs({"user": 4, "item": 8}, {"seen": 8}, ["price"]).only(["item", "price"])
        Inputs(ids={'item': 8}, sequences={}, dense=['price'], like={}, timed=[], tables={}, limits={})
        """
        return Inputs(
            ids={name: dim for name, dim in self.ids.items() if name in names},
            sequences={name: dim for name, dim in self.sequences.items() if name in names},
            dense=[name for name in self.dense if name in names],
        )

    def beside(self, sequence: str) -> tuple[int, int]:
        """Return where the columns begin that a candidate has of what a sequence's events carry, and their number.

        >>> Inputs({"item": 8}, {"seen": 10}, ["price", "picture", "picture"], {"seen": "picture"}).beside("seen")
        (1, 2)
        """
        like = self.like.get(sequence)
        return (0, 0) if like is None else (self.dense.index(like), self.dense.count(like))
