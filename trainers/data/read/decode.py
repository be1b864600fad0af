"""Arrow tables to blocks of shuffled rows, and the blocks' slices to a `Batch`."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Batch
from livetrain.trainers.data.read.records import Block, Column, Columns, Slice, passes, running
from livetrain.trainers.data.read.slices import Slices

NO_GROUP = np.iinfo(np.int64).min
"""Group of a row whose `evaluate.group_by` is null, and of padding."""


class Decoder:
    """Turns the columns that a recipe names into blocks, and slices of blocks into batches.

    Args:
        recipe: names the features, tasks and the group columns.
        groups: give `Batch.groups`, for an evaluation; otherwise `Batch.task_groups`, to train by.
        slices: also give `Batch.slices`.
    """

    def __init__(self, recipe: Recipe, groups: bool, slices: bool = False) -> None:
        sparse = {name: f for name, f in recipe.features.items() if f.carrier == "ids"}
        self.keys = list(sparse)
        self._sparse = [recipe.column(name) for name in sparse]
        limits = [f.limit for f in sparse.values()]
        self._limits = np.array(limits, np.int64)
        self._dense = [recipe.column(name) for name, f in recipe.features.items() if f.carrier == "numbers"]
        self._labels = [task.label for task in recipe.tasks.values()]
        self._weighted = [place for place, task in enumerate(recipe.tasks.values()) if task.sample_weight]
        weights = [task.sample_weight for task in recipe.tasks.values() if task.sample_weight]
        self._floats = [*self._dense, *self._labels, *weights]
        self._evaluates = groups
        evaluated = [recipe.evaluate.group_by] if recipe.evaluate.group_by else []
        self._groups = evaluated if groups else list(dict.fromkeys(recipe.groups().values()))
        self._slices = Slices(recipe.evaluate.slices) if slices and recipe.evaluate.slices else None
        # Columns of one value per row: its number, its groups and its slices.
        self._plains = 1 + len(self._groups) + (self._slices is not None)
        named = [*self._sparse, *self._floats, *self._groups]
        named += [name for columns in (self._slices.columns.values() if self._slices else ()) for name in columns]
        self.columns = list(dict.fromkeys(named))
        self._passes = passes()

    def decode(self, table: pa.Table, first: int) -> Columns:
        """Decode rows whose first one has the number `first`."""
        whole = {name: _whole(table.column(name)) for name in self.columns}
        plain = [whole[name].cast(pa.int64()).fill_null(int(NO_GROUP)).to_numpy() for name in self._groups]
        if self._slices is not None:
            plain.append(self._slices.marks(table))
        return Columns(
            first,
            [_column(whole[name]) for name in self._sparse],
            plain,
            [_floats(whole[name]) for name in self._floats],
        )

    def unreadable(self, rows: int) -> Columns:
        """Return rows that could not be read."""
        none = Column(np.zeros(0, np.int64), np.zeros(rows + 1, np.int64))
        plain = [np.full(rows, NO_GROUP) for _ in self._groups]
        if self._slices is not None:
            plain.append(np.zeros(rows, np.int64))
        dense, others = np.full(rows, np.nan, np.float32), np.zeros(rows, np.float32)
        floats = [dense if place < len(self._dense) else others for place in range(len(self._floats))]
        return Columns(-1, [none] * len(self.keys), plain, floats)

    def runs(self, slices: Sequence[Slice]) -> np.ndarray | None:
        """Return where, in one slice after the other, the rows of a group begin that follow one another, (runs,).

        None where nothing is trained by group.
        """
        if self._evaluates or not self._groups:
            return None
        begins = np.zeros(sum(part.stop - part.start for part in slices), bool)
        begins[0] = True
        for place in range(len(self._groups)):
            group = np.concatenate([part.columns.plain[place][part.start : part.stop] for part in slices])
            begins[1:] |= group[1:] != group[:-1]
        return np.flatnonzero(begins)

    def block(self, first: int, slices: Sequence[Slice], order: np.ndarray | None, marks: np.ndarray) -> Block:
        """Arrange one window by its steps, as `Passes.pack` says."""
        return self._passes.pack(first, slices, self._limits, order, marks)

    def blank(self, step: int, rows: int) -> Block:
        """Return rows of padding, for one step."""
        return self.block(step, [Slice(self.unreadable(rows), 0, rows)], None, np.array([0, rows]))

    def join(self, step: int, blocks: Sequence[Block]) -> tuple[Batch, np.ndarray]:
        """Join one step's slices of some blocks, in the blocks' order.

        Returns:
            batch: the step's rows.
            counts: (1 + F,) rows that could not be read, padding included, and lists cut, by sparse feature.
        """
        features = len(self.keys)
        head, plain, ids, floats = self._passes.join(step, blocks, self._plains, features)
        batch = int(head[0])
        sizes = [len(self._dense), len(self._labels), len(self._weighted)]
        dense, labels, given = floats.split(sizes, dim=1)
        sample_weights = None
        if self._weighted:
            sample_weights = torch.ones_like(labels).index_copy_(1, torch.tensor(self._weighted), given)
        made = Batch(
            ids=KeyedJaggedTensor(
                keys=self.keys,
                values=ids[features * batch :],
                lengths=ids[: features * batch],
                stride=batch,
                length_per_key=head[2 : 2 + features].tolist(),  # known here, so no device ever has to be asked
            ),
            dense=dense.contiguous(),
            labels=labels.contiguous(),
            weights=(plain[0] >= 0).float(),
            rows=plain[0],
            groups=plain[1] if self._evaluates and self._groups else None,
            task_groups=plain[1:].t().contiguous() if self._groups and not self._evaluates else None,
            slices=None if self._slices is None else plain[-1],
            sample_weights=sample_weights,
        )
        return made, np.concatenate([head[1:2], head[2 + features :]])


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array, copied only where it comes in several chunks."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _floats(array: pa.Array) -> np.ndarray:
    """Return a column of numbers; a null is NaN."""
    return array.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)


def _column(array: pa.Array) -> Column:
    """Return a column of ids or of lists of ids; a null is no id or an empty list, a null element is left out."""
    offsets: np.ndarray | None
    if isinstance(array, pa.ListArray | pa.LargeListArray):
        if array.null_count:  # a null list may have values in memory
            offsets, values = running(array.value_lengths().fill_null(0).to_numpy()), array.flatten()
        else:
            offsets = array.offsets.to_numpy().astype(np.int64)
            values = array.values.slice(offsets[0], offsets[-1] - offsets[0])
            offsets -= offsets[0]
    else:
        offsets, values = np.arange(len(array) + 1) if array.null_count else None, array
    values = values if values.type == pa.int64() else values.cast(pa.int64())
    if values.null_count:
        offsets = running(values.is_valid().to_numpy(zero_copy_only=False))[offsets]
        values = values.drop_null()
    return Column(values.to_numpy(), offsets)
