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
        self._names = {name: recipe.columns(name) for name in (*self._sparse, *self._dense)}
        self.keys = list(self._sparse)
        # Weights go through the records as a further list of each feature that has them: their bits in int64.
        self.weighted = {name: column for name, f in self._sparse.items() if (column := f.weighted)}
        limits = [self._sparse[name].limit for name in (*self._sparse, *self.weighted)]
        self._limits = np.array(limits, np.int64)
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
        used = [column for names in self._names.values() for column in names]
        named = [*used, *self.weighted.values(), *self._others, *self._groups]
        named += [name for columns in (self._slices.columns.values() if self._slices else ()) for name in columns]
        self.columns = list(dict.fromkeys(named))
        self._passes = passes()

    def decode(self, table: pa.Table, first: int, where: str) -> Columns:
        """Decode rows.

        Args:
            table: the rows, with `columns`.
            first: the number of the first one.
            where: what rows they are, for messages.

        Raises:
            BadInput: a list of numbers is of another length than its feature's, or the weights of a row's ids are not
                one finite number for each.
        """
        whole = {name: carry.whole(table.column(name)) for name in self.columns}
        plain = [carry.whole_ids(whole[name]).fill_null(int(NO_GROUP)).to_numpy() for name in self._groups]
        if self._slices is not None:
            plain.append(self._slices.marks(table))
        ids = [carry.ids(feature, whole[self._names[name][0]]) for name, feature in self._sparse.items()]
        for name, column in self.weighted.items():
            lists = whole[self._names[name][0]], whole[column]
            weights = carry.weights_of(*lists, f"{where}, features.{name}.weights: ")
            ids.append(ids[self.keys.index(name)]._replace(values=weights.view(np.int32).astype(np.int64)))
        return Columns(
            first,
            ids,
            plain,
            [
                *(carry.numbers(n, f, [whole[c] for c in self._names[n]], where) for n, f in self._dense.items()),
                *(carry.floats(whole[name]) for name in self._others),
            ],
        )

    def unreadable(self, rows: int) -> Columns:
        """Return rows that could not be read."""
        none = Column.of(np.zeros(0, np.int64), np.zeros(rows + 1, np.int64))
        plain = [np.full(rows, NO_GROUP) for _ in self._groups]
        if self._slices is not None:
            plain.append(np.zeros(rows, np.int64))
        floats = [carry.missing(feature, rows) for feature in self._dense.values()]
        floats += [np.zeros(rows, np.float32)] * len(self._others)
        return Columns(-1, [none] * len(self._limits), plain, floats)

    def weights(self, columns: Columns, name: str) -> np.ndarray:
        """Return the weights of a feature's ids in decoded rows, (N,) float32."""
        return _from_bits(torch.from_numpy(columns.ids[len(self.keys) + [*self.weighted].index(name)].values)).numpy()

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
        features, lists = len(self.keys), len(self._limits)
        head, plain, ids, floats = self._passes.join(step, blocks, self._plains, lists)
        batch = int(head[0])
        counts, cut = head[2 : 2 + lists].tolist(), head[2 + lists : 2 + lists + features]
        values, total = ids[lists * batch :], sum(counts[:features])
        sizes = [self._width, len(self._labels), len(self._weighted)]
        dense, labels, given = floats.split(sizes, dim=1)
        sample_weights = None
        if self._weighted:
            sample_weights = torch.ones_like(labels).index_copy_(1, torch.tensor(self._weighted), given)
        made = Batch(
            ids=KeyedJaggedTensor(
                keys=self.keys,
                values=values[:total],
                weights=self._weights(values[total:], counts) if self.weighted else None,
                lengths=ids[: features * batch],
                stride=batch,
                length_per_key=counts[:features],  # known here, so no device ever has to be asked
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
        return made, np.concatenate([head[1:2], cut])

    def _weights(self, bits: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """Return a weight of every id of a batch, 1 of those of features that have none."""
        features = len(self.keys)
        found = torch.ones(sum(counts[:features]))
        parts = found.split(counts[:features])
        for name, part in zip(self.weighted, _from_bits(bits).split(counts[features:]), strict=True):
            parts[self.keys.index(name)].copy_(part)
        return found


def _from_bits(bits: torch.Tensor) -> torch.Tensor:
    return bits.to(torch.int32).view(torch.float32)
