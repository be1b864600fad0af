"""How full each table is, and how many ids share a row."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.modules.embedding_modules import EmbeddingCollection

from livetrain.configs.schema import Recipe, Table
from livetrain.modules.model import initial_values
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train import ids
from livetrain.trainers.train.sharding import Sharded

_ROWS = 1 << 16  # whose state is looked at together


def distinct(occupied: int, rows: int) -> float:
    """Return how many distinct ids a uniform hash needs to occupy `occupied` of `rows` rows, in expectation.

    Inverts E[occupied] = rows (1 - (1 - 1/rows)^n). Infinite for a full table.
    """
    if occupied >= rows:
        return math.inf
    return math.log1p(-occupied / rows) / math.log1p(-1 / rows) if rows > 1 else float(occupied)


def occupancy(sharded: Sharded, recipe: Recipe, train: Source) -> dict[str, dict[str, Any]]:
    """Return, for each table, its rows in use and the ids that share one. Collective.

    A row is in use once training has moved it, which its optimizer's state tells: nothing is counted during the run. An
    optimizer without state tells nothing, nor do rows that began with a vector of tables.X.initial, which are in use as
    well: of such tables the rows that differ from their initial values are counted, which are drawn again, 4,096 rows
    at a time. The number of ids follows from the rows in use: exactly for ``hash: modulo`` with ids below ``rows``, in
    expectation otherwise (the standard error of `collisions` is about its square root).

    Returns:
        {table: {rows, occupied, occupancy, ids, collisions}}; ids and collisions are null for a full table. Of a table
        of `hash: table` what its map says, and {admitted, evicted, expired, refused, waiting} besides.
    """
    counts = torch.zeros(len(recipe.tables), dtype=torch.int64)
    numbers = {name: number for number, name in enumerate(recipe.tables)}
    told = set()
    # Every row has its first column on exactly one rank, whatever the sharding.
    for table, state, column in _states(sharded):
        if recipe.tables[table].initial is None:
            told.add(table)
            parts = state.detach().split(_ROWS) if column == 0 else ()
            counts[numbers[table]] += sum(int((part != 0).reshape(len(part), -1).any(1).sum()) for part in parts)
    for table, weight, row, column in _held(sharded):
        if column == 0 and table not in told:
            counts[numbers[table]] += initial_values(recipe, table).moved(weight.detach(), row)
    occupied = ranks.summed(counts.to(sharded.device)).tolist()
    return {
        name: _of_ids(sharded, name)
        if table.hash == "table"
        else _row(table, occupied[numbers[name]], table.hash == "modulo" and _below(recipe, name, train))
        for name, table in recipe.tables.items()
    }


def _held(sharded: Sharded) -> Iterator[tuple[str, torch.Tensor, int, int]]:
    yield from sharded.shards()
    collection: EmbeddingCollection
    for name, collection in sharded.model.tables.items():
        if name.endswith("replicated") and ranks.is_main():
            for table, embedding in collection.embeddings.items():
                yield table, embedding.weight, 0, 0


def _states(sharded: Sharded) -> Iterator[tuple[str, torch.Tensor, int]]:
    """Yield (table, state, first column) of a state with an entry per row of every piece that `_held` yields."""
    for kind in ("tables", "replicated"):
        if kind not in sharded.optimizers:
            continue
        for key, values in sharded.optimizers[kind].state_dict()["state"].items():
            table = key.split(".")[-2]
            rows = sharded.recipe.tables[table].rows
            each = next((value for value in values.values() if value.dim() and value.size(0) == rows), None)
            if isinstance(each, ShardedTensor):
                for shard in each.local_shards():
                    yield table, shard.tensor, sum(shard.metadata.shard_offsets[1:])
            elif each is not None and ranks.is_main():
                yield table, each, 0


def _row(table: Table, occupied: int, direct: bool) -> dict[str, Any]:
    ids = float(occupied) if direct else distinct(occupied, table.rows)
    known = math.isfinite(ids)
    return {
        "rows": table.rows,
        "occupied": occupied,
        "occupancy": occupied / table.rows,
        "ids": round(ids) if known else None,
        "collisions": round(ids) - occupied if known else None,
    }


def _of_ids(sharded: Sharded, name: str) -> dict[str, Any]:
    found = ids.figures(sharded, name)
    capacity = found.pop("capacity")
    share = found["ids"] / capacity
    return {"rows": capacity, "occupied": found["ids"], "occupancy": share, **found, "collisions": 0}


def _below(recipe: Recipe, table: str, train: Source) -> bool:
    """Return whether every id that meets a table lies in 0..rows-1, by the split's index."""
    users = {name: feature for name, feature in recipe.features.items() if feature.looks_up() == table}
    if not all(feature.plain for feature in users.values()):
        return False
    ranges = [train.id_range(recipe.column(name)) for name in users]
    return all(r is not None and r[0] >= 0 and r[1] < recipe.tables[table].rows for r in ranges)
