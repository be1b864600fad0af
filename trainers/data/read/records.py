"""The records that windows are turned into and batches are put together from: by records.cpp, or without it by NumPy.

A batch takes a few rows from each of hundreds of windows, so what counts is the number of places that it touches. A
window therefore holds, for every step that reads it, one contiguous record of all the step's int64 values. With m the
step's rows, P plain columns and F features:

    m; how many of the rows could not be read; values of each feature (F); lists cut to their limit, by feature (F);
    plain columns (P times m); lengths (F times m); values (F times their number)
"""

import ctypes
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import fbgemm_gpu  # noqa: F401  (registers torch.ops.fbgemm)
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from livetrain.trainers.runtime import compiler

log = logging.getLogger("livetrain")

SOURCE = Path(__file__).with_suffix(".cpp")


class Column(NamedTuple):
    """A feature's ids in n rows: one per row; or row i's are values[begins[i] : ends[i]], which rows may share."""

    values: np.ndarray  # int64
    begins: np.ndarray | None = None  # (n,) int64
    ends: np.ndarray | None = None

    @classmethod
    def of(cls, values: np.ndarray, offsets: np.ndarray) -> "Column":
        """Return a column whose row i has values[offsets[i] : offsets[i + 1]]."""
        return cls(values, offsets[:-1], offsets[1:])

    def beside(self, values: np.ndarray, each: int) -> "Column":
        """Return a column of lists that has `each` values in the place of every one of this column's."""
        assert self.begins is not None  # these are lists
        assert self.ends is not None
        return Column(values, self.begins * each, self.ends * each)

    def cut(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the values of rows [start, stop) one row after the other, and how many each has."""
        if self.begins is None or self.ends is None:
            return self.values[start:stop], np.ones(stop - start, np.int64)
        begins, lengths = self.begins[start:stop], self.ends[start:stop] - self.begins[start:stop]
        offsets = running(lengths)
        return self.values[np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], lengths)], lengths


@dataclass
class Columns:
    """n rows as decoded."""

    first: int  # number of the first row, -1 where the rows could not be read
    ids: list[Column]  # F features
    plain: list[np.ndarray]  # P - 1 columns besides the row's number, (n,) int64
    floats: list[np.ndarray]  # (n,) float32, or (n, w) of a column of w numbers per row; W numbers per row in all

    @property
    def widths(self) -> np.ndarray:
        """Numbers per row of each float column."""
        return np.array([1 if column.ndim == 1 else column.shape[1] for column in self.floats], np.int64)

    def __post_init__(self) -> None:
        arrays = [array for column in self.ids for array in column] + self.plain + self.floats
        self._struct = np.array([self.first, *map(_address, arrays)], np.int64)  # records.cpp's Columns
        self.address = _address(self._struct)


class Slice(NamedTuple):
    """Rows [start, stop) of some columns."""

    columns: Columns
    start: int
    stop: int


@dataclass
class Block:
    """A window's rows in reading order, arranged by the steps that read them.

    Step first + k has the record records[at[k] : at[k + 1]] and floats[marks[k] : marks[k + 1]].
    """

    first: int
    at: np.ndarray  # (steps + 1,) int64
    records: np.ndarray  # int64
    marks: np.ndarray  # (steps + 1,) int64
    floats: np.ndarray  # (n, W) float32

    def __post_init__(self) -> None:
        arrays = (self.at, self.records, self.marks, self.floats)
        self._struct = np.array([self.first, *map(_address, arrays)])  # records.cpp's Block
        self.address = _address(self._struct)


class Joined(NamedTuple):
    """A step's records, put together column by column, for B rows."""

    head: np.ndarray  # (2 + 2 F,) int64, sums of what the records begin with
    plain: Tensor  # (P, B) int64
    ids: Tensor  # int64: lengths (F times B), then values (F times their number)
    floats: Tensor  # (B, W)


class Passes(Protocol):
    """The two copies between decoded columns and a batch."""

    def pack(
        self, first: int, slices: Sequence[Slice], limits: np.ndarray, order: np.ndarray | None, marks: np.ndarray
    ) -> Block:
        """Arrange a window by its steps.

        Args:
            first: the first step.
            slices: the window's n rows, as stored.
            limits: (F,) int64; of a longer list its last ids count.
            order: (n,) int64 reading order, None as stored.
            marks: (steps + 1,) int64, where each step's rows begin in reading order, and n.
        """

    def join(self, step: int, blocks: Sequence[Block], plains: int, features: int) -> Joined:
        """Put the records of one step, of which each block has one, together in the blocks' order."""


@functools.cache
def passes() -> Passes:
    """Return the compiled passes, or NumPy's where they cannot be compiled, which is said once."""
    try:
        return Compiled(compiler.shared_object(SOURCE))
    except compiler.FAILURES as error:
        log.warning("reading without compiled passes, which takes about twice as long: %s", compiler.reason(error))
        return Plain()


class Compiled:
    """records.cpp.

    Args:
        path: of the shared object.
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.ids.restype = ctypes.c_int64

    def pack(
        self, first: int, slices: Sequence[Slice], limits: np.ndarray, order: np.ndarray | None, marks: np.ndarray
    ) -> Block:
        """See `Passes`."""
        held, steps, rows = slices[0].columns, len(marks) - 1, int(marks[-1])
        features, others, widths = len(held.ids), len(held.plain), held.widths
        width = int(widths.sum())
        cut = np.array([(part.columns.address, part.start, part.stop) for part in slices], np.int64)
        values = self._call("ids", len(slices), features, cut, limits)
        count = (2 + 2 * features) * steps + (1 + others + features) * rows + values
        records, at = lasting(count, np.int64), np.empty(steps + 1, np.int64)
        floats = lasting(rows * width, np.float32).reshape(rows, width)
        sizes = (steps, len(slices), features, others, len(widths))
        self._call("pack", *sizes, cut, limits, widths, order, marks, records, at, floats)
        return Block(first, at, records, marks, floats)

    def join(self, step: int, blocks: Sequence[Block], plains: int, features: int) -> Joined:
        """See `Passes`."""
        addresses = np.fromiter((block.address for block in blocks), np.int64, len(blocks))
        head, width = np.zeros(2 + 2 * features, np.int64), blocks[0].floats.shape[1]
        self._call("heads", step, len(blocks), features, addresses, head)
        rows, values = int(head[0]), int(head[2 : 2 + features].sum())
        plain = torch.empty(plains, rows, dtype=torch.int64)
        ids = torch.empty(features * rows + values, dtype=torch.int64)
        floats = torch.empty(rows, width)
        self._call("join", step, len(blocks), plains, features, width, head, addresses, plain, ids, floats)
        return Joined(head, plain, ids, floats)

    def _call(self, name: str, *arguments: int | np.ndarray | Tensor | None) -> int:
        given = [ctypes.c_int64(a) if isinstance(a, int) else ctypes.c_void_p(_address(a)) for a in arguments]
        return getattr(self._library, name)(*given)


class Plain:
    """The same by NumPy, and fbgemm's copies of segments."""

    def pack(
        self, first: int, slices: Sequence[Slice], limits: np.ndarray, order: np.ndarray | None, marks: np.ndarray
    ) -> Block:
        """See `Passes`."""
        order = np.arange(marks[-1]) if order is None else order
        held = slices[0].columns
        plain = [np.concatenate([_numbers(part) for part in slices])]
        plain += [_joined(slices, [part.columns.plain[p] for part in slices]) for p in range(len(held.plain))]
        plain = [column[order] for column in plain]
        taken = [
            _take([part.columns.ids[f].cut(part.start, part.stop) for part in slices], int(limit), order)
            for f, limit in enumerate(limits)
        ]
        values, lengths, cut = zip(*taken, strict=True) if taken else ((), (), ())
        counted = np.stack([running(counts)[marks] for counts in (plain[0] < 0, *lengths, *cut)])
        heads = np.diff(np.concatenate([marks[None], counted]), axis=1)  # (2 + 2 F, steps)
        sizes = _sizes(heads, len(plain), len(taken))
        flat = np.concatenate([heads.T.reshape(-1), *plain, *lengths, *values])
        moved = _transposed(flat, sizes.T).numpy()
        records = lasting(len(moved), np.int64)
        records[...] = moved
        ends = running(held.widths)
        floats = lasting(len(order) * int(ends[-1]), np.float32).reshape(len(order), ends[-1])
        for c, (start, stop) in enumerate(zip(ends, ends[1:], strict=False)):
            numbers = _joined(slices, [part.columns.floats[c] for part in slices])[order]
            floats[:, start:stop] = numbers.reshape(len(order), stop - start)
        return Block(first, running(sizes.sum(axis=1)), records, marks, floats)

    def join(self, step: int, blocks: Sequence[Block], plains: int, features: int) -> Joined:
        """See `Passes`."""
        places = [(block, step - block.first) for block in blocks]
        records = [block.records[block.at[k] : block.at[k + 1]] for block, k in places]
        floats = np.concatenate([block.floats[block.marks[k] : block.marks[k + 1]] for block, k in places])
        heads = np.stack([record[: 2 + 2 * features] for record in records], axis=1)
        flat = _transposed(np.concatenate(records), _sizes(heads, plains, features))[heads.size :]
        head, plain = heads.sum(axis=1), plains * len(floats)
        # A copy, so that whoever keeps a row's number does not keep the ids.
        return Joined(head, flat[:plain].view(plains, -1).clone(), flat[plain:], torch.from_numpy(floats))


def lasting(count: int, dtype: type) -> np.ndarray:
    """Return an array of Arrow's memory pool, for what a window holds.

    Windows live long and die in another thread than they were made in; malloc would keep such memory per thread and
    grow with every pass, while the pool hands it to the next window.
    """
    return np.frombuffer(pa.allocate_buffer(count * np.dtype(dtype).itemsize), dtype)


def _address(array: np.ndarray | Tensor | None) -> int:
    if array is None:
        return 0
    # The interface says what array.ctypes.data does, without an object for it.
    return array.data_ptr() if isinstance(array, Tensor) else array.__array_interface__["data"][0]


def _numbers(part: Slice) -> np.ndarray:
    """Return the numbers of a slice's rows."""
    rows = np.arange(part.start, part.stop)
    return np.full_like(rows, -1) if part.columns.first < 0 else rows + part.columns.first


def _joined(slices: Sequence[Slice], arrays: list[np.ndarray]) -> np.ndarray:
    """Return the slices of a column, which each slice has an array of, one after the other."""
    return np.concatenate([array[part.start : part.stop] for part, array in zip(slices, arrays, strict=True)])


def _take(
    parts: list[tuple[np.ndarray, np.ndarray]], limit: int, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a feature's values, lengths and which lists were cut, in reading order, from values and lengths."""
    values, stored = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    kept = np.minimum(stored, limit)
    # Each list is two segments, what goes and what stays; one kernel copies those that stay into their new order.
    segments = np.stack([stored - kept, kept], axis=1).reshape(-1)
    _, moved, _ = torch.ops.fbgemm.permute_1D_sparse_data(
        torch.from_numpy((2 * order + 1).astype(np.int32)),
        torch.from_numpy(segments),
        torch.from_numpy(values),
        None,
        int(kept.sum()),
    )
    return moved.numpy(), kept[order], (kept < stored)[order]


def _sizes(heads: np.ndarray, plains: int, features: int) -> np.ndarray:
    """Return the lengths of a record's parts, (records, parts), from the records' heads (2 + 2 F, records)."""
    whole = np.full_like(heads[:1], len(heads))
    return np.concatenate([whole, np.repeat(heads[:1], plains + features, axis=0), heads[2 : 2 + features]]).T


@functools.lru_cache(maxsize=64)
def _transposition(rows: int, columns: int) -> Tensor:
    return torch.arange(rows * columns, dtype=torch.int32).view(rows, columns).t().reshape(-1)


def _transposed(flat: np.ndarray, sizes: np.ndarray) -> Tensor:
    """Return the R x C segments of `flat`, whose lengths are `sizes` (R, C), column by column instead of row by row."""
    order, lengths = _transposition(*sizes.shape), torch.from_numpy(np.ascontiguousarray(sizes).reshape(-1))
    return torch.ops.fbgemm.permute_1D_sparse_data(order, lengths, torch.from_numpy(flat), None, len(flat))[1]


def running(lengths: np.ndarray) -> np.ndarray:
    """Return the n + 1 offsets of n lengths."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
