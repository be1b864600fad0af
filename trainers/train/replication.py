"""Which tables every rank holds whole: those whose gradient is less to send than what their ids and rows would be.

Of a table of n rows and d columns, whose rows a rank's part of a batch looks up k times, per step and rank, in bytes
and each but for the factor (R - 1) / R of R ranks:

    replicated:  2 * 4 n d            its gradient, there and back, in the all-reduce that the dense part has anyway
    sharded:     8 k + 2 w v d        its ids, then v vectors of w bytes per number, and their gradients back

with v = k, but one per feature and row of the batch where the table is pooled where its rows lie. A table of few rows
has one more reason: its hottest row is a large part of it, so a rank that serves it is asked more than the others. So a
table of at most `SMALL` bytes is replicated whatever the batch: at 50 GB/s that is sent in less time than a message
takes to arrive.

What is learned is the same (see `TableOptimizer.replica`). One rank has nobody to send to and keeps its fused kernels.
"""

from livetrain.configs.schema import Recipe
from livetrain.modules.features.bag import pools_where_rows_lie
from livetrain.modules.optimizers import table_optimizer
from livetrain.trainers.data.read.lookups import of_table
from livetrain.trainers.train.layout.plan import WIRE

SMALL = 1 << 16  # bytes


def replicated(recipe: Recipe, world: int) -> frozenset[str]:
    """Return the tables that every rank holds whole: those that say so, and of those that say nothing the small ones.

    Args:
        recipe: the run.
        world: number of ranks.

    Example:
        >>> from livetrain import load_recipe
        >>> recipe = load_recipe("configs/recipes/din_ml1m.yaml")
        >>> sorted(replicated(recipe, 64))
        ['age', 'gender', 'hour', 'occupation', 'rating', 'weekday']
        >>> sorted(replicated(recipe, 1))
        []
    """
    asked = {name for name, table in recipe.tables.items() if table.sharding == "data_parallel"}
    free = [name for name, table in recipe.tables.items() if table.sharding == "auto" and world > 1]
    return frozenset(asked.union(name for name in free if _cheaper(recipe, name, world)))


def settled(recipe: Recipe, world: int) -> Recipe:
    """Return a recipe whose replicated tables all say so (sharding: data_parallel), for `world` ranks."""
    whole = replicated(recipe, world)
    tables = {
        name: table.model_copy(update={"sharding": "data_parallel"}) if name in whole else table
        for name, table in recipe.tables.items()
    }
    return recipe.model_copy(update={"tables": tables})


def exchanged(recipe: Recipe, table: str, world: int) -> float:
    """Return the bytes that a rank sends for a sharded table in a step, but for the factor (R - 1) / R."""
    users = of_table(recipe, table)  # as assumed: where a table lies must not hang on what was measured of the data
    batch = recipe.data.batch_size / world
    ids = batch * sum(one.mean for one in users)
    vectors = batch * len(users) if pools_where_rows_lie(recipe, table) else ids
    return 8 * ids + 2 * WIRE[recipe.cluster.quantize_comms] * vectors * recipe.tables[table].dim


def _cheaper(recipe: Recipe, name: str, world: int) -> bool:
    table = recipe.tables[name]
    if table.memory == "host" or table.dtype != "float32" or not table_optimizer(recipe, name).replicated:
        return False  # gradients of float16 tables would be added up in float16
    size = 4 * table.rows * table.dim
    return size <= SMALL or 2 * size <= exchanged(recipe, name, world)
