"""What the sharded tables of a plan take: lookups of every shard, and the bytes that each moves.

Where ids that repeat travel once (see `layout.plan.travels_once`) a rank asks for a row once, however often its batch
has it: what counts are the different rows of each rank's batch. An id that is a share s of n draws is among them with a
chance of 1 - (1 - s)^n.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from livetrain.configs.schema import Recipe
from livetrain.modules.features.bag import pools_where_rows_lie
from livetrain.modules.optimizers import table_optimizer
from livetrain.modules.tables.hashing import row
from livetrain.trainers.data.read.lookups import Looked, of_table
from livetrain.trainers.train.layout.plan import BY_NODES, CACHED, WIRE, Plan, shards, travels_once
from livetrain.trainers.train.memory import ELEMENT

ID = 8  # bytes


@dataclass(frozen=True, eq=False)
class Loads:
    """The S shards of all tables; all arrays are (S,), of a step of all ranks together.

    Attributes:
        world: number of ranks.
        table: number of the shard's table.
        piece: number of the shard among those that hold other rows of the same columns.
        rank: that serves the shard.
        lookups: expected number of rows that are looked up in it.
        touched: expected number of different rows among them, which are updated once each.
        read: bytes of memory that a lookup's forward pass reads and writes.
        updated: those of its gradient in the backward pass.
        written: those of the update of a row.
        missed: bytes that a lookup moves between host and GPU, where a cache does not hold the row.
        sent: bytes of embedding that a lookup sends to the rank that asked, and that come back as its gradient.
        pooled: bytes that are sent whatever the lookups, where embeddings are pooled before they are sent.
        stepped: whether those are added up within the node first, and only then sent to other nodes.
        groups: of tables that are looked up and exchanged together.
    """

    world: int
    table: np.ndarray
    piece: np.ndarray
    rank: np.ndarray
    lookups: np.ndarray
    touched: np.ndarray
    read: np.ndarray
    updated: np.ndarray
    written: np.ndarray
    missed: np.ndarray
    sent: np.ndarray
    pooled: np.ndarray
    stepped: np.ndarray
    groups: int

    def by_rank(self, each: np.ndarray) -> np.ndarray:
        """Return (R,) the sums of a figure of every shard, (S,), over each rank's."""
        return np.bincount(self.rank, weights=each, minlength=self.world)


def loads(recipe: Recipe, plan: Plan, lookups: Mapping[str, Looked] | None = None) -> Loads:
    """Return what a plan's tables take of its ranks in a step.

    Args:
        recipe: the run, as it was planned for.
        plan: its tables'.
        lookups: what is known of the features' ids; what planning assumes where nothing is.
    """
    rows, wire = recipe.data.batch_size * (recipe.data.candidates or 1), WIRE[recipe.cluster.quantize_comms]
    columns: dict[str, list[float]] = {name: [] for name in _FIGURES}
    groups = set()
    for number, (name, place) in enumerate(plan.tables.items()):
        table, pooled = recipe.tables[name], pools_where_rows_lie(recipe, name)
        users = of_table(recipe, name, lookups)
        found = shards(table, place, recipe.cluster.topology, plan.world)
        blocks = len(found) // len({shard.column for shard in found})
        modulo = table.hash == "modulo"
        if travels_once(recipe, name, plan.world, plan.device):
            each = rows / plan.world
            own = [different(one, table.rows, modulo, blocks, each * one.mean) for one in users]
            asked = plan.world * np.sum(own, axis=0)
        else:
            asked = np.sum([rows * one.mean * one.blocks(table.rows, modulo, blocks) for one in users], axis=0)
        touched = np.sum([different(one, table.rows, modulo, blocks, rows * one.mean) for one in users], axis=0)
        state, element = table_optimizer(recipe, name), ELEMENT[table.dtype]
        groups.add((table.dim, pooled, place.sharding))
        for at, shard in enumerate(found):
            size = shard.columns * element
            columns["table"].append(number)
            columns["piece"].append(at % blocks)
            columns["rank"].append(shard.rank)
            columns["lookups"].append(float(asked[at % blocks]))
            columns["touched"].append(float(touched[at % blocks]))
            columns["read"].append(size + 4 * shard.columns)
            columns["updated"].append(4 * shard.columns)
            columns["written"].append(2 * size + 2 * state.state_bytes(shard.columns))
            columns["missed"].append(2 * size * (1 - table.cache) if place.kernel == CACHED else 0)
            columns["sent"].append(0 if pooled else wire * shard.columns)
            columns["pooled"].append(wire * shard.columns * rows * len(users) if pooled else 0)
            columns["stepped"].append(place.sharding in BY_NODES)
    arrays = {name: np.array(values, float) for name, values in columns.items()}
    for name in ("table", "piece", "rank"):
        arrays[name] = arrays[name].astype(int)
    return Loads(world=plan.world, groups=len(groups), **arrays)


def different(one: Looked, rows: int, modulo: bool, blocks: int, draws: float) -> np.ndarray:
    """Return how many different rows of each block of a table are expected among so many lookups.

    Args:
        one: what the ids are like.
        rows, modulo, blocks: as of `Looked.blocks`.
        draws: n.

    Returns:
        (blocks,).

    Example: four rows, one of which has half of the lookups.
        >>> different(Looked(1.0, np.array([3]), np.array([0.5])), 4, True, 2, 2.0).round(3).tolist()
        [0.469, 1.094]
    """
    size = -(-rows // blocks)
    held = np.clip(rows - size * np.arange(blocks), 0, size)
    places = row(torch.from_numpy(one.ids.copy()), rows, modulo).numpy() // size
    rest = (1 - one.share.sum()) / rows  # of every row, be it a frequent id's or not

    def met(share: np.ndarray) -> np.ndarray:
        return -np.expm1(draws * np.log1p(-np.minimum(share, 1 - 1e-12)))

    frequent = np.bincount(places, weights=met(one.share + rest), minlength=blocks)
    return frequent + (held - np.bincount(places, minlength=blocks)) * met(np.array(rest))


_FIGURES = (
    "table",
    "piece",
    "rank",
    "lookups",
    "touched",
    "read",
    "updated",
    "written",
    "missed",
    "sent",
    "pooled",
    "stepped",
)
