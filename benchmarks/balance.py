"""Which rank serves how much: bytes of rows that each rank looks up for all ranks, counted on a recipe's own ids.

    python benchmarks/balance.py din_ml1m --ranks 8 64

Ids are those of --rows rows of the training split, hashed as the model does, lists cut as the reader does. The plan is
the one that a run of so many ranks makes; nothing is trained. A replicated table's rows are served by each rank to
itself, so every rank serves the same of them. "Balance" is the hottest rank over the mean; 1 is best.
"""

import argparse
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import torch

from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe
from livetrain.modules.tables.hashing import row
from livetrain.trainers.train import replication, sharding
from livetrain.trainers.train.layout.plan import shards


def lookups(recipe: Recipe, rows: int) -> dict[str, torch.Tensor]:
    """Return how often each row of each table is looked up in the first rows of the training split."""
    read = {name for name, feature in recipe.features.items() if feature.looks_up()}
    columns = {name: recipe.column(name) for name in read}
    data = ds.dataset(f"{recipe.data.path}/train").head(rows, columns=[*{*columns.values()}])
    found = {name: torch.zeros(table.rows, dtype=torch.long) for name, table in recipe.tables.items()}
    for name in sorted(read):
        table = recipe.features[name].looks_up()
        ids = torch.from_numpy(_ids(data[columns[name]].combine_chunks(), recipe.features[name].limit))
        places = row(ids, recipe.tables[table].rows, recipe.tables[table].hash == "modulo")
        found[table] += torch.bincount(places, minlength=recipe.tables[table].rows)
    return found


def _ids(column: pa.Array, limit: int) -> np.ndarray:
    """Return the ids of a column, of lists the last `limit` of each."""
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return column.drop_null().to_numpy(zero_copy_only=False).astype(np.int64)
    kept = [part[-limit:] for part in column.to_numpy(zero_copy_only=False) if part is not None]
    return np.concatenate(kept).astype(np.int64)


def served(recipe: Recipe, world: int, found: dict[str, torch.Tensor]) -> np.ndarray:
    """Return the bytes that each rank serves of the rows looked up."""
    plan = sharding.dry_plan(recipe, world, "cuda")
    out = np.zeros(world)
    for name, table in recipe.tables.items():
        if name not in plan.tables:
            out += float(found[name].sum()) * table.dim * 4 / world
            continue
        for part in shards(table, plan.tables[name], recipe.cluster.topology, world):
            out[part.rank] += float(found[name][part.row : part.row + part.rows].sum()) * part.columns * 4
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--rows", type=int, default=200_000)
    given = parser.parse_args()
    print("| recipe | ranks | replicated | balance, none replicated | balance |\n| --- | --- | --- | --- | --- |")
    for name in given.recipes:
        recipe = load_recipe(f"configs/recipes/{name}.yaml")
        found = lookups(recipe, given.rows)
        for world in given.ranks:
            with mock.patch.object(replication, "replicated", return_value=frozenset()):
                before = served(recipe, world, found)
            after = served(recipe, world, found)
            count = f"{len(replication.replicated(recipe, world))} of {len(recipe.tables)}"
            told = (f"{load.max() / load.mean():.2f}" for load in (before, after))
            print(f"| {name} | {world} | {count} | {' | '.join(told)} |", flush=True)


if __name__ == "__main__":
    main()
