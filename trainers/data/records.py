"""The records that windows are turned into and batches are put together from: by records.cpp, or without it by NumPy.

A batch takes a few rows from each of hundreds of windows, so what counts is the number of places that it touches. A
window therefore holds, for every step that reads it, one contiguous record of all the step's int64 values. With m the
step's rows, P plain columns and F features:

    m; how many of the rows could not be read; values of each feature (F); lists cut to their limit, a feature (F);
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

from trainers import compiler

log = logging.getLogger("livetrain")

SOURCE = Path(__file__).with_suffix(".cpp")


class Column(NamedTuple):
    """A feature's ids in n rows: one a row; or row i's are values[offsets[i] : offsets[i + 1]], and no others."""

    values: np.ndarray  # int64
    offsets: np.ndarray | None  # (n + 1,) int64

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64, ids of each row."""
        return np.ones(len(self.values), np.int64) if self.offsets is None else np.diff(self.offsets)

    def kept(self, limit: int) -> int:
        """Return how many ids there are of at most `limit` a row."""
        return len(self.values) if self.offsets is None else int(np.minimum(self.lengths, limit).sum())


class Decoded(NamedTuple):
    """n rows as decoded, in one piece or more, and how they are to be arranged."""

    bounds: np.ndarray  # (pieces + 1,) int64, where each piece begins, and n
    columns: list[list[Column]]  # F features, each in every piece
    limits: np.ndarray  # (F,) int64: of a longer list its last ids count
    plain: np.ndarray  # (P, n) int64; the first one is negative where a row could not be read
    order: np.ndarray | None  # (n,) int64 reading order, None as stored
    marks: np.ndarray  # (steps + 1,) int64, where each step's rows begin in reading order, and n


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
        self._struct = np.array([self.first, *(array.ctypes.data for array in arrays)])  # records.cpp's Block
        self.address = self._struct.ctypes.data


class Joined(NamedTuple):
    """A step's records, put together column by column, for B rows."""

    head: np.ndarray  # (2 + 2 F,) int64, sums of what the records begin with
    plain: Tensor  # (P, B) int64
    ids: Tensor  # int64: lengths (F times B), then values (F times their number)
    floats: Tensor  # (B, W)


class Passes(Protocol):
    """The two copies between decoded columns and a batch."""

    def pack(self, window: Decoded) -> tuple[np.ndarray, np.ndarray]:
        """Return a window's records, and where each of them begins and the last one ends, (steps + 1,)."""

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

    def pack(self, window: Decoded) -> tuple[np.ndarray, np.ndarray]:
        """See `Passes`."""
        bounds, columns, limits, plain, order, marks = window
        steps, (plains, rows), features = len(marks) - 1, plain.shape, len(columns)
        values = 0
        for pieces, limit in zip(columns, limits, strict=True):
            values += sum(column.kept(limit) for column in pieces)
        records = lasting((2 + 2 * features) * steps + (plains + features) * rows + values, np.int64)
        at = np.empty(steps + 1, np.int64)
        arrays = [_address(array) or 0 for pieces in columns for column in pieces for array in column]
        sizes = (steps, len(bounds) - 1, plains, features)
        self._call("pack", *sizes, marks, bounds, order, plain, np.array(arrays, np.int64), limits, records, at)
        return records, at

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

    def _call(self, name: str, *arguments: int | np.ndarray | Tensor | None) -> None:
        given = [ctypes.c_int64(a) if isinstance(a, int) else ctypes.c_void_p(_address(a)) for a in arguments]
        self._library[name](*given)


class Plain:
    """The same by NumPy, and fbgemm's copies of segments."""

    def pack(self, window: Decoded) -> tuple[np.ndarray, np.ndarray]:
        """See `Passes`."""
        order = np.arange(window.bounds[-1]) if window.order is None else window.order
        plain, marks = window.plain[:, order], window.marks
        taken = [_take(pieces, limit, order) for pieces, limit in zip(window.columns, window.limits, strict=True)]
        values, lengths, cut = zip(*taken, strict=True) if taken else ((), (), ())
        counted = np.stack([running(counts)[marks] for counts in (plain[0] < 0, *lengths, *cut)])
        heads = np.diff(np.concatenate([marks[None], counted]), axis=1)  # (2 + 2 F, steps)
        sizes = _sizes(heads, len(plain), len(taken))
        flat = np.concatenate([heads.T.reshape(-1), *plain, *lengths, *values])
        moved = _transposed(flat, sizes.T).numpy()
        records = lasting(len(moved), np.int64)
        records[...] = moved
        return records, running(sizes.sum(axis=1))

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

    Windows live long and die in another thread than they were made in; malloc would keep such memory a thread and grow
    with every pass, while the pool hands it to the next window.
    """
    return np.frombuffer(pa.allocate_buffer(count * np.dtype(dtype).itemsize), dtype)


def _address(array: np.ndarray | Tensor | None) -> int | None:
    if array is None:
        return None
    return array.data_ptr() if isinstance(array, Tensor) else array.ctypes.data


def _take(pieces: list[Column], limit: int, order: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a feature's values, lengths and which lists were cut, in reading order."""
    stored = np.concatenate([piece.lengths for piece in pieces])
    kept = np.minimum(stored, limit)
    # Each list is two segments, what goes and what stays; one kernel copies those that stay into their new order.
    segments = np.stack([stored - kept, kept], axis=1).reshape(-1)
    _, moved, _ = torch.ops.fbgemm.permute_1D_sparse_data(
        torch.from_numpy((2 * order + 1).astype(np.int32)),
        torch.from_numpy(segments),
        torch.from_numpy(np.concatenate([piece.values for piece in pieces])),
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
