"""What drawing negatives is quick by: where ids lie, an item by its chance, and which rows have the same lists."""

from collections.abc import Sequence

import numpy as np

from livetrain.modules.mixing import mix


class Places:
    """Where each of some different ids lies, by a hash table that NumPy asks for many at once.

    Args:
        ids: (n,) int64.

    Example:
        >>> Places(np.array([30, 10, 20]))(np.array([10, 11, 30]))
        array([ 1, -1,  0], dtype=int32)
    """

    def __init__(self, ids: np.ndarray) -> None:
        self._ids = ids
        # Of places, -1 where there is none; an id whose slot is taken is in the next free one.
        self._table = np.full(1 << (2 * len(ids)).bit_length(), -1, np.int32 if len(ids) < 2**31 else np.int64)
        left, slot = np.arange(len(ids)), self._slots(ids)
        while len(left):
            free = self._table[slot] < 0
            self._table[slot[free]] = left[free]  # of several the last one
            passed = self._table[slot] != left
            left, slot = left[passed], (slot[passed] + 1) % len(self._table)

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Return where (n,) ids lie, -1 where they are none of them."""
        slot = self._slots(ids)
        found = self._table[slot]
        other = np.flatnonzero((found >= 0) & (self._ids[found] != ids))
        while len(other):
            slot[other] = (slot[other] + 1) % len(self._table)
            now = found[other] = self._table[slot[other]]
            other = other[(now >= 0) & (self._ids[now] != ids[other])]
        return found

    def _slots(self, ids: np.ndarray) -> np.ndarray:
        return (mix(ids.astype(np.uint64)) & np.uint64(len(self._table) - 1)).astype(np.int64)


class Chances:
    """Draws among n items of unequal chances, or among those of a range.

    Args:
        of: (n,) what the items' chances are proportional to, above 0.

    Example:
        >>> chances = Chances(np.array([1.0, 2.0, 1.0]))
        >>> chances.within(np.array([0, 1]), np.array([3, 3]), np.array([0.3, 0.9]))
        array([1, 2])
    """

    def __init__(self, of: np.ndarray) -> None:
        self.of = of
        self._cumulative = np.concatenate([[0.0], np.cumsum(of)])
        self._begins = np.searchsorted(self._part(self._cumulative), np.arange(len(of) + 2))

    def within(self, low: np.ndarray, high: np.ndarray, share: np.ndarray) -> np.ndarray:
        """Return the items of [low, high) up to which the given share of the range's chances lies."""
        begin, end = self._cumulative[low], self._cumulative[high]
        at = begin + share * (end - begin)
        part = self._part(at)
        return np.clip(bisect(self._cumulative, self._begins[part], self._begins[part + 1], at) - 1, low, high - 1)

    def _part(self, cumulative: np.ndarray) -> np.ndarray:
        """Return in which of n equal parts of all chances they end: each holds few items, among which to look."""
        return (cumulative * (len(self.of) / self._cumulative[-1])).astype(np.int64)


def bisect(values: np.ndarray, low: np.ndarray, high: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return, for ranges [low, high) in which values rise, where those above x begin; where x is NaN, low."""
    found, left = low.copy(), np.flatnonzero(low < high)
    low, high, x = low[left], high[left], x[left]
    while len(left):
        middle = (low + high) // 2
        right = values[middle] <= x
        low, high = np.where(right, middle + 1, low), np.where(right, high, middle)
        found[left], open_ = low, low < high
        left, low, high, x = left[open_], low[open_], high[open_], x[open_]
    return found


def begins_run(columns: Sequence[tuple[np.ndarray, np.ndarray]], numbers: Sequence[np.ndarray]) -> np.ndarray:
    """Return which of n rows differ from the row before in a list or in a number; the first one does.

    Args:
        columns: of lists, each by its (n + 1,) offsets and its ids.
        numbers: (n,) of each row. NaN differs from all.

    Returns:
        (n,) bool.

    Example:
        >>> lists = np.array([0, 2, 4, 6, 7]), np.array([1, 2, 1, 2, 1, 3, 3])
        >>> begins_run([lists], [np.zeros(4)])
        array([ True, False,  True,  True])
        >>> begins_run([lists], [np.array([0, 1, 1, 1])])
        array([ True,  True,  True,  True])
    """
    begins = np.ones(len(numbers[0]), bool)
    begins[1:] = np.logical_or.reduce([x[1:] != x[:-1] for x in numbers])
    for offsets, ids in columns:
        lengths = np.diff(offsets)
        begins[1:] |= lengths[1:] != lengths[:-1]
        alike = np.flatnonzero(~begins)
        alike = alike[lengths[alike] > 0]
        ends = offsets[alike], offsets[alike + 1] - 1
        differ = np.logical_or.reduce([ids[end] != ids[end - lengths[alike]] for end in ends])
        begins[alike[differ]] = True
        for row in alike[
            ~differ
        ].tolist():  # whole lists: far quicker so than by places of all ids, where they are long
            low, high = offsets[row], offsets[row + 1]
            begins[row] = not np.array_equal(ids[low:high], ids[low - (high - low) : low])
    return begins
