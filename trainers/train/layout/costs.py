"""What each way to shard a table costs every rank: seconds per step, and bytes of GPU and host memory.

A rank's seconds are those of moving bytes, at the rates of cluster.topology. Of each lookup the row is read, and by its
update read and written again; the embedding is sent to the rank that asked, and its gradient comes back. Of a table
behind a cache, what the cache does not hold travels to GPU memory and back as well. Pooled tables send one embedding
per row of the batch and feature instead, and those that are split by rows one from every rank that has a part, to be
added up. What a rank receives for its own rows of the batch is the same under every plan.
"""

from collections.abc import Collection, Mapping

import numpy as np

from livetrain.configs.schema import Recipe
from livetrain.modules.features.bag import pools_where_rows_lie
from livetrain.trainers.data.read.lookups import Looked, of_table
from livetrain.trainers.train import memory
from livetrain.trainers.train.layout.plan import BY_NODES, WIRE, cut, node, travels_once
from livetrain.trainers.train.layout.search import Piece, Way

GIGA = 1024**3
USABLE = 0.85  # of a memory; the rest is for what libraries hold, and for what lies between what is held


class Costs:
    """What the tables of a run cost its ranks.

    Args:
        recipe: the run.
        world: number of ranks.
        device: their type, cpu or cuda.
        lookups: what is known of the features' ids; half of the longest list and rows alike where nothing is.
    """

    def __init__(self, recipe: Recipe, world: int, device: str, lookups: Mapping[str, Looked] | None = None) -> None:
        gpu = device == "cuda"
        self.recipe, self.world, self.device, self.gpu = recipe, world, device, gpu
        self.topology, self.tables = recipe.cluster.topology, recipe.tables
        self.rows = recipe.data.batch_size * (recipe.data.candidates or 1)
        self.users = {name: of_table(recipe, name, lookups) for name in self.tables}
        local = self.local = node(self.topology, world)
        inside, outside = self.topology.intra_gb_s * 1e9, self.topology.inter_gb_s * 1e9
        # Seconds of a byte that goes to all ranks alike; or in two steps, to those of the node and then to the nodes.
        self.flat = (local - 1) / world / inside + (world - local) / world / outside
        self.stepped = (local - 1) / local / inside + (world - local) / world / local / outside
        self.memory = (self.topology.hbm_gb_s if gpu else self.topology.ddr_gb_s) * 1e9
        whole = [name for name, table in self.tables.items() if table.sharding == "data_parallel"]
        self.besides = memory.besides(recipe, world, gpu, whole, lookups)

    def room(self, copied: bool) -> np.ndarray:
        """Return (2,) the bytes of a rank's GPU and host that are left to its sharded tables.

        Args:
            copied: whether the host keeps room for the copies that checkpoints are written from.
        """
        whole = np.array([self.topology.hbm_gb if self.gpu else 0.0, self.topology.ddr_gb]) * GIGA * USABLE
        return whole - _taken(self.besides, copied)

    def lookups(self, name: str) -> float:
        """Return how many rows of a table are looked up per step, by all ranks."""
        return self.rows * sum(one.mean for one in self.users[name])

    def share(self, name: str, blocks: int) -> np.ndarray:
        """Return (blocks,) the part of a table's lookups that falls into each of so many blocks of its rows."""
        table, means = self.tables[name], sum(one.mean for one in self.users[name])
        if not means:
            return np.full(blocks, 1 / blocks)
        once = travels_once(self.recipe, name, self.world, self.device)
        out = np.zeros(blocks)
        for one in self.users[name]:
            among = max(one.mean * self.rows / self.world, 1.0) if once else 1.0
            out += one.mean / means * one.blocks(table.rows, table.hash == "modulo", blocks, among)
        return out

    def ways(self, name: str, cached: bool, copied: bool) -> list[Way]:
        """Return how a table may be laid, the way that takes the fewest ranks first.

        Args:
            name: the table's.
            cached: whether it lies on the host, behind a GPU cache.
            copied: as of `room`.
        """
        return [self._way(name, sharding, cached, copied) for sharding in self._allowed(name)]

    def _allowed(self, name: str) -> list[str]:
        if self.tables[name].sharding != "auto":
            return [self.tables[name].sharding]
        # By columns, and whole on every rank, are never chosen unasked here: see trainers.train.replication.
        found = ["table_wise", "row_wise"] if self.world > 1 else ["table_wise"]
        if 1 < self.local < self.world and pools_where_rows_lie(self.recipe, name):
            found.append("table_row_wise")
        return found

    def _way(self, name: str, sharding: str, cached: bool, copied: bool) -> Way:
        table = self.tables[name]
        rows, columns = cut(table, sharding, self.topology, self.world)
        blocks = {"row_wise": self.world, "table_row_wise": self.local, "grid": self.local}.get(sharding, 1)
        held = np.clip(table.rows - rows * np.arange(blocks), 0, rows).tolist()
        sizes = {n: _taken(memory.of_shard(self.recipe, name, n, columns, self.gpu, cached), copied) for n in {*held}}
        piece = Piece(self._load(name, sharding, blocks, columns, cached), np.array([sizes[n] for n in held]))
        pooled = pools_where_rows_lie(self.recipe, name)
        return Way(sharding, [piece] * (table.dim // columns), f"{table.dim} {pooled} {sharding}")

    def _load(self, name: str, sharding: str, blocks: int, columns: int, cached: bool) -> np.ndarray:
        """Return the seconds (blocks,) per step of the shards of some columns."""
        table, wire = self.tables[name], WIRE[self.recipe.cluster.quantize_comms]
        looked = self.lookups(name) * self.share(name, blocks)
        size = columns * memory.ELEMENT[table.dtype]
        load = 3 * size * looked / self.memory
        if cached:
            load += 2 * size * looked * (1 - table.cache) / (self.topology.ddr_gb_s * 1e9)
        if not pools_where_rows_lie(self.recipe, name):
            return load + (8 + 2 * wire * columns) * looked * self.flat
        sent = 2 * wire * columns * self.rows * len(self.users[name])
        return load + sent * (self.stepped if sharding in BY_NODES else self.flat)


def _taken(parts: Mapping[str, Mapping[str, int]], copied: bool) -> np.ndarray:
    skipped: Collection[str] = () if copied else ("checkpoint copy",)
    return np.array(
        [float(sum(size for kind, size in parts[where].items() if kind not in skipped)) for where in ("gpu", "host")]
    )
