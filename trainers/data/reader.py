"""Batches of a split for one rank: read ahead, shuffled by seed, resumable at any step."""

import functools
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing

import numpy as np
import pyarrow as pa
import torch

from configs.schema import Recipe, SequenceFeature
from modules.batch import Batch
from trainers.data.decode import Block, Decoder
from trainers.data.order import Order, Window
from trainers.data.prefetch import Loaders, run_ahead
from trainers.data.source import CorruptGroup, Source

log = logging.getLogger(__name__)


class Reader:
    """The batches of one rank.

    Global batch t holds rows [t b, (t + 1) b) of every shard's stream, b = batch_size / shards (trainers/data/order.py
    says which rows these are); this rank's part holds its own shards' rows, shard by shard. Every rank has the same
    number of steps and of rows a step, padding included, and batch t is the same whether or not its predecessors were
    read.

    Memory: a shard holds the window that it reads and the next one, or as many as `prefetch` batches span. A window has
    at least `shuffle_window` rows, and whole row groups as far as they lie in the shard's interval. With R the larger
    of shuffle_window and a row group's rows, and r bytes a row (8 an id, 8 a feature, 4 a dense feature or label), a
    rank holds at most (shards / world) * 2 (R + shuffle_window) r bytes, its whole share of the split if that is less,
    besides 2 threads + 1 decoded row groups and `prefetch` batches. Smaller row groups are the cure for too much.

    Args:
        source: the split.
        recipe: features, tasks, `data` and `train.seed`.
        rank: of this worker.
        world: number of workers; it must divide data.shards.
        shuffle: in training; evaluation reads each shard in file order.
        groups: fill `Batch.groups` from evaluate.group_by.

    Attributes:
        columns: that are read.
        steps: of one pass, equal on every rank.
        cut: lists cut to max_length so far, a sequence feature, over the batches that were handed out.
        skipped_rows: rows of unreadable row groups that were handed out as padding so far.

    Raises:
        BadInput: the shards do not divide among the workers.
    """

    def __init__(
        self, source: Source, recipe: Recipe, *, rank: int, world: int, shuffle: bool, groups: bool = False
    ) -> None:
        self._source = source
        self._data = recipe.data
        self._decoder = Decoder(recipe, groups)
        self._order = Order(
            [group.rows for group in source.groups],
            shards=recipe.data.shards,
            batch_size=recipe.data.batch_size,
            window=recipe.data.shuffle_window,
            seed=recipe.train.seed,
            shuffle=shuffle,
        )
        self._shards = self._order.owned(rank, world)
        self._first_rows = np.cumsum([0] + [group.rows for group in source.groups])
        self._pin = recipe.cluster.device != "cpu" and torch.cuda.is_available()
        kinds = [recipe.features[key] for key in self._decoder.keys]
        self._sequences = {
            place: key
            for place, (key, kind) in enumerate(zip(self._decoder.keys, kinds, strict=True))
            if isinstance(kind, SequenceFeature)
        }
        self._warned: set[int] = set()
        self.columns = self._decoder.columns
        self.steps = self._order.steps
        self.cut = dict.fromkeys(self._sequences.values(), 0)
        self.skipped_rows = 0

    def batches(self, epoch: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
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
                for feature, key in self._sequences.items():
                    self.cut[key] += int(counts[feature])
                self.skipped_rows += int(counts[-1])
                yield batch

    def _assemble(self, loaders: Loaders, epoch: int, start: int, stop: int) -> Iterator[tuple[Batch, np.ndarray]]:
        """Build the batches one after the other, asking the loaders for windows ahead of their use."""
        read = _Groups(self._read, 2 * self._data.threads + 1)
        streams = [
            _Stream(
                windows,
                rows=self._order.slice,
                start=start,
                ahead=self._data.prefetch,
                early=place / len(self._shards),
                load=lambda window, shard=shard: loaders.submit(self._load, read, epoch, shard, window),
            )
            for place, (shard, windows) in enumerate(
                zip(self._shards, self._order.windows(epoch, self._shards), strict=True)
            )
        ]
        blank = functools.cache(self._decoder.blank)
        for step in range(start, stop):
            for stream in streams:
                stream.ask(step)
            yield self._join(streams, step, blank)

    def _join(self, streams: list["_Stream"], step: int, blank: Callable[[int], Block]) -> tuple[Batch, np.ndarray]:
        """Return a step's batch, and its counts: lists cut, a key, then rows skipped."""
        parts = []
        for stream in streams:
            slices, missing = stream.take(step)
            parts += slices
            if missing:
                parts.append((blank(missing), 0))
        counts = np.zeros(len(self._decoder.keys) + 1, np.int64)
        for block, k in parts:
            if block.counts is not None:
                counts += block.counts[k]
        batch = self._decoder.join(parts)
        return batch.pin_memory() if self._pin else batch, counts

    def _load(self, read: "_Groups", epoch: int, shard: int, window: Window) -> Block:
        """Read, shuffle and decode one window."""
        tables, rows = [], []
        for piece in window.pieces:
            table = read(piece.group)
            count = piece.stop - piece.start
            if table is None:
                tables.append(self._nulls(count))
                rows.append(np.full(count, -1, np.int64))
            else:
                tables.append(table.slice(piece.start, count))
                first = int(self._first_rows[piece.group])
                rows.append(np.arange(first + piece.start, first + piece.stop))
        size = self._order.slice
        first, last = window.start // size, -(-window.stop // size)
        marks = np.clip(np.arange(first, last + 1) * size, window.start, window.stop) - window.start
        order = self._order.permutation(epoch, shard, window)
        return self._decoder.block(pa.concat_tables(tables), np.concatenate(rows), order, first, marks)

    def _read(self, number: int) -> pa.Table | None:
        """Read one row group; None for an unreadable one that the recipe says to skip."""
        try:
            return self._source.read(self._source.groups[number], self.columns)
        except CorruptGroup as error:
            if self._data.on_corrupt == "stop":
                raise
            if number not in self._warned:
                self._warned.add(number)
                log.warning("skipped: %s", error)
            return None

    def _nulls(self, rows: int) -> pa.Table:
        """Return rows that hold nothing, with the columns of a row group."""
        fields = [self._source.schema.field(name) for name in self.columns]
        return pa.table([pa.nulls(rows, column.type) for column in fields], schema=pa.schema(fields))


class _Groups:
    """The last few row groups, decoded: neighbouring shards meet in one, and ask for it one after the other."""

    def __init__(self, read: Callable[[int], pa.Table | None], keep: int) -> None:
        self._read = read
        self._keep = keep
        self._kept: OrderedDict[int, Future] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, number: int) -> pa.Table | None:
        with self._lock:
            mine = number not in self._kept
            future = self._kept.setdefault(number, Future())
            self._kept.move_to_end(number)
            if len(self._kept) > self._keep:
                self._kept.popitem(last=False)
        if mine:
            try:
                future.set_result(self._read(number))
            except BaseException as error:
                future.set_exception(error)
        return future.result()


