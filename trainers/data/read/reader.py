"""Batches of a split for one rank: read ahead, shuffled by seed, resumable at any step."""

import functools
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterator
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
from livetrain.trainers.data.read.prefetch import Loaders, run_ahead
from livetrain.trainers.data.read.records import Block, Columns, Slice
from livetrain.trainers.data.read.source import CorruptGroup, Source

log = logging.getLogger(__name__)


class Reader:
    """The batches of one rank.

    Global batch t holds rows [t b, (t + 1) b) of every shard's stream, b = batch_size / shards (read/order.py says
    which rows these are); this rank's part holds its own shards' rows, shard by shard. Every rank has the same
    number of steps and of rows per step, padding included, and batch t is the same whether or not its predecessors were
    read.

    Memory: a shard holds the window that it reads and the next one, or as many as `prefetch` batches span. A window has
    at least `shuffle_window` rows, and whole row groups as far as they lie in the shard's interval. With R the larger
    of shuffle_window and a row group's rows, and r bytes per row (8 per id, 8 per feature, 4 per number and
    label), a rank holds at most (shards / world) * 2 (R + shuffle_window) r bytes, its whole share of the split if that
    is less, besides 2 threads + 1 decoded row groups and `prefetch` batches. Smaller row groups are the cure for too
    much.

    Args:
        source: the split.
        recipe: features, tasks, `data` and `train.seed`.
        rank: of this worker.
        world: number of workers; it must divide data.shards.
        shuffle: in training, with the negatives of `Source.drawn`; evaluation reads each shard in file order.
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
        self._source = source
        self._data = recipe.data
        self._decoder = Decoder(recipe, groups, slices)
        drawn = shuffle and len(source.drawn) > 0
        self._negatives = Negatives(recipe, source) if drawn else None
        sizes = source.groups.rows
        self._stored = _begins(sizes)  # where row groups begin in the split, and with what is drawn
        self._sizes = sizes + source.drawn if drawn else sizes
        self._first_rows = _begins(self._sizes) if drawn else self._stored
        self._order = Order(
            self._sizes,
            shards=recipe.data.shards,
            batch_size=recipe.data.batch_size,
            window=recipe.data.shuffle_window,
            seed=recipe.train.seed,
            shuffle=shuffle,
        )
        self._shards = self._order.owned(rank, world)
        self._pin = pin
        kinds = [recipe.features[key] for key in self._decoder.keys]
        self._sequences = {
            place: key for place, (key, kind) in enumerate(zip(self._decoder.keys, kinds, strict=True)) if kind.lists
        }
        self._warned: set[int] = set()
        self.columns = self._decoder.columns
        if self._negatives is not None:
            self.columns = list(dict.fromkeys([*self.columns, *self._negatives.columns]))
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
        read = _Groups(functools.partial(self._read, epoch), 2 * self._data.threads + 1)
        streams = _Streams(
            self._order.windows(epoch, self._shards),
            rows=self._order.slice,
            start=start,
            ahead=self._data.prefetch,
            load=lambda place, window: loaders.submit(self._load, read, epoch, self._shards[place], window),
            blank=functools.lru_cache(self._decoder.blank),
        )
        for step in range(start, stop):
            blocks, missing = streams.take(step)
            batch, counts = self._decoder.join(step, blocks)
            counts[0] -= missing
            yield batch.pin_memory() if self._pin else batch, counts

    def _load(self, read: "_Groups", epoch: int, shard: int, window: Window) -> Block:
        """Read and shuffle one window."""
        slices = [Slice(read(piece.group), piece.start, piece.stop) for piece in window.pieces]
        size = self._order.slice
        first, last = window.start // size, -(-window.stop // size)
        marks = np.clip(np.arange(first, last + 1) * size, window.start, window.stop) - window.start
        order = self._order.permutation(epoch, shard, window, self._decoder.runs(slices))
        return self._decoder.block(first, slices, order, marks)

    def _read(self, epoch: int, number: int) -> Columns:
        """Read and decode one row group; rows that hold nothing for an unreadable one that the recipe says to skip."""
        group = self._source.groups[number]
        try:
            table = self._source.read(group, self.columns)
            if self._negatives is not None:
                table = self._negatives.expand(table, int(self._stored[number]), epoch, self._decoder.columns)
            return self._decoder.decode(table, int(self._first_rows[number]), self._source.place(group))
        except CorruptGroup as error:
            if self._data.on_corrupt == "stop":
                raise
            if number not in self._warned:
                self._warned.add(number)
                log.warning("skipped: %s", error)
            return self._decoder.unreadable(int(self._sizes[number]))


def _begins(sizes: np.ndarray) -> np.ndarray:
    """Return the number of each row group's first row, (groups,) int64."""
    return np.cumsum(sizes) - sizes


class _Groups:
    """The last few row groups, decoded: neighbouring shards meet in one, and ask for it one after the other."""

    def __init__(self, read: Callable[[int], Columns], keep: int) -> None:
        self._read = read
        self._keep = keep
        self._kept: OrderedDict[int, Future] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, number: int) -> Columns:
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


class _Streams:
    """The windows of a rank's shards: asked for ahead of their use, handed out step by step.

    Args:
        windows: of each shard's whole interval.
        rows: that a step takes of a shard.
        start: the first step that will be taken.
        ahead: steps before its use at which a window is asked for, at the latest. Shards ask earlier still, by a part
            of a window's time that differs from shard to shard, or all would load at the same step where their windows
            are of one size. A shard of two windows asks for both at once: the second one ends in the row group that the
            next shard begins with, which is then decoded once.
        load: starts to load a shard's window, (number of the shard, window).
        blank: returns padding, (step, rows).
    """

    def __init__(
        self,
        windows: list[list[Window]],
        rows: int,
        start: int,
        ahead: int,
        load: Callable[[int, Window], Future],
        blank: Callable[[int, int], Block],
    ) -> None:
        self._rows = rows
        self._ends = np.array([own[-1].stop if own else 0 for own in windows])
        self._load = load
        self._blank = blank
        self._blocks: list[Block | None] = [None] * len(windows)
        self._read = np.zeros(len(windows), np.int64)  # end of that block
        self._asked: list[deque[tuple[Window, Future]]] = [deque() for _ in windows]
        plan = []
        for shard, own in enumerate(windows):
            last, early = 0, 1.0 if len(own) == 2 else shard / len(windows)
            for window in own:
                use = window.start // rows
                latest = use - ahead
                if window.stop > start * rows:
                    ask = min(latest, max(last, latest - int(early * (use - last))))
                    plan.append((max(start, ask), shard, window))
                last = use
        self._plan = deque(sorted(plan, key=lambda ask: ask[0]))

    def take(self, step: int) -> tuple[list[Block], int]:
        """Return the blocks that a step's rows lie in, padding included, and the rows of padding."""
        while self._plan and self._plan[0][0] <= step:
            _, shard, window = self._plan.popleft()
            self._asked[shard].append((window, self._load(shard, window)))
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
