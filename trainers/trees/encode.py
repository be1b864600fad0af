"""What a fit makes of the rows before it grows trees: a matrix on disk, without a label that a row may not know.

Ids with few values become categories, all others statistics of *strictly earlier* rows: of the partitions before, or
of the parts of the only one before. So no row's statistics have a label of its own time in them. What the model keeps,
and what the validation split sees, are the statistics of the whole training split.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from livetrain.configs.schema import Recipe
from livetrain.modules.fitted import Pass, Rows, State
from livetrain.modules.trees.columns import Columns, id_sources

_MERGE = 1 << 20  # ids that wait before they are counted
_CATEGORY, _KEYS, _VALUES = "category.", "keys.", "statistics."


class Encoded(NamedTuple):
    """A split's n rows: T tasks, F columns."""

    numbers: np.ndarray  # (n, F) float32, mapped
    labels: np.ndarray  # (n, T) float32, 0 where not known
    weights: np.ndarray  # (n, T) float32, 0 where not known
    blocks: np.ndarray  # (n,) int32


class Tally:
    """Counts of a feature's ids, and sums of the labels of their rows. It holds an entry of each id.

    Args:
        tasks: T.
        prior: rows with the mean label of all that an id's mean leans on.

    Example:
        >>> tally = Tally(1, prior=2)
        >>> tally.add(np.array([7, 7, 3]), np.array([[1.0], [0.0], [1.0]]), np.ones((3, 1)))
        >>> keys, values = tally.statistics(rows=4)
        >>> keys.tolist(), [[round(x, 3) for x in row] for row in values.tolist()]
        ([3, 7], [[0.25, 0.778], [0.5, 0.583]])
    """

    def __init__(self, tasks: int, prior: float) -> None:
        self._keys, self._prior = np.zeros(0, np.int64), prior
        self._sums = np.zeros((0, 1 + 2 * tasks))  # rows, labels of each task, and how many of these are known
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, ids: np.ndarray, labels: np.ndarray, known: np.ndarray) -> None:
        """Count (N,) ids, with the labels of their rows (N, T) and which are known; those that are not must be 0."""
        self._waiting.append((ids, np.concatenate([np.ones((len(ids), 1)), labels, known], 1)))
        if sum(len(ids) for ids, _ in self._waiting) > _MERGE:
            self._merge()

    def _merge(self) -> None:
        keys = np.concatenate([self._keys, *(ids for ids, _ in self._waiting)])
        sums = np.concatenate([self._sums, *(each for _, each in self._waiting)])
        self._waiting = []
        self._keys, place = np.unique(keys, return_inverse=True)
        self._sums = np.stack([np.bincount(place, column, len(self._keys)) for column in sums.T], 1)

    def statistics(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (K,) int64 rising ids, and (K, 1 + T) float32: their share of so many rows, and mean labels.

        mean = (sum of the id's labels + prior * mean of all) / (rows of the id + prior)
        """
        self._merge()
        tasks = self._sums.shape[1] // 2
        sums, known = self._sums[:, 1 : 1 + tasks], self._sums[:, 1 + tasks :]
        mean = sums.sum(0) / np.maximum(known.sum(0), 1)
        means = (sums + self._prior * mean) / np.maximum(known + self._prior, 1e-9)
        return self._keys, np.concatenate([self._sums[:, :1] / max(rows, 1), means], 1).astype(np.float32)


def categories_of(recipe: Recipe, train: Pass, most: int, before: State | None) -> dict[str, torch.Tensor]:
    """Return the ids of each feature that has few of them, in the order of their codes.

    Args:
        recipe: the run.
        train: reads the training split.
        most: ids of a category.
        before: what an earlier fit has learned: its categories stay, with their codes, and new ids come behind.
    """
    sources: dict[str, Any] = {n: s for n, s in id_sources(recipe).items() if not recipe.features[n].lists}
    if before is not None:
        sources = {name: source for name, source in sources.items() if _CATEGORY + name in before}
    found = {name: torch.zeros(0, dtype=torch.int64) for name in sources}
    for rows in train():
        for name in list(found):
            ids, _, _ = sources[name](*rows.inputs)
            found[name] = torch.cat([found[name], ids]).unique()
            if before is None and len(found[name]) > most:
                del found[name]
    if before is None:
        return found
    old = {name: torch.from_numpy(np.array(before[_CATEGORY + name])) for name in sources}
    return {name: torch.cat([old[name], ids[~torch.isin(ids, old[name])]]) for name, ids in found.items()}


def encode(
    recipe: Recipe, train: Pass, valid: Pass, folder: Path, categories: Mapping[str, torch.Tensor], prior: float
) -> tuple[Columns, Encoded, Encoded]:
    """Return what makes columns of rows, and both splits' rows.

    Args:
        recipe: the run.
        train: reads the training split.
        valid: reads the validation split.
        folder: where the matrices are written.
        categories: of features with few ids, see `categories_of`.
        prior: of statistics, see `Tally`.
    """
    columns = Columns(recipe, categories)
    tallies = {name: Tally(len(recipe.tasks), prior) for name in columns.statistics}
    sources: dict[str, Any] = id_sources(recipe)
    seen, block = 0, 0

    def settle() -> None:
        for name, tally in tallies.items():
            keys, values = tally.statistics(seen)
            columns.set_statistics(name, torch.from_numpy(keys), torch.from_numpy(values))

    writer = _Writer(folder / "train.f32", columns)
    for rows in train():
        if rows.block != block:
            block = rows.block
            settle()
        writer.add(rows)
        labels, known = _known(rows)
        for name, tally in tallies.items():
            ids, counts, _ = sources[name](*rows.inputs)
            row = torch.repeat_interleave(torch.arange(len(counts)), counts).numpy()
            tally.add(ids.numpy().astype(np.int64), labels[row], known[row])
        seen += len(labels)
    settle()
    found = writer.done()
    writer = _Writer(folder / "valid.f32", columns)
    for rows in valid():
        writer.add(rows)
    return columns, found, writer.done()


def _known(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, T) labels, 0 where they are not known, and whether they are."""
    known = ~rows.labels.isnan()
    return torch.where(known, rows.labels, 0.0).numpy(), known.float().numpy()


class _Writer:
    def __init__(self, path: Path, columns: Columns) -> None:
        self._path, self._columns, self._file = path, columns, open(path, "wb")  # noqa: SIM115
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, rows: Rows) -> None:
        with torch.no_grad():
            self._file.write(self._columns(*rows.inputs).numpy().tobytes())
        labels, _ = _known(rows)
        self._parts.append((labels, rows.weights.numpy(), np.full(len(labels), rows.block, np.int32)))

    def done(self) -> Encoded:
        self._file.close()
        labels, weights, blocks = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        shape = (len(blocks), len(self._columns.columns))
        return Encoded(np.memmap(self._path, np.float32, "r", shape=shape), labels, weights, blocks)


def kept(columns: Columns, categories: Mapping[str, torch.Tensor]) -> State:
    """Return what the columns are made by, as arrays of a checkpoint."""
    state = {_CATEGORY + name: ids.numpy() for name, ids in categories.items()}
    for name, place in columns.statistics.items():
        part: Any = columns.parts[place]
        state |= {_KEYS + name: part.keys.numpy(), _VALUES + name: part.values.numpy()}
    return state


def columns_of(recipe: Recipe, state: State) -> Columns:
    """Return what makes columns of rows, of a checkpoint's arrays."""
    parts = {name.removeprefix(_CATEGORY): ids for name, ids in state.items() if name.startswith(_CATEGORY)}
    columns = Columns(recipe, {name: torch.from_numpy(np.array(ids)) for name, ids in parts.items()})
    for name in columns.statistics:
        keys, values = (torch.from_numpy(np.array(state[part + name])) for part in (_KEYS, _VALUES))
        columns.set_statistics(name, keys, values)
    return columns


def told(columns: Columns) -> str:
    """Say what became of the features, for the run's log."""
    categories = [column.name for column in columns.columns if column.categories]
    return (
        f"{len(columns.columns)} columns; categories: {', '.join(categories) or 'none'}; statistics of earlier rows: "
        f"{', '.join(columns.statistics) or 'none'}"
    )
