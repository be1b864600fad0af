"""Items by an inverted table: an item's score is a sum over the request's keys, and items off the air have none."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import sparse

from livetrain.modules.recall.fitted import Table
from livetrain.trainers.recall.nearest import Mask

_TYPES = {"keys": np.int64, "offsets": np.int64, "places": np.int32, "scores": np.float32, "rest": np.float32}
_CELLS = 1 << 25  # scores in memory at once


class Request(NamedTuple):
    """Keys of B requests, as the request side of a fitted model answers them."""

    keys: np.ndarray  # (M,) int64, of one request after the other
    counts: np.ndarray  # (B,) int64: how many each has
    weights: np.ndarray  # (M,) float32


class SearchedTable:
    """score(request, item) = sum over the request's keys of weight x table[key, item]; items without a score are none.

    Args:
        table: what a model has learned; see modules.recall.fitted.Table, also for `rest`.

    Example:
        >>> parts = {"keys": [3, 8], "offsets": [0, 2, 3], "items": [40, 50], "places": [0, 1, 1], "rest": []}
        >>> table = SearchedTable(Table(**{n: np.array(x) for n, x in parts.items()}, scores=np.array([1.0, 2.0, 5.0])))
        >>> asked = Request(np.array([3, 8, 9]), np.array([2, 1]), np.array([1.0, 0.5, 1.0]))
        >>> places, scores = table.search(asked, 2, None)  # the table has no key 9
        >>> places.tolist(), scores.tolist()
        ([[1, 0], [-1, -1]], [[4.5, 1.0], [-inf, -inf]])
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._sparse = sparse.csr_array(
            (table.scores, table.places, table.offsets), shape=(len(table.keys), len(table.items))
        )

    @classmethod
    def read(cls, folder: Path, items: np.ndarray) -> "SearchedTable":
        """Return the table that a folder holds, mapped, of these items."""
        parts = {}
        for name, kind in _TYPES.items():
            file = folder / f"table.{name}.bin"
            parts[name] = np.memmap(file, kind, "r") if file.stat().st_size else np.zeros(0, kind)  # no bytes, no map
        return cls(Table(items=items, **parts))

    def write(self, folder: Path) -> None:
        """Write the table as files of plain numbers, little-endian."""
        for name, kind in _TYPES.items():
            getattr(self._table, name).astype(np.dtype(kind).newbyteorder("<")).tofile(folder / f"table.{name}.bin")

    def search(self, query: Request, count: int, allowed: Mask | None) -> tuple[np.ndarray, np.ndarray]:
        """Find the items with the largest scores, the largest first; of equal ones the first places.

        Args:
            query: B requests.
            count: items per request.
            allowed: which items may be found, by their places; all by default.

        Returns:
            (B, count) int64 places of items, -1 where there are no more, and (B, count) float32 scores, there -inf.
        """
        requests, size = len(query.counts), len(self._table.items)
        asked = sparse.csr_array(self._weighed(query), shape=(requests, len(self._table.keys)))
        places, scores = np.full((requests, count), -1), np.full((requests, count), -np.inf, np.float32)
        step = max(_CELLS // max(size, 1), 1)
        for start in range(0, requests, step):
            found = (asked[start : start + step] @ self._sparse).tocoo()
            _best(found, count, allowed, places[start : start + step], scores[start : start + step])
        return places, scores

    def _weighed(self, query: Request) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """Return the weights of the keys that the table has, and of each its request and its place."""
        keys, rest = self._table.keys, self._table.rest
        row = np.repeat(np.arange(len(query.counts)), query.counts)
        at = np.searchsorted(keys, query.keys).clip(max=max(len(keys) - 1, 0))
        known = keys[at] == query.keys if len(keys) else np.zeros(len(at), bool)
        row, at, weights = row[known], at[known], query.weights[known].astype(np.float32)
        if len(rest) and len(row):  # what a key leaves to those behind it
            taken = np.log(rest[at].astype(np.float64))
            before = np.cumsum(taken) - taken
            weights = weights * np.exp(before - before[np.searchsorted(row, row)]).astype(np.float32)
        return weights, (row, at)


def _best(found: sparse.coo_array, count: int, allowed: Mask | None, places: np.ndarray, scores: np.ndarray) -> None:
    """Put each row's best items into `places` and `scores`."""
    row, column, value = found.row, found.col, found.data
    if allowed is not None:
        kept = allowed[column]
        row, column, value = row[kept], column[kept], value[kept]
    order = np.lexsort((column, -value, row))
    row, column, value = row[order], column[order], value[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    kept = rank < count
    places[row[kept], rank[kept]] = column[kept]
    scores[row[kept], rank[kept]] = value[kept]
