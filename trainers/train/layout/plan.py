"""A plan: of every sharded table how it is sharded, where its rows lie, and the rank of each shard."""

from dataclasses import dataclass
from typing import Any

from livetrain.configs.schema import Recipe, Table, Topology
from livetrain.configs.schema.table import POOLED_ALONE
from livetrain.modules.features.bag import pools_where_rows_lie

CACHED = "fused_uvm_caching"  # torchrec's kernel of tables in host memory behind a GPU cache
BY_NODES = POOLED_ALONE  # these add up within a node what they send to other nodes
WIRE = {"none": 4, "fp16": 2, "bf16": 2}  # bytes of a number on its way, by cluster.quantize_comms


@dataclass(frozen=True)
class Place:
    """Where a table lies.

    Args:
        sharding: as recipes name it.
        kernel: torchrec's: fused, or `CACHED`.
        ranks: of each shard; of those of other columns one after the other.
    """

    sharding: str
    kernel: str
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Where the sharded tables of a run lie; every other table lies whole on every rank.

    Args:
        world: number of ranks.
        device: their type, cpu or cuda.
        tables: by name.
    """

    world: int
    device: str
    tables: dict[str, Place]

    @property
    def gpu(self) -> bool:
        """Whether the ranks have GPUs."""
        return self.device == "cuda"

    @property
    def cached(self) -> bool:
        """Whether a table lies in host memory behind a GPU cache."""
        return any(place.kernel == CACHED for place in self.tables.values())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON.

        Example:
            >>> plan = Plan(2, "cpu", {"user": Place("row_wise", "fused", (0, 1))})
            >>> plan.to_dict()["tables"]
            {'user': ['row_wise', 'fused', [[0, 1]]]}
            >>> Plan.from_dict(plan.to_dict()) == plan
            True
        """
        tables = {name: [at.sharding, at.kernel, _runs(at.ranks)] for name, at in self.tables.items()}
        return {"world": self.world, "device": self.device, "tables": tables}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Plan":
        """Undo `to_dict`."""
        tables = {
            name: Place(how, kernel, tuple(rank for first, last in runs for rank in range(first, last + 1)))
            for name, (how, kernel, runs) in values["tables"].items()
        }
        return cls(values["world"], values["device"], tables)


def _runs(ranks: tuple[int, ...]) -> list[list[int]]:
    """Return ranks as runs of consecutive ones, the first and the last of each."""
    out: list[list[int]] = []
    for rank in ranks:
        if out and out[-1][1] == rank - 1:
            out[-1][1] = rank
        else:
            out.append([rank, rank])
    return out


@dataclass(frozen=True)
class Shard:
    """A part of a table: some columns of consecutive rows, maybe of none."""

    rank: int
    row: int
    rows: int
    column: int
    columns: int


def node(topology: Topology, world: int) -> int:
    """Return how many ranks a node has; all ranks count as one node where nodes would differ in size."""
    size = min(topology.workers_per_node, world)
    return world if world % size else size


def shards(table: Table, place: Place, topology: Topology, world: int) -> list[Shard]:
    """Return a table's shards, in the order of the place's ranks.

    Args:
        table: the recipe's.
        place: where it lies.
        topology: of the machines.
        world: number of ranks.
    """
    size, columns = cut(table, place.sharding, topology, world)
    wide = range(0, table.dim, columns)
    starts = [min(size * block, table.rows) for block in range(len(place.ranks) // len(wide))]
    corners = [(row, column) for column in wide for row in starts]
    return [
        Shard(rank, row, min(size, table.rows - row), column, columns)
        for rank, (row, column) in zip(place.ranks, corners, strict=True)
    ]


def cut(table: Table, sharding: str, topology: Topology, world: int) -> tuple[int, int]:
    """Return the rows and the columns of a table's shards, of which the last ones may have fewer rows.

    Args:
        table: the recipe's.
        sharding: how.
        topology: of the machines.
        world: number of ranks.

    Example:
        >>> table = Table(rows=10, dim=16)
        >>> [cut(table, how, Topology(workers_per_node=2), 4) for how in ("table_wise", "row_wise", "grid")]
        [(10, 16), (3, 16), (5, 8)]
    """
    local = node(topology, world)
    blocks = {"row_wise": world, "table_row_wise": local, "grid": local}.get(sharding, 1)
    pieces = {"column_wise": world, "grid": world // local}.get(sharding, 1)
    # As many as take part and divide the columns; fused kernels read four numbers at a time.
    pieces = max(n for n in range(1, min(pieces, table.dim // 4) + 1) if table.dim % (4 * n) == 0)
    return -(-table.rows // blocks), table.dim // pieces


def travels_once(recipe: Recipe, table: str, world: int, device: str) -> bool:
    """Return whether an id of a table that a rank looks up several times in a batch is asked for once.

    It is where fbgemm finds ids that repeat (see `sharding._finds_repeated`) and no sums are sent in place of rows.
    """
    return device == "cuda" and world > 1 and not pools_where_rows_lie(recipe, table)
