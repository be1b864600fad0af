"""EASE: a linear model of items by items, in closed form, for catalogues of thousands."""

from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from scipy import linalg, sparse
from torch import nn

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import FittedConfig, Recipe
from livetrain.configs.values import Count, FeatureName, Text, real
from livetrain.modules.fitted import State
from livetrain.modules.recall.fitted import Fitted, Rows, Table, register_fitted, table
from livetrain.modules.recall.keys import HistoryKeys
from livetrain.trainers.recall.rows import events_of

BYTES = 26  # of memory per pair of items at the peak: three matrices of 8 bytes, and their masks
ITEMS = 30_000  # at most: 23 GB


class EASEConfig(FittedConfig):
    """A weight from every item to every other."""

    kind: Literal["ease"] = "ease"
    history: FeatureName = Field(description="sequence feature with the items that a request is answered by")
    user: Text | None = Field(
        None,
        description="column with the user of a row, whose items are those of the user's positive rows; by default each "
        "row is a user, with the items of its history and its own",
    )
    regularisation: Annotated[float, real(1e-6, 1e9)] = Field(500.0, description="of the squares of the weights")
    neighbours: Count = Field(1000, description="items that an item leads to, at most: those of the largest weights")

    def also_reads(self) -> list[tuple[str, str, str]]:
        return [(self.user, "group", "model.user")] if self.user is not None else []


@register_fitted("ease", EASEConfig)
class EASE(Fitted):
    """score(j) = sum over the items i of a request's history of B_ij

    B minimises |X - X B|^2 + regularisation |B|^2 with zeros on its diagonal, X the users' items as 0 and 1:

        B_ij = -P_ij / P_jj,   P = (X^T X + regularisation 1)^-1

    in float64, by Cholesky's decomposition: time grows with the cube of the number of items, and memory is 26 bytes for
    each pair of them and 16 per user and item. Each item keeps the weights of the largest size, whatever their sign.

    Args:
        config: see `EASEConfig`.
        recipe: the run.

    Raises:
        BadInput: a feature is none.

    Source: Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019, 1905.03375.
    """

    def __init__(self, config: EASEConfig, recipe: Recipe) -> None:
        super().__init__(config, recipe)
        self.config = config
        self.features = [self.feature("history", config.history, "sequence")]

    def request(self) -> nn.Module:
        return HistoryKeys(self.recipe, self.config.history)

    def fit(self, rows: Iterator[Rows], before: State | None = None) -> State:
        parts = [events_of(part, self.key, self.config.history, self.config.user) for part in rows]
        users, items, _ = (np.concatenate(column) for column in zip(*parts, strict=True))
        known, item = np.unique(items, return_inverse=True)
        if not len(known):
            raise BadInput(
                f"model.user: no positive row has a user in column '{self.config.user}'; name the column with the user"
            )
        if len(known) > ITEMS:
            raise BadInput(
                f"model.kind: ease holds a number for each pair of items, and {len(known):,} of them take "
                f"{1e-9 * BYTES * len(known) ** 2:,.0f} GB; it takes {ITEMS:,} items at most: use item_cf or als"
            )
        found = weights(np.unique(users, return_inverse=True)[1], item, len(known), self.config.regularisation)
        place, score = largest(found, self.config.neighbours)
        return {"items": known, "places": place, "scores": score}

    def table(self, state: State) -> Table:
        items, places, scores = state["items"], state["places"], state["scores"]
        there = places >= 0
        keys = np.repeat(items, places.shape[1])[there.ravel()]
        return table(keys, items[places[there]], scores[there])


def weights(user: np.ndarray, item: np.ndarray, items: int, regularisation: float) -> np.ndarray:
    """Return B, (items, items) float64.

    Args:
        user, item: (n,) of the events; a user counts an item once.
        items: how many there are.
        regularisation: see `EASE`.

    Example: two items that always come together, and one that comes alone.
        >>> weights(np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 2]), 3, 0.5)[:2, :2].round(2).tolist()
        [[0.0, 0.8], [0.8, 0.0]]
    """
    had = sparse.csr_array((np.ones(len(user)), (user, item)), shape=(int(user.max(initial=-1)) + 1, items))
    had.data[:] = 1  # what stands twice was added up
    gram = (had.T @ had).toarray()
    gram[np.diag_indices(items)] += regularisation
    lower = linalg.cholesky(gram, lower=True, overwrite_a=True, check_finite=False)
    inverse, failed = linalg.lapack.dpotri(lower, lower=1, overwrite_c=1)
    assert not failed  # of a positive diagonal
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    inverse /= -inverse.diagonal()
    inverse[np.diag_indices(items)] = 0
    return inverse


def largest(found: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return of each row the columns of its `most` largest numbers by size, rising, (N, m) int32, -1 for zeros, and
    these numbers, (N, m) float32."""
    most = min(most, len(found))
    places = np.empty((len(found), most), np.int32)
    scores = np.empty((len(found), most), np.float32)
    for row, numbers in enumerate(found):
        chosen = np.sort(np.argpartition(-np.abs(numbers), most - 1)[:most]) if most else np.zeros(0, np.int64)
        scores[row] = numbers[chosen]
        places[row] = np.where(scores[row] != 0, chosen, -1)
    return places, scores
