"""Items by an inverted table: an item's score is a sum over the request's keys, and items off the air have none."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from livetrain.modules.recall.entries import best, entries, summed, weighed
from livetrain.modules.recall.fitted import Table
from livetrain.trainers.recall.nearest import Mask

_TYPES = {"keys": np.int64, "offsets": np.int64, "places": np.int32, "scores": np.float32, "rest": np.float32}
_ENTRIES = 1 << 22  # of a table, in memory at once: some 100 bytes each


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
        self._parts = [_tensor(getattr(table, name), kind) for name, kind in _TYPES.items()]

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
        keys, offsets, table_places, table_scores, rest = self._parts
        counts = torch.from_numpy(np.asarray(query.counts, np.int64))
        row, key, weights = weighed(
            keys,
            rest,
            torch.from_numpy(np.asarray(query.keys, np.int64)),
            counts,
            torch.from_numpy(np.asarray(query.weights, np.float32)),
        )
        items = max(len(self._table.items), 1)
        on_air = None if allowed is None else torch.from_numpy(allowed)
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        for start, stop in self._blocks(row, key, len(counts)):
            low, high = torch.searchsorted(row, torch.tensor([start, stop])).tolist()
            entry, of = entries(offsets, key[low:high])
            place, owner = table_places[entry].long(), row[low:high][of] - start
            value = table_scores[entry] * weights[low:high][of]
            if on_air is not None:
                kept = on_air[place]
                place, owner, value = place[kept], owner[kept], value[kept]
            found.append(best(*summed(owner, place, value, items), items, stop - start, count))
        none = [(torch.zeros(0, count, dtype=torch.int64), torch.zeros(0, count))]
        places, scores = (torch.cat(part).numpy() for part in zip(*(found or none), strict=True))
        return places, scores

    def _blocks(self, row: torch.Tensor, key: torch.Tensor, requests: int) -> Iterator[tuple[int, int]]:
        """Yield ranges of requests whose entries may be in memory at once."""
        offsets = self._parts[1]
        own = torch.zeros(requests, dtype=torch.int64).index_add_(0, row, offsets[key + 1] - offsets[key])
        before, start = torch.cumsum(own, 0) - own, 0
        while start < requests:
            stop = max(int(torch.searchsorted(before, before[start] + _ENTRIES)), start + 1)
            yield start, stop
            start = stop


def _tensor(array: np.ndarray, kind: Any) -> torch.Tensor:
    """Return an array as a tensor that shares its memory, which nobody writes to, where it is of this type."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(array, kind))
