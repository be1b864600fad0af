"""Batches of a split for one rank: read ahead, shuffled by seed, resumable at any step."""

import functools
import heapq
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from typing import cast

import numpy as np
import torch

from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Batch
from livetrain.trainers.data.read.decode import Decoder
from livetrain.trainers.data.read.negatives import Negatives
from livetrain.trainers.data.read.order import Order, Window
from livetrain.trainers.data.read.pieces import Pieces, Rows
from livetrain.trainers.data.read.prefetch import Loaders, run_ahead
from livetrain.trainers.data.read.records import Block
from livetrain.trainers.data.read.requests import RequestDecoder
from livetrain.trainers.data.read.shared import Shared
from livetrain.trainers.data.read.source import Source

_RUN = 65_536  # rows of a run at most, and
_RUN_BYTES = 2**25  # bytes of it, decoded
_CHUNK = 16_384  # rows that are decoded at a time at most, and
_CHUNK_BYTES = 2**21  # bytes of them


class Reader:
    """The batches of one rank.

    Global batch t holds rows [t b, (t + 1) b) of every shard's stream, b = batch_size / shards (read/order.py says
    which rows these are); this rank's part holds its own shards' rows, shard by shard. Every rank has the same
    number of steps and of rows per step, padding included, and batch t is the same whether or not its predecessors were
    read.

    Memory: a shard holds the window that it reads and the next one, or as many as `prefetch` batches span; over all
    shards of all workers windows take about `data.shuffle_gb`, or what 2 (b + 1) rows per shard take if that is more. A
    split that is smaller is held whole. Besides, a shard holds the rows of an open row group that are decoded and in no
    window yet, about 2 MiB or half of its part of shuffle_gb; and of each column that is read a page, and of a local
    file 64 KiB as stored, of a remote one the row group's bytes. Add `prefetch` batches, and where a row group does not
    decode as it should, per thread the whole of it.

    Args:
        source: the split.
        recipe: features, tasks, `data` and `train.seed`.
        rank: of this worker.
        world: number of workers; it must divide data.shards.
        shuffle: in training, with the negatives of `Source.drawn` and the items that a step's rows share; evaluation
            reads each shard in file order.
        groups: fill `Batch.groups` from evaluate.group_by; otherwise `Batch.task_groups`, and rows of one group that
            follow one another in the file stay together when they are shuffled.
        slices: fill `Batch.slices` from evaluate.slices.
        pin: put batches in page-locked memory, from where this thread's GPU fetches them while the host goes on.

    Attributes:
        columns: that are read.
        steps: of one pass, equal on every rank.
        cut: lists cut to max_length so far, by sequence feature, over the batches that were handed out.
        skipped_rows: rows of unreadable row groups that were handed out as padding so far.

    Raises:
        BadInput: the shards do not divide among the workers.
    """

    def __init__(
        self,
        source: Source,
        recipe: Recipe,
        *,
        rank: int,
        world: int,
        shuffle: bool,
        groups: bool = False,
        slices: bool = False,
        pin: bool = False,
    ) -> None:
        self._data = recipe.data
        self._decoder = Decoder(recipe, groups, slices)
        if source.candidates is not None:
            self._decoder = RequestDecoder(recipe, groups, slices, source.candidates, padded=world > 1)
        asked = recipe.data.negatives if shuffle else None
        negatives = None if asked is None else Negatives(recipe, source)
        self._shared = None
        if asked is not None and asked.shared is not None and negatives is not None:
            self._shared = Shared(recipe, negatives, source, self._decoder, rank, world)
        drawn = negatives if len(source.drawn) > 0 else None
        self._rows = Rows(source, self._decoder, drawn, recipe.data.on_corrupt == "skip")
        stored, held = self._decoder.bytes({column: source.length(column) for column in self._rows.columns})
        shards, batch_size = recipe.data.shards, recipe.data.batch_size
        most = max(int(recipe.data.shuffle_gb * 1e9 / (2 * shards * held)), batch_size // shards)
        self._chunk = max(1, min(_CHUNK, most, int(_CHUNK_BYTES / stored)))
        self._order = Order(
            self._rows.sizes,
            source.groups.files,
            shards=shards,
            batch_size=batch_size,
            window=recipe.data.shuffle_window,
            most=most,
            run=max(1, min(_RUN, int(_RUN_BYTES / stored))),
            seed=recipe.train.seed,
            shuffle=shuffle,
        )
        self._shards = self._order.owned(rank, world)
        self._pin = pin
        features = recipe.features
        self._sequences = {
            place: key for place, key in enumerate(self._decoder.keys) if key in features and features[key].lists
        }
        self.columns = self._rows.columns
        self.steps = self._order.steps
        self.cut = dict.fromkeys(self._sequences.values(), 0)
        self.skipped_rows = 0

    def batches(self, epoch: int, start: int = 0, stop: int | None = None) -> Generator[Batch, None, None]:
        """Yield the batches of steps [start, stop) of an epoch, read ahead in background threads.

        Close the generator, or drop it, to stop the threads.

        Raises:
            CorruptGroup: a row group does not decode, with `on_corrupt: stop`.
            BadInput: a file is gone or cannot be reached.
        """
        stop = self.steps if stop is None else min(stop, self.steps)
        device = torch.cuda.current_device() if self._pin else None

        def make(loaders: Loaders) -> Iterator[tuple[Batch, np.ndarray]]:
            if device is not None:
                torch.cuda.set_device(device)  # or pinning would open a context on device 0
            return self._assemble(loaders, epoch, start, stop)

        with closing(run_ahead(make, self._data.prefetch, self._data.threads)) as ahead:
            for batch, counts in ahead:
                self.skipped_rows += int(counts[0])
                for feature, key in self._sequences.items():
                    self.cut[key] += int(counts[1 + feature])
                yield batch

    def _assemble(self, loaders: Loaders, epoch: int, start: int, stop: int) -> Iterator[tuple[Batch, np.ndarray]]:
        """Build the batches one after the other, asking the loaders for windows ahead of their use.

        A batch comes with its counts: rows skipped, then lists cut, by sparse feature.
        """
        with self._rows.ahead() as ahead:
            pieces = Pieces(self._rows, self._order, epoch, self._chunk, ahead)
            yield from self._joined(loaders, pieces, epoch, start, stop)

    def _joined(
        self, loaders: Loaders, pieces: Pieces, epoch: int, start: int, stop: int
    ) -> Iterator[tuple[Batch, np.ndarray]]:
        def load(place: int, window: Window) -> Future:
            pieces.ask(window.pieces)
            return loaders.submit(self._load, pieces, epoch, self._shards[place], window)

        streams = _Streams(
            self._order.windows(epoch, self._shards),
            [self._order.rows_of(shard) for shard in self._shards],
            rows=self._order.slice,
            start=start,
            ahead=self._data.prefetch,
            threads=self._data.threads,
            load=load,
            blank=functools.lru_cache(self._decoder.blank),
        )
        for step in range(start, stop):
            blocks, missing = streams.take(step)
            if self._shared is not None:
                blocks.append(self._shared.block(epoch, step))
            batch, counts = self._decoder.join(step, blocks)
            if self._shared is not None:
                batch = self._shared.behind(batch)
            counts[0] -= missing
            yield batch.pin_memory() if self._pin else batch, counts

    def _load(self, pieces: Pieces, epoch: int, shard: int, window: Window) -> Block:
        """Read and shuffle one window."""
        slices = pieces.read(window.pieces)
        size = self._order.slice
        first, last = window.start // size, -(-window.stop // size)
        marks = np.clip(np.arange(first, last + 1) * size, window.start, window.stop) - window.start
        order = self._order.permutation(epoch, shard, window, self._decoder.runs(slices))
        return self._decoder.block(first, slices, order, marks)


class _Streams:
    """The windows of a rank's shards: asked for ahead of their use, handed out step by step.

    Args:
        windows: of each shard's whole interval, in their order.
        ends: rows of each shard's interval.
        rows: that a step takes of a shard.
        start: the first step that will be taken.
        ahead: steps before its use at which a window is asked for, at the latest. Shards ask earlier still, by a part
            of a window's time that differs from shard to shard, or all would load at the same step where their windows
            are of one size. A shard of two windows asks for both at once: the second one ends where the next shard
            begins, so that all are read in one go.
        threads: that load. Each of them is given shards that follow one another, for the same reason.
        load: starts to load a shard's window, (number of the shard, window).
        blank: returns padding, (step, rows).
    """

    def __init__(
        self,
        windows: Sequence[Iterator[Window]],
        ends: Sequence[int],
        rows: int,
        start: int,
        ahead: int,
        threads: int,
        load: Callable[[int, Window], Future],
        blank: Callable[[int, int], Block],
    ) -> None:
        self._windows = windows
        self._rows, self._start, self._ahead = rows, start, ahead
        self._stretch = -(-len(windows) // threads)
        self._load = load
        self._blank = blank
        self._blocks: list[Block | None] = [None] * len(windows)
        self._read = np.zeros(len(windows), np.int64)  # end of that block
        self._ends = np.asarray(ends)
        self._asked: list[deque[tuple[Window, Future]]] = [deque() for _ in windows]
        self._plan: list[tuple[int, int, int, int, Window]] = []  # one window per shard: the next to ask for
        for shard in range(len(windows)):
            self._next(shard, 0)

    def _next(self, shard: int, last: int) -> None:
        """Plan when to ask for a shard's next window, given the step that uses the one before."""
        for window in self._windows[shard]:
            use = window.start // self._rows
            if window.stop > self._start * self._rows:
                early = 1.0 if window.of == 2 else shard / len(self._windows)
                ask = min(use - self._ahead, max(last, use - self._ahead - int(early * (use - last))))
                place = (shard % self._stretch, window.number, shard // self._stretch)
                heapq.heappush(self._plan, (max(self._start, ask), *place, window))
                return
            last = use

    def _ask(self, step: int) -> None:
        """Ask for the windows whose time has come."""
        while self._plan and self._plan[0][0] <= step:
            _, low, _, high, window = heapq.heappop(self._plan)
            shard = high * self._stretch + low
            self._asked[shard].append((window, self._load(shard, window)))
            self._next(shard, window.start // self._rows)

    def take(self, step: int) -> tuple[list[Block], int]:
        """Return the blocks that a step's rows lie in, padding included, and the rows of padding."""
        self._ask(step)
        begin, stop = step * self._rows, (step + 1) * self._rows
        blocks: list[Block | None] = []
        copied = missing = 0
        for shard in np.flatnonzero(
            self._read < stop
        ).tolist():  # few: most shards go on in the window of the step before
            blocks += self._blocks[copied:shard]
            copied = shard + 1
            at, end = begin, self._ends[shard]
            while at < min(stop, end):
                if at >= self._read[shard]:
                    window, loading = self._asked[shard].popleft()
                    self._blocks[shard], self._read[shard] = loading.result(), window.stop
                blocks.append(self._blocks[shard])
                at = int(self._read[shard])
            lacking = stop - max(int(end), begin)
            if lacking > 0:
                blocks.append(self._blank(step, lacking))
                missing += lacking
        return cast(list[Block], blocks + self._blocks[copied:]), missing  # whatever is read up to `stop` is there
