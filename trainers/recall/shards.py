"""Inverted tables in shards of their keys: entries wait on disk, and a shard at a time is in memory.

A key lies evenly in [0, 2**63) (see modules.recall.joined.spread), and shard s of S has those from s 2**63 / S on: a
key's shard is a function of the key, and shards one after another are in the order of their keys.

A fit's state has of each shard ``keys``, how many entries each has in ``counts``, and their ``items`` and ``scores``,
under names such as ``items-00003``: files of their own, so that a server may hold some shards alone.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from livetrain.modules.fitted import State
from livetrain.modules.recall.fitted import Table

ENTRY = np.dtype([("key", np.int64), ("item", np.int64), ("value", np.float64)])
_PARTS = ("keys", "counts", "items", "scores")


class Spill:
    """Entries by the shards of their keys, 24 bytes each, in a folder that ends with it. A context manager.

    Args:
        shards: how many.
    """

    def __init__(self, shards: int) -> None:
        self.shards = shards

    def __enter__(self) -> "Spill":
        self._folder = tempfile.TemporaryDirectory(prefix="livetrain-shards-")
        self._files = [(Path(self._folder.name) / f"{shard:05d}").open("w+b") for shard in range(self.shards)]
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files:
            file.close()
        self._folder.cleanup()

    def add(self, keys: np.ndarray, items: np.ndarray, values: np.ndarray) -> None:
        """Append entries, (n,) each."""
        entries = np.empty(len(keys), ENTRY)
        entries["key"], entries["item"], entries["value"] = keys, items, values
        shard = shard_of(keys, self.shards)
        order = np.argsort(shard, kind="stable")
        ends = np.searchsorted(shard[order], np.arange(1, self.shards))
        for file, part in zip(self._files, np.split(entries[order], ends), strict=True):
            file.write(part.tobytes())

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the entries of one shard after the other, in the order in which they came."""
        for shard in range(self.shards):
            yield self[shard]

    def __getitem__(self, shard: int) -> np.ndarray:
        """Return the entries of one shard."""
        file = self._files[shard]
        file.flush()
        return np.fromfile(file.name, ENTRY)


def shard_of(keys: np.ndarray, shards: int) -> np.ndarray:
    """Return the shard of each key, (n,) int64: floor(key S / 2**63), from the key's 32 leading bits.

    Example:
        >>> shard_of(np.array([0, 2**62 - 1, 2**62, 2**63 - 1]), 4)
        array([0, 1, 2, 3])
    """
    return ((keys >> 31) * shards) >> 32


def summed(entries: np.ndarray) -> np.ndarray:
    """Return entries with each pair of key and item once, its values added up, by rising key and item."""
    entries = entries[np.lexsort((entries["item"], entries["key"]))]
    new = np.ones(len(entries), bool)
    new[1:] = (np.diff(entries["key"]) != 0) | (np.diff(entries["item"]) != 0)
    found = entries[new]
    found["value"] = np.add.reduceat(entries["value"], np.flatnonzero(new)) if len(found) else 0
    return found


def shares(entries: np.ndarray, newest: float, half_life: float | None, prior: float) -> np.ndarray:
    """Return the share of each item in what its key counts: c_ki / (c_k + prior), c of events that fade with age.

    Args:
        entries: of events; a value is the time, in seconds. A time that is not known counts as `newest`.
        newest: of all times.
        half_life: seconds after which an event counts half; None: all count 1.
        prior: of what a key with few events is held down by.
    """
    entries = entries.copy()
    ages = np.nan_to_num(newest - entries["value"])
    entries["value"] = 1.0 if half_life is None else np.exp2(-ages / half_life)
    found = summed(entries)
    _, place = np.unique(found["key"], return_inverse=True)
    found["value"] /= (np.bincount(place, found["value"]) + prior)[place]
    return found


def best(entries: np.ndarray, most: int) -> np.ndarray:
    """Return of each key the `most` entries with the largest values, of equal ones those of the least item.

    Args:
        entries: by rising key and item, each pair once.
        most: at least 1.
    """
    order = np.lexsort((entries["item"], -entries["value"], entries["key"]))
    keys = entries["key"][order]
    begins = np.searchsorted(keys, keys)
    kept = np.sort(order[np.arange(len(order)) - begins < most])
    return entries[kept]


def kept(shard: int, entries: np.ndarray) -> State:
    """Return a shard's part of a state, on disk: entries by rising key and item."""
    keys, counts = np.unique(entries["key"], return_counts=True)
    values = entries["value"].astype(np.float32)
    parts: tuple[np.ndarray, ...] = (keys, counts.astype(np.int64), entries["item"], values)
    return {f"{part}-{shard:05d}": aside(own) for part, own in zip(_PARTS, parts, strict=True)}


def joined(state: State) -> Table:
    """Return the table of all shards. Its entries lie on disk; in memory are all items, and a shard."""
    shards = sum(name.startswith("keys-") for name in state)
    parts = [[state[f"{part}-{shard:05d}"] for part in _PARTS] for shard in range(shards)]
    known = np.zeros(0, np.int64)
    for _, _, items, _ in parts:
        known = np.union1d(known, items)
    sizes = np.array([[len(keys), len(items)] for keys, _, items, _ in parts]).reshape(-1, 2).sum(0)
    keys, offsets = room(sizes[0], np.int64), room(sizes[0] + 1, np.int64)
    places, scores = room(sizes[1], np.int32), room(sizes[1], np.float32)
    key = entry = 0
    for own, counts, items, values in parts:
        keys[key : key + len(own)] = own
        offsets[key + 1 : key + len(own) + 1] = entry + np.cumsum(counts)
        places[entry : entry + len(items)] = np.searchsorted(known, items)
        scores[entry : entry + len(items)] = values
        key, entry = key + len(own), entry + len(items)
    return Table(keys, offsets, known, places, scores, np.zeros(0, np.float32))


def aside(values: np.ndarray) -> np.ndarray:
    """Return an array of the same numbers whose memory is a file without a name."""
    found = room(len(values), values.dtype)
    found[:] = values
    return found


def room(size: int, kind: Any) -> np.ndarray:
    """Return zeros, (size,), in a file without a name that lasts as long as the array does."""
    if not size:
        return np.zeros(0, kind)
    with tempfile.TemporaryFile(prefix="livetrain-shard-") as file:
        return np.memmap(file, kind, "w+", shape=(int(size),))
