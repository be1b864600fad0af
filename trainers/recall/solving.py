"""A run whose items' vectors are solved for: an epoch is one sweep of trainers.recall.als over all events.

All else is any run's: validation and a checkpoint after each sweep, patience, a start from an earlier run's vectors
(train.warm_start, nights), export. A run that was killed goes on with the sweep that it was in: the items' vectors are
all that a sweep begins with.
"""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.modules.models.als import ALSConfig
from livetrain.modules.tables.hashing import row
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.recall import als
from livetrain.trainers.recall.als import Pairs, Weighing
from livetrain.trainers.recall.rows import Events, events_of, rows_of
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train.feed import SKIPPED
from livetrain.trainers.train.loop import Job, Trainer
from livetrain.trainers.train.sharding import Sharded

ROWS = 2**18  # of a table that travel at a time


class Solving(Trainer):
    """One rank's part of a run of kind als.

    It holds this rank's part of the events, twice (24 bytes each time), and of the users' vectors; see als.

    Args:
        job, device: as of `Trainer`.

    Raises:
        BadInput: the item and the history have different tables.
    """

    def __init__(self, job: Job, device: torch.device) -> None:
        super().__init__(job, device)
        assert isinstance(self.recipe.model, ALSConfig)
        self.config = self.recipe.model
        self.weighing = Weighing(self.config.unobserved, self.config.regularisation, self.config.power)
        tables = [self.recipe.features[name].looks_up() for name in (self.config.key, self.config.history)]
        if tables[0] is None or tables[0] != tables[1]:
            raise BadInput(
                f"features.{self.config.history}.table: it is {tables[1]}, and that of the item {tables[0]}; a user's "
                "vector is made of the items', so name one table in both"
            )
        self.table = tables[0]
        self._sides: tuple[Pairs, Pairs] | None = None

    def _next_evaluation(self) -> int:
        """Return the step at which the epoch ends: within a sweep there are no vectors to evaluate."""
        return (self.step // self.reader.steps + 1) * self.reader.steps

    def _advance(self, batches: Iterator[Any], stop: int) -> None:
        """Solve all users, and then all items."""
        began = time.perf_counter()
        if self._sides is None:
            rows = self.recipe.tables[self.table].rows
            events, skipped = read(self.job.sources["train"], self.recipe, self.config)
            who, what, weight = (part.to(self.device) for part in events)
            self._sides = als.both_sides(who, what, weight, rows)
            self.left_out = {SKIPPED: skipped}
        users, items = self._sides
        count = sum(ranks.gather(len(users.others)))
        if not count:
            raise BadInput(f"{self.job.sources['train'].folder}: no row of the training split is an event; see model")
        vectors, loss = als.sweep(users, items, taken(self.sharded, self.table), self.weighing)
        put(self.sharded, self.table, vectors)
        fold_in = self.sharded.model.dense.network.towers.user
        fold_in.background.copy_(self.weighing.unobserved * als.gram(vectors))
        fold_in.items.fill_(sum(ranks.gather(int((items.lengths > 0).sum()))))
        self.step = stop
        seconds = time.perf_counter() - began
        self.position["rows"] += count
        self.position["seconds"] += seconds
        self.log.write(
            "train",
            step=self.step,
            steps=self.total,
            epoch=self.step / self.reader.steps,
            loss=loss / count,
            rows_per_s=count / seconds,
        )


def read(source: Source, recipe: Recipe, config: ALSConfig) -> tuple[tuple[Tensor, Tensor, Tensor], int]:
    """Return the events in every R-th row group, and how many rows of these could not be read; of requests fewer.

    Events are users, rows of the items' table, and what each weighs, (N,).

    Raises:
        BadInput: a file cannot be read.
    """
    nothing = np.zeros(0, np.int64)
    parts: list[tuple[np.ndarray, ...]] = [(nothing, nothing, np.zeros(0, np.float32))]
    names, left = [config.key, config.history], int(source.groups.rows[ranks.rank() :: ranks.world()].sum())
    for rows in rows_of(source, names, recipe, ranks.rank(), ranks.world()):
        found = events_of(rows, config.key, config.history, config.user)
        left -= len(rows.label)
        weights = np.ones(len(found.user), np.float32)
        if config.value:
            values = rows.columns[config.value][found.row]
            found = Events(*(column[values >= config.threshold] for column in found))
            values = values[values >= config.threshold]
            weights = (1 + config.confidence * np.log(values / config.threshold)).astype(np.float32)
        parts.append((found.user, found.item, weights))
    users, items, weight = (torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True))
    table = recipe.tables[recipe.features[config.key].looks_up() or ""]
    return (users, row(items, table.rows, table.hash == "modulo"), weight), max(left, 0)


TRAINERS: dict[str, type[Trainer]] = {"als": Solving}
"""What trains the kinds of model that are not trained by gradients."""


@torch.no_grad()
def taken(sharded: Sharded, table: str) -> Tensor:
    """Return every R-th row of a table, from this rank's number on, wherever they lie, (n, d) float32. Collective."""
    declared, world = sharded.recipe.tables[table], ranks.world()
    whole = _whole(sharded, table)
    if whole is not None:
        return whole[ranks.rank() :: world].float().clone()
    block = torch.zeros(als.own_rows(declared.rows), declared.dim, device=sharded.device)
    for weight, rows, columns in _pieces(sharded, table):
        wide = block.new_zeros(len(rows), declared.dim)
        wide[:, columns] = weight.to(block)
        come, vectors = als.routed(rows % world, rows, wide)
        block.index_add_(0, come // world, vectors)  # of a row that lies in parts each has some columns
    return block


@torch.no_grad()
def put(sharded: Sharded, table: str, block: Tensor) -> None:
    """Write the rows that `taken` would return. Collective."""
    for weight, rows, columns in _pieces(sharded, table):
        weight.copy_(als.fetch(block, rows)[:, columns])
    sharded.purge()


def _whole(sharded: Sharded, table: str) -> Tensor | None:
    """Return the weights of a table that every rank has whole."""
    for path, collection in sharded.model.tables.items():
        if path.endswith("replicated") and table in collection.embeddings:  # type: ignore[operator]
            return collection.embeddings[table].weight  # type: ignore[index, union-attr]
    return None


def _pieces(sharded: Sharded, table: str) -> Iterator[tuple[Tensor, Tensor, slice]]:
    """Yield what lies on this rank of a table, at most ROWS rows at a time: weights, their rows, their columns.

    Every rank gets as many pieces, some perhaps without rows.
    """
    whole = _whole(sharded, table)
    shards = [part[1:] for part in sharded.shards() if part[0] == table] if whole is None else [(whole, 0, 0)]
    found = [
        (weight[start : start + ROWS], first + start, column)
        for weight, first, column in shards
        for start in range(0, len(weight), ROWS)
    ]
    nothing = torch.zeros(0, sharded.recipe.tables[table].dim), 0, 0
    found += [nothing] * (max(ranks.gather(len(found))) - len(found))
    for weight, first, column in found:
        rows = torch.arange(first, first + len(weight), device=sharded.device)
        yield weight, rows, slice(column, column + weight.shape[1])
