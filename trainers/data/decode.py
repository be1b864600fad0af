"""Arrow tables to blocks of shuffled rows, and slices of blocks to a `Batch`.

A batch takes a few rows from each of hundreds of blocks, so what counts is the number of places that it touches. A
block therefore holds, for every step that reads it, one contiguous record of all its int64 values, and a batch is one
slice a block, one concatenation, and one kernel that puts the parts of the records in the batch's order.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import fbgemm_gpu  # noqa: F401  (registers torch.ops.fbgemm)
import numpy as np
import pyarrow as pa
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from configs.schema import DenseFeature, Recipe, SequenceFeature
from modules.batch import Batch

NO_GROUP = np.iinfo(np.int64).min
"""Group of a row whose `evaluate.group_by` is null, and of padding."""


@dataclass(frozen=True)
class Block:
    """The rows of one window in reading order, arranged by the steps that read them.

    Step `first + k` reads rows [marks[k], marks[k + 1]) and the record ints[at[k] : at[k + 1]], which holds, with m its
    rows and F features: m, the number of values of each feature (F); row numbers (m, -1 = padding); groups (m), if
    any; lengths (F times m); values (F times their number).
    """

    first: int
    at: list[int]
    ints: np.ndarray  # int64
    marks: list[int]
    floats: np.ndarray  # (n, D + T + W) float32: dense features, labels, then sample weights
    counts: np.ndarray | None  # (steps, F + 1) int64: lists cut, a feature, then rows skipped; None = all zero


class Decoder:
    """Turns the columns that a recipe names into blocks, and slices of blocks into batches.

    Args:
        recipe: names the features, tasks and the group column.
        groups: also give `Batch.groups`.
    """

    def __init__(self, recipe: Recipe, groups: bool) -> None:
        sparse = {name: f for name, f in recipe.features.items() if not isinstance(f, DenseFeature)}
        self.keys = list(sparse)
        self._sparse = [recipe.column(name) for name in sparse]
        self._limits = [f.max_length if isinstance(f, SequenceFeature) else None for f in sparse.values()]
        self._dense = [recipe.column(name) for name, f in recipe.features.items() if isinstance(f, DenseFeature)]
        self._labels = [task.label for task in recipe.tasks.values()]
        self._weighted = [place for place, task in enumerate(recipe.tasks.values()) if task.sample_weight]
        weights = [task.sample_weight for task in recipe.tasks.values() if task.sample_weight]
        self._floats = [*self._dense, *self._labels, *weights]
        self._group = recipe.evaluate.group_by if groups else None
        named = [*self._sparse, *self._floats, *([self._group] if self._group else [])]
        self.columns = list(dict.fromkeys(named))

    def block(
        self, table: pa.Table, rows: np.ndarray, order: np.ndarray | None, first: int, marks: np.ndarray
    ) -> Block:
        """Decode one window.

        Args:
            table: n rows as stored; a row that could not be read is null throughout.
            rows: (n,) row numbers, -1 where the row could not be read.
            order: (n,) reading order, None as stored.
            first: the first step that reads the window.
            marks: (steps + 1,) where each step's slice begins, and the end of the last.
        """
        columns = {name: _whole(table.column(name)) for name in self.columns}
        rows = rows if order is None else rows[order]
        groups = []
        if self._group is not None:
            stored = columns[self._group].cast(pa.int64()).fill_null(int(NO_GROUP)).to_numpy()
            groups = [stored if order is None else stored[order]]
        sparse = [
            _ids(columns[column], order) if limit is None else _lists(columns[column], limit, order)
            for column, limit in zip(self._sparse, self._limits, strict=True)
        ]
        values, lengths, cut = zip(*sparse, strict=True) if sparse else ((), (), ())
        ints, at = self._records([rows, *groups, *lengths], values, marks)
        floats = _floats([columns[name] for name in self._floats], order, len(rows))
        floats[rows < 0, len(self._dense) :] = 0.0
        return Block(first, at, ints, marks.tolist(), _lasting(floats), _counts([*cut, rows < 0], marks))

    def blank(self, n: int) -> Block:
        """Return n rows of padding, as one step's slice."""
        groups = [] if self._group is None else [np.full(n, NO_GROUP)]
        lengths = [np.zeros(n, np.int64)] * len(self.keys)
        values = [np.zeros(0, np.int64)] * len(self.keys)
        ints, at = self._records([np.full(n, -1), *groups, *lengths], values, np.array([0, n]))
        floats = np.zeros((n, len(self._floats)), np.float32)
        floats[:, : len(self._dense)] = np.nan
        return Block(0, at, ints, [0, n], floats, None)

    def join(self, parts: Sequence[tuple[Block, int]]) -> Batch:
        """Join slice k of each (block, k), in order, to one batch."""
        records = [block.ints[block.at[k] : block.at[k + 1]] for block, k in parts]
        floats = np.concatenate([block.floats[block.marks[k] : block.marks[k + 1]] for block, k in parts])
        flat, features, batch = np.concatenate(records), len(self.keys), len(floats)
        starts = _running(np.fromiter(map(len, records), np.int64, len(records)))[:-1]
        heads = flat[starts[:, None] + np.arange(1 + features)]  # (parts, 1 + F)
        simple = np.repeat(heads[:, :1], (1 if self._group is None else 2) + features, axis=1)
        sizes = np.concatenate([np.full((len(parts), 1), 1 + features), simple, heads[:, 1:]], axis=1)
        flat = _transposed(flat, sizes)[heads.size :]
        rows, flat = flat[:batch].clone(), flat[batch:]  # a copy, so that whoever keeps it does not keep the ids
        groups = None
        if self._group is not None:
            groups, flat = flat[:batch].clone(), flat[batch:]
        ids = KeyedJaggedTensor(
            keys=self.keys,
            values=flat[features * batch :],
            lengths=flat[: features * batch],
            stride=batch,
            length_per_key=heads[:, 1:].sum(axis=0).tolist(),  # known here, so no device ever has to be asked
        )
        sizes = [len(self._dense), len(self._labels), len(self._weighted)]
        dense, labels, given = torch.from_numpy(floats).split(sizes, dim=1)
        sample_weights = None
        if self._weighted:
            sample_weights = torch.ones_like(labels).index_copy_(1, torch.tensor(self._weighted), given)
        return Batch(
            ids=ids,
            dense=dense.contiguous(),
            labels=labels.contiguous(),
            weights=(rows >= 0).float(),
            rows=rows,
            groups=groups,
            sample_weights=sample_weights,
        )

    def _records(
        self, simple: Sequence[np.ndarray], values: Sequence[np.ndarray], marks: np.ndarray
    ) -> tuple[np.ndarray, list[int]]:
        """Return the records of all steps, one after the other, and their bounds.

        Args:
            simple: row numbers, groups if any, and F lengths, each (n,).
            values: F times (sum of lengths,).
            marks: (steps + 1,).
        """
        lengths = simple[len(simple) - len(values) :]
        cuts = [_running(length)[marks] for length in lengths]
        heads = np.diff(np.stack([marks, *cuts]), axis=1)  # (1 + F, steps)
        sizes = np.concatenate([np.full_like(heads[:1], len(heads)), np.repeat(heads[:1], len(simple), 0), heads[1:]])
        flat = np.concatenate([heads.T.reshape(-1), *simple, *values])
        return _lasting(_transposed(flat, sizes).numpy()), _running(sizes.sum(axis=0)).tolist()


