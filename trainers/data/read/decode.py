"""Arrow tables to blocks of shuffled rows, and the blocks' slices to a `Batch`."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Batch
from livetrain.trainers.data.read import carry
from livetrain.trainers.data.read.records import Block, Column, Columns, Slice, passes
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
        self._sparse = {name: f for name, f in recipe.features.items() if f.carrier == "ids"}
        self._dense = {name: f for name, f in recipe.features.items() if f.carrier == "numbers"}
        self._names = {name: recipe.columns(name) for name in recipe.features}
        self.keys = list(self._sparse)
        self._limits = np.array([f.limit for f in self._sparse.values()], np.int64)
        self._width = sum(f.numbers for f in self._dense.values())
        self._labels = [task.label for task in recipe.tasks.values()]
        self._weighted = [place for place, task in enumerate(recipe.tasks.values()) if task.sample_weight]
        weights = [task.sample_weight for task in recipe.tasks.values() if task.sample_weight]
        self._others = [*self._labels, *weights]
        self._evaluates = groups
        evaluated = [recipe.evaluate.group_by] if recipe.evaluate.group_by else []
        self._groups = evaluated if groups else list(dict.fromkeys(recipe.groups().values()))
        self._slices = Slices(recipe.evaluate.slices) if slices and recipe.evaluate.slices else None
        # Columns of one value per row: its number, its groups and its slices.
        self._plains = 1 + len(self._groups) + (self._slices is not None)
        used = [column for name in (*self._sparse, *self._dense) for column in self._names[name]]
        named = [*used, *self._others, *self._groups]
        named += [name for columns in (self._slices.columns.values() if self._slices else ()) for name in columns]
        self.columns = list(dict.fromkeys(named))
        self._passes = passes()

    def decode(self, table: pa.Table, first: int, where: str) -> Columns:
        """Decode rows whose first one has the number `first`.

        Raises:
            BadInput: a list of numbers is of another length than its feature's; `where` says where the rows are.
        """
        whole = {name: carry.whole(table.column(name)) for name in self.columns}
        plain = [carry.whole_ids(whole[name]).fill_null(int(NO_GROUP)).to_numpy() for name in self._groups]
        if self._slices is not None:
            plain.append(self._slices.marks(table))
        return Columns(
            first,
            [carry.ids(feature, whole[self._names[name][0]]) for name, feature in self._sparse.items()],
            plain,
            [
                *(carry.numbers(n, f, [whole[c] for c in self._names[n]], where) for n, f in self._dense.items()),
                *(carry.floats(whole[name]) for name in self._others),
            ],
        )

    def unreadable(self, rows: int) -> Columns:
        """Return rows that could not be read."""
        none = Column(np.zeros(0, np.int64), np.zeros(rows + 1, np.int64))
        plain = [np.full(rows, NO_GROUP) for _ in self._groups]
        if self._slices is not None:
            plain.append(np.zeros(rows, np.int64))
        floats = [carry.missing(feature, rows) for feature in self._dense.values()]
        floats += [np.zeros(rows, np.float32)] * len(self._others)
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
        sizes = [self._width, len(self._labels), len(self._weighted)]
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