class _Stream:
    """One shard's windows: asked for ahead of their use, handed out slice by slice.

    Args:
        windows: of the shard's whole interval.
        rows: that a step takes.
        start: the first step that will be taken.
        ahead: steps before its use at which a window is asked for, at the latest.
        early: in [0, 1), the part of a window's time by which this shard asks earlier still. It differs from shard to
            shard, or all would load at the same step where their windows are of one size.
        load: starts to load a window.
    """

    def __init__(
        self,
        windows: list[Window],
        rows: int,
        start: int,
        ahead: int,
        early: float,
        load: Callable[[Window], Future],
    ) -> None:
        self._rows = rows
        self._end = windows[-1].stop if windows else 0
        self._load = load
        self._block: Block | None = None
        self._read = 0  # end of that block
        self._asked: deque[tuple[Window, Future]] = deque()
        self._waiting: deque[tuple[int, Window]] = deque()
        last = 0
        for window in windows:
            use = window.start // rows
            if window.stop > start * rows:
                earliest = use - ahead
                self._waiting.append((min(earliest, max(last, earliest - int(early * (use - last)))), window))
            last = use

    def ask(self, step: int) -> None:
        """Ask for the windows whose time has come."""
        while self._waiting and self._waiting[0][0] <= step:
            window = self._waiting.popleft()[1]
            self._asked.append((window, self._load(window)))

    def take(self, step: int) -> tuple[list[tuple[Block, int]], int]:
        """Return a step's slices as (block, k), and the number of rows that the shard has no more."""
        at, stop = step * self._rows, (step + 1) * self._rows
        if stop <= self._read:  # nearly always: the window that the step before ended in
            return [(self._block, step - self._block.first)], 0
        slices = []
        while at < min(stop, self._end):
            if at >= self._read:
                window, loading = self._asked.popleft()
                self._block, self._read = loading.result(), window.stop
            slices.append((self._block, step - self._block.first))
            at = self._read
        return slices, max(0, stop - max(self._end, step * self._rows))
