"""Which row goes into which step: pure arithmetic on (seed, epoch, shard), without state and without files.

An epoch is one long virtual sequence of the split's N rows, drawn in two levels. Row groups that follow one another in
a file make runs, and the runs stand in an order drawn from (seed, epoch), or in file order without shuffling. The
sequence is cut into S = `data.shards` equal intervals, one per shard. A shard walks through its interval window by
window, in an order drawn from (seed, epoch, shard, window), and gives b rows to every global batch. So a batch has rows
of S places, each of them near to one another, and a shard reads one file at a time, from one end of a run to the other.
Nothing here knows how many workers there are, so a step's rows cannot depend on them, and a position is the pair
(epoch, step).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from livetrain.configs.errors import BadInput

ORDER = 2  # raised when the same data are read in another order: a checkpoint within an epoch fits no other


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of one row group."""

    group: int
    start: int
    stop: int


@dataclass(frozen=True)
class Window:
    """Rows [start, stop) of a shard's stream: the pieces that are read and shuffled together."""

    number: int
    of: int  # windows that its shard has
    start: int
    stop: int
    pieces: tuple[Piece, ...]


class Order:
    """The order of one split's rows.

    With N rows, S shards and batches of B rows: b = B / S rows of every shard go into a step, a shard's interval has
    L = ceil(N / S) rows (fewer, or none, in the last ones), and an epoch has ceil(L / b) steps.

    Args:
        rows: (G,) of every row group, in file order.
        files: (G,) number of each one's file, never falling.
        shards: S, a divisor of batch_size.
        batch_size: B, over all workers together.
        window: rows of a window, about: a shard's interval is cut into equal ones of at least as many, and of fewer
            than twice as many.
        most: rows of a window at most, which goes before `window`. Where two of them hold an interval, it is cut into
            no more, for as much is held of it anyway.
        run: rows of a run, about: a file's rows are counted off in stretches of so many, and a run is the row groups
            that begin in one of them. A larger row group is a run by itself.
        seed: non-negative.
        shuffle: False gives file order within each shard.
    """

    def __init__(
        self,
        rows: ArrayLike,
        files: ArrayLike,
        *,
        shards: int,
        batch_size: int,
        window: int,
        most: int,
        run: int,
        seed: int,
        shuffle: bool,
    ) -> None:
        self._sizes = np.asarray(rows, dtype=np.int64)
        self.rows = int(self._sizes.sum())
        self.shards = shards
        self.slice = batch_size // shards
        self.length = -(-self.rows // shards)
        self.steps = -(-self.length // self.slice)
        self._window, self._most = window, most
        self._begins = _runs(self._sizes, np.asarray(files), run)
        self._seed = seed
        self._shuffle = shuffle

    def owned(self, rank: int, world: int) -> range:
        """Return the shards of one rank.

        Raises:
            BadInput: the shards do not divide among the ranks.
        """
        if self.shards % world:
            fitting = ", ".join(str(n) for n in range(1, self.shards + 1) if self.shards % n == 0)
            raise BadInput(f"data.shards: {self.shards} shards do not divide among {world} workers; {fitting} would")
        share = self.shards // world
        return range(rank * share, (rank + 1) * share)

    def rows_of(self, shard: int) -> int:
        """Return the rows of a shard's interval."""
        return max(0, min(self.length, self.rows - shard * self.length))

    def run(self, group: int) -> range:
        """Return the row groups of the run that one belongs to."""
        place = int(np.searchsorted(self._begins, group, side="right"))
        last = place == len(self._begins)
        return range(int(self._begins[place - 1]), len(self._sizes) if last else int(self._begins[place]))

    def windows(self, epoch: int, shards: Sequence[int]) -> list[Iterator[Window]]:
        """Return the windows of each given shard, in reading order; they are made when they are asked for."""
        groups = np.arange(len(self._sizes))
        if self._shuffle:
            chosen = self._generator(epoch).permutation(len(self._begins))
            groups = _shifted(self._begins, np.diff(self._begins, append=len(groups)), chosen)
        ends = np.cumsum(self._sizes[groups])
        return [self._cut(groups, ends, shard) for shard in shards]

    def permutation(self, epoch: int, shard: int, window: Window, runs: np.ndarray | None = None) -> np.ndarray | None:
        """Return the reading order within a window, (rows,) int64, or None for the order as stored.

        Args:
            epoch: from 0.
            shard: of the window.
            window: the rows.
            runs: (runs,) int64, where each run of rows begins that stay together; by default each row is one.
        """
        if not self._shuffle:
            return None
        generator, rows = self._generator(epoch, shard, window.number), window.stop - window.start
        if runs is None:
            return generator.permutation(rows)
        return _shifted(runs, np.diff(runs, append=rows), generator.permutation(len(runs)))

    def _generator(self, *place: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(self._seed, spawn_key=place)))

    def _cut(self, groups: np.ndarray, ends: np.ndarray, shard: int) -> Iterator[Window]:
        """Cut one shard's interval of the virtual sequence into windows."""
        first, length = shard * self.length, self.rows_of(shard)
        count = self._count(length)
        index, start = int(np.searchsorted(ends, first, side="right")), 0
        for number in range(count):
            stop, pieces, at = (number + 1) * length // count, [], start
            while at < stop:
                group = int(groups[index])
                begin, end = int(ends[index] - self._sizes[group]) - first, int(ends[index]) - first
                upto = min(end, stop)
                if upto > at:  # no empty row group
                    pieces.append(Piece(group, at - begin, upto - begin))
                at = max(at, upto)
                index += end <= stop
            yield Window(number, count, start, stop, tuple(pieces))
            start = stop

    def _count(self, length: int) -> int:
        """Return into how many windows an interval of so many rows is cut."""
        if length <= 2 * self._most:
            return min(length, 2 if length > self._most or length >= 2 * self._window else 1)
        return max(length // self._window, -(-length // self._most))


def _runs(rows: np.ndarray, files: np.ndarray, most: int) -> np.ndarray:
    """Return which row groups a run begins with, (runs,) int64.

    A file's rows are counted off in stretches of `most`; a run is the row groups that begin in one of them.
    """
    begins = np.cumsum(rows) - rows
    new = np.diff(files, prepend=-1) != 0
    stretch = (begins - begins[np.flatnonzero(new)][np.cumsum(new) - 1]) // most
    return np.flatnonzero(new | (np.diff(stretch, prepend=0) != 0))


def _shifted(begins: np.ndarray, lengths: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the numbers [begins[i], begins[i] + lengths[i]) for each chosen i, one stretch after the other."""
    lengths = lengths[chosen]
    ends = np.cumsum(lengths)
    return np.repeat(begins[chosen] - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)
