"""What had happened before: point-in-time histories and running rates over any log of events.

Everything here asks one question, "which events of this key came strictly before this moment?", so no sample can see
its own outcome, another of the same instant, or the future. All of it is array arithmetic over integers: a sample's
history and statistics are functions of its earlier events alone, to the last bit.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spans:
    """For each of R questions, the positions [start, stop) of a timeline's order that hold the earlier events."""

    start: np.ndarray  # (R,) int64
    stop: np.ndarray  # (R,) int64

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, rows: slice | np.ndarray) -> "Spans":
        return Spans(self.start[rows], self.stop[rows])

    @property
    def count(self) -> np.ndarray:
        """(R,) number of earlier events."""
        return self.stop - self.start

    def last(self, limit: int) -> "Spans":
        """Return the spans of each question's last `limit` earlier events at most."""
        return Spans(np.maximum(self.start, self.stop - limit), self.stop)


class Timeline:
    """The events of a log, sorted by key, then time, then order of arrival.

    Args:
        key: (N,) integers, whose events they are (a user, a movie).
        time: (N,) integers, when they happened, in any one unit.

    Example:
        >>> timeline = Timeline(np.array([7, 7, 7]), np.array([10, 20, 20]))
        >>> spans = timeline.before(np.array([7, 7, 8]), np.array([20, 21, 99]))
        >>> spans.count.tolist()
        [1, 3, 0]
        >>> [part.tolist() for part in timeline.latest(spans, 2)]
        [[0, 1, 3, 3], [0, 1, 2]]
    """

    def __init__(self, key: np.ndarray, time: np.ndarray):
        self._keys, codes = np.unique(key, return_inverse=True)
        self._times, moments = np.unique(time, return_inverse=True)
        # (key, moment) as one integer: at most N * (N + 1), which int64 holds for any log that fits in memory.
        places = codes.astype(np.int64) * (len(self._times) + 1) + moments
        self.order = np.argsort(places, kind="stable")  # (N,) event numbers
        self._places = places[self.order]

    def before(self, key: np.ndarray, time: np.ndarray) -> Spans:
        """Return the events of each `key` strictly before each `time`.

        Args:
            key: (R,) integers; a key without events has an empty span.
            time: (R,) integers, in the events' unit.
        """
        codes = np.searchsorted(self._keys, key)
        known = codes < len(self._keys)
        known[known] = self._keys[codes[known]] == np.asarray(key)[known]
        moments = np.searchsorted(
            self._times, time, side="left"
        )  # events of an earlier moment, and only they, are less
        first = codes.astype(np.int64) * (len(self._times) + 1)
        start = np.searchsorted(self._places, first)
        stop = np.searchsorted(self._places, first + moments)
        return Spans(np.where(known, start, 0), np.where(known, stop, 0))

    def latest(self, spans: Spans, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """Return each question's last `limit` earlier events, newest last.

        Returns:
            offsets: (R + 1,) int64, question r owns events[offsets[r]:offsets[r + 1]].
            events: (offsets[-1],) int64 event numbers, to index the log's columns with.
        """
        lengths = spans.last(limit).count
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        positions = np.arange(offsets[-1]) + np.repeat(spans.stop - offsets[1:], lengths)
        return offsets, self.order[positions]

    def newest(self, spans: Spans, value: np.ndarray) -> np.ndarray:
        """Return (R,) int64, the event number of each question's newest earlier event with `value`, -1 without any.

        Args:
            spans: from `before`.
            value: (N,) booleans, one per event.
        """
        if not len(self.order):
            return np.full(len(spans), -1)
        places = np.maximum.accumulate(np.where(value[self.order], np.arange(len(self.order)), -1))
        found = np.where(spans.stop > 0, places[np.maximum(spans.stop, 1) - 1], -1)
        return np.where((found >= spans.start) & (spans.count > 0), self.order[np.maximum(found, 0)], -1)

    def total(self, spans: Spans, value: np.ndarray) -> np.ndarray:
        """Return (R,) int64, the sum of `value` over each question's earlier events.

        Args:
            spans: from `before`.
            value: (N,) booleans or integers, one per event. Floats are refused: a difference of float prefix sums would
                carry rounding from other keys' later events into a sample.
        """
        if value.dtype.kind not in "bui":
            raise TypeError(f"running totals take booleans or integers, not {value.dtype}")
        prefix = np.concatenate([np.zeros(1, np.int64), np.cumsum(value[self.order], dtype=np.int64)])
        return prefix[spans.stop] - prefix[spans.start]

    def rate(self, spans: Spans, value: np.ndarray) -> np.ndarray:
        """Return (R,) float64, the mean of `value` over each question's earlier events; NaN where there are none.

        rate_r = (1 / n_r) * sum over earlier events e of r of value_e
        """
        count = spans.count
        total = self.total(spans, value)
        return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
