"""Which row goes into which step: pure arithmetic on (seed, epoch, shard), without state and without files.

An epoch is one long virtual sequence of the split's N rows: its row groups in an order drawn from (seed, epoch), or in
file order without shuffling. The sequence is cut into S = `data.shards` equal intervals, one per shard. A shard walks
through its interval window by window, in an order drawn from (seed, epoch, shard, window), and gives b rows to every
global batch. Nothing here knows how many workers there are, so a step's rows cannot depend on them, and a position
is the pair (epoch, step).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from livetrain.configs.errors import BadInput


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
    start: int
    stop: int
    pieces: tuple[Piece, ...]


class Order:
    """The order of one split's rows.

    With N rows, S shards and batches of B rows: b = B / S rows of every shard go into a step, a shard's interval has
    L = ceil(N / S) rows (fewer, or none, in the last ones), and an epoch has ceil(L / b) steps.

    Args:
        sizes: rows of every row group, in file order.
        shards: S, a divisor of batch_size.
        batch_size: B, over all workers together.
        window: least rows of a window; only the last one of a shard may have fewer.
        seed: non-negative.
        shuffle: False gives file order within each shard.
    """

    def __init__(
        self, sizes: ArrayLike, *, shards: int, batch_size: int, window: int, seed: int, shuffle: bool
    ) -> None:
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.rows = int(self.sizes.sum())
        self.shards = shards
        self.slice = batch_size // shards
        self.length = -(-self.rows // shards)
        self.steps = -(-self.length // self.slice)
        self.window = window
        self.seed = seed
        self.shuffle = shuffle

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

    def windows(self, epoch: int, shards: Iterable[int]) -> list[list[Window]]:
        """Return the windows of each given shard, in reading order."""
        groups = np.arange(len(self.sizes))
        if self.shuffle:
            groups = self._generator(epoch).permutation(len(self.sizes))
        ends = np.cumsum(self.sizes[groups])
        return [self._cut(groups, ends, shard) for shard in shards]

    def permutation(self, epoch: int, shard: int, window: Window, runs: np.ndarray | None = None) -> np.ndarray | None:
        """Return the reading order within a window, (rows,) int64, or None for the order as stored.

        Args:
            epoch: from 0.
            shard: of the window.
            window: the rows.
            runs: (runs,) int64, where each run of rows begins that stay together; by default each row is one.
        """
        if not self.shuffle:
            return None
        generator, rows = self._generator(epoch, shard, window.number), window.stop - window.start
        if runs is None:
            return generator.permutation(rows)
        chosen = generator.permutation(len(runs))
        lengths = np.diff(runs, append=rows)[chosen]
        return np.repeat(runs[chosen] - (np.cumsum(lengths) - lengths), lengths) + np.arange(rows)

    def _generator(self, *place: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=place)))

    def _cut(self, groups: np.ndarray, ends: np.ndarray, shard: int) -> list[Window]:
        """Cut one shard's interval of the virtual sequence into windows."""
        first = min(shard * self.length, self.rows)
        last = min(first + self.length, self.rows)
        windows: list[Window] = []
        pieces: list[Piece] = []
        start, at = 0, first
        for index in range(int(np.searchsorted(ends, first, side="right")), len(groups)):
            if at >= last:
                break
            end = min(int(ends[index]), last)
            if end == at:  # an empty row group
                continue
            begin = int(ends[index] - self.sizes[groups[index]])
            pieces.append(Piece(int(groups[index]), at - begin, end - begin))
            at = end
            if at == last or at - first - start >= self.window:
                windows.append(Window(len(windows), start, at - first, tuple(pieces)))
                pieces, start = [], at - first
        return windows