def _lasting(array: np.ndarray) -> np.ndarray:
    """Copy a window's array to Arrow's memory pool.

    Windows live long and die in another thread than they were made in; malloc would keep such memory a thread and grow
    with every pass, while the pool hands it to the next window.
    """
    copy = np.frombuffer(pa.allocate_buffer(array.nbytes), array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@functools.lru_cache(maxsize=64)
def _transposition(rows: int, columns: int) -> torch.Tensor:
    return torch.arange(rows * columns, dtype=torch.int32).view(rows, columns).t().reshape(-1)


def _transposed(flat: np.ndarray, sizes: np.ndarray) -> torch.Tensor:
    """Return the R x C segments of `flat`, whose lengths are `sizes` (R, C), column by column instead of row by row."""
    order, lengths = _transposition(*sizes.shape), torch.from_numpy(np.ascontiguousarray(sizes).reshape(-1))
    return torch.ops.fbgemm.permute_1D_sparse_data(order, lengths, torch.from_numpy(flat), None, len(flat))[1]


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array, copied only where it comes in several chunks."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _running(lengths: np.ndarray) -> np.ndarray:
    """Return the n + 1 offsets of n lengths."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _counts(flags: list[np.ndarray], marks: np.ndarray) -> np.ndarray | None:
    """Count each array of flags by step, (steps, flags); None where nothing is set."""
    if not any(flag.any() for flag in flags):
        return None
    return np.stack([np.diff(_running(flag)[marks]) for flag in flags], axis=1)


def _ids(array: pa.Array, order: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values, lengths (0 where null, else 1) and no cuts, in reading order."""
    array = array.cast(pa.int64())
    if order is not None:
        array = array.take(pa.array(order))
    lengths = np.ones(len(array), np.int64)
    if array.null_count:
        lengths = array.is_valid().to_numpy(zero_copy_only=False).astype(np.int64)
        array = array.drop_null()
    return array.to_numpy(), lengths, np.zeros(len(lengths), bool)


def _lists(array: pa.Array, limit: int, order: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values, lengths and which lists were cut, in reading order.

    A null list is empty, a null element is dropped, and of a list that is still longer than `limit` the last `limit`
    elements stay.
    """
    offsets = array.offsets.to_numpy().astype(np.int64)
    values = array.values.slice(offsets[0], offsets[-1] - offsets[0]).cast(pa.int64())
    offsets -= offsets[0]
    if values.null_count:
        offsets = _running(values.is_valid().to_numpy(zero_copy_only=False))[offsets]
        values = values.drop_null()
    stored = np.diff(offsets)
    present = stored if not array.null_count else stored * array.is_valid().to_numpy(zero_copy_only=False)
    kept = np.minimum(present, limit)
    cut = present > limit
    if order is None and np.array_equal(kept, stored):
        return values.to_numpy(), kept, cut
    order = np.arange(len(kept)) if order is None else order
    # Each list is two segments, what goes and what stays; one kernel copies those that stay into their new order.
    segments = np.stack([stored - kept, kept], axis=1).reshape(-1)
    _, moved, _ = torch.ops.fbgemm.permute_1D_sparse_data(
        torch.from_numpy((2 * order + 1).astype(np.int32)),
        torch.from_numpy(segments),
        torch.from_dlpack(values),
        None,
        int(kept.sum()),
    )
    return moved.numpy(), kept[order], cut[order]


def _floats(arrays: list[pa.Array], order: np.ndarray | None, rows: int) -> np.ndarray:
    """Return (rows, columns) float32 in reading order, null = NaN."""
    matrix = np.empty((rows, len(arrays)), np.float32)
    for column, array in enumerate(arrays):
        numbers = array.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
        matrix[:, column] = numbers if order is None else numbers[order]
    return matrix
