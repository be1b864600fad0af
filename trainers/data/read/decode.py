"""Arrow tables to blocks of shuffled rows, and the blocks' slices to a `Batch`."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from livetrain.configs.features.sequence import SequenceFeature
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
        groups: give `Batch.groups` and `Batch.asides`, for an evaluation; otherwise `Batch.task_groups`, to train by.
        slices: also give `Batch.slices`.
        names: the features; all by default.

    Attributes:
        keys: the features that ids carry, in the recipe's order, and then the asides: of a batch split off at its end.
    """

    def __init__(
        self, recipe: Recipe, groups: bool, slices: bool = False, names: Collection[str] | None = None
    ) -> None:
        chosen = {name: f for name, f in recipe.features.items() if names is None or name in names}
        self._sparse = {name: f for name, f in chosen.items() if f.carrier == "ids"}
        self._dense = {name: f for name, f in chosen.items() if f.carrier == "numbers"}
        self._names = {name: recipe.columns(name) for name in (*self._sparse, *self._dense)}
        self._fed = len(self._sparse)  # of `keys`: what the model gets
        for name, column in recipe.asides().items() if groups else ():
            self._sparse[name] = SequenceFeature(type="sequence", table="none", max_length=2**16)
            self._names[name] = (column,)
        self.keys = list(self._sparse)
        # What lies beside ids, weights or vectors, goes through the records as a further list of each feature that has
        # it: its bits in int64.
        fed = self.keys[: self._fed]
        self.beside = {name: beside for name in fed if (beside := recipe.beside(name)) is not None}
        limits = [f.limit for f in self._sparse.values()]
        limits += [self._sparse[name].limit * words(width) for name, (_, width) in self.beside.items()]
        self._limits = np.array(limits, np.int64)
        self._carrying = [name for name in self.beside if self._sparse[name].carried]
        self._weighs = len(self._carrying) < len(self.beside)
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
        named = [*used, *(column for columns, _ in self.beside.values() for column in columns)]
        named += [*self._others, *self._groups]
        named += [name for columns in (self._slices.columns.values() if self._slices else ()) for name in columns]
        self.columns = list(dict.fromkeys(named))
        self._passes = passes()

    def bytes(self, lengths: Mapping[str, float]) -> tuple[float, float]:
        """Return how many bytes a row takes in the mean: decoded, and in a block, where lists are cut.

        Args:
            lengths: how many values a row has, of every column that is decoded.
        """
        held = 8.0 * (self._plains + len(self._limits)) + 4 * (self._width + len(self._others))
        for name, feature in self._sparse.items():
            each = 1 + (words(self.beside[name][1]) if name in self.beside else 0)
            held += 8 * each * min(lengths[self._names[name][0]], feature.limit)
        return 8 * sum(lengths.values()), held

    def decode(self, table: pa.Table, first: int, where: str) -> Columns:
        """Decode rows.

        Args:
            table: the rows, with `columns`.
            first: the number of the first one.
            where: what rows they are, for messages.

        Raises:
            BadInput: a list of numbers is of another length than its feature's, or the weights or vectors of a row's
                ids are not one for each, or not finite.
        """
        whole = {name: carry.whole(table.column(name)) for name in self.columns}
        plain = [carry.whole_ids(whole[name]).fill_null(int(NO_GROUP)).to_numpy() for name in self._groups]
        if self._slices is not None:
            plain.append(self._slices.marks(table))
        ids = [carry.ids(feature, whole[self._names[name][0]]) for name, feature in self._sparse.items()]
        for name, (columns, width) in self.beside.items():
            column, own = whole[self._names[name][0]], ids[self.keys.index(name)]
            numbers = carry.beside(name, self._sparse[name], column, [whole[c] for c in columns], width, where)
            ids.append(own.beside(to_bits(numbers), words(width)))
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

    def numbers(self, columns: Columns, name: str) -> np.ndarray:
        """Return what lies beside a feature's ids in decoded rows, float32: (N,) weights or (N, w) vectors."""
        bits = columns.ids[len(self.keys) + [*self.beside].index(name)].values
        found = from_bits(torch.from_numpy(bits), self.beside[name][1]).numpy()
        return found if self._sparse[name].carried else found[:, 0]

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
        beside = dict(zip(self.beside, values[total:].split(counts[features:]), strict=True))
        sizes = [self._width, len(self._labels), len(self._weighted)]
        dense, labels, given = floats.split(sizes, dim=1)
        sample_weights = None
        if self._weighted:
            sample_weights = torch.ones_like(labels).index_copy_(1, torch.tensor(self._weighted), given)
        fed, asides = self._apart(
            KeyedJaggedTensor(
                keys=self.keys,
                values=values[:total],
                weights=self._weights(beside, counts) if self._weighs else None,
                lengths=ids[: features * batch],
                stride=batch,
                length_per_key=counts[:features],  # known here, so no device ever has to be asked
            )
        )
        made = Batch(
            ids=fed,
            dense=dense.contiguous(),
            labels=labels.contiguous(),
            weights=(plain[0] >= 0).float(),
            rows=plain[0],
            groups=plain[1] if self._evaluates and self._groups else None,
            task_groups=plain[1:].t().contiguous() if self._groups and not self._evaluates else None,
            slices=None if self._slices is None else plain[-1],
            sample_weights=sample_weights,
            vectors=self._vectors(beside) if self._carrying else None,
            asides=asides,
        )
        return made, np.concatenate([head[1:2], cut])

    def _apart(self, lists: KeyedJaggedTensor) -> tuple[KeyedJaggedTensor, KeyedJaggedTensor | None]:
        """Return what the model gets, and the asides."""
        if self._fed == len(self.keys):
            return lists, None
        fed, others = lists.split([self._fed, len(self.keys) - self._fed])
        return fed, others

    def _weights(self, beside: dict[str, torch.Tensor], counts: list[int]) -> torch.Tensor:
        """Return a weight of every id of a batch, 1 of those of features that have none."""
        own = counts[: len(self.keys)]
        found = torch.ones(sum(own))
        parts = found.split(own)
        for name, bits in beside.items():
            if name not in self._carrying:
                parts[self.keys.index(name)].copy_(from_bits(bits, 1)[:, 0])
        return found

    def _vectors(self, beside: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return `Batch.vectors`."""
        return torch.cat([from_bits(beside[name], self.beside[name][1]).reshape(-1) for name in self._carrying])


def words(width: int) -> int:
    """Return how many int64 hold so many float32."""
    return -(-width // 2)


def to_bits(numbers: np.ndarray) -> np.ndarray:
    """Return the bits of (N, w) float32 as int64, (N * `words(w)`,)."""
    rows, width = numbers.shape
    if width % 2:
        numbers = np.concatenate([numbers, np.zeros((rows, 1), np.float32)], 1)
    return np.ascontiguousarray(numbers).view(np.int64).reshape(-1)


def from_bits(bits: torch.Tensor, width: int) -> torch.Tensor:
    """Return what `to_bits` was given."""
    return bits.view(torch.float32).view(-1, 2 * words(width))[:, :width]
