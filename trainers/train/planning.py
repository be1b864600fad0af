"""Where the tables' rows lie: on which ranks, and in GPU memory or in host memory behind a GPU cache.

torchrec's planner shards; what lies behind a cache is decided here, for its estimator rates a prefetched cache equal to
GPU memory and lets Python's string hash break the tie. `memory: auto` means all tables in GPU memory where a plan for
that fits, and otherwise the largest behind the cache until one does. A plan is a function of recipe, ranks and device
type alone: the same in every process, and in the doctor's as in the run's.
"""

import contextlib
import os
from collections.abc import Collection, Iterator
from typing import Any

import torch.distributed as dist
from torch import nn
from torchrec.distributed import comm
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.types import PlannerError, ShardingOption
from torchrec.distributed.types import BoundsCheckMode, CacheParams, ShardingPlan

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe, Table
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train.memory import ELEMENT
from livetrain.trainers.train.replication import expected_ids

_THEIRS = {"grid": "grid_shard"}  # what torchrec calls a sharding
CACHED = "fused_uvm_caching"
_GIGA = 1024**3
_SHOWN = 12  # tables that a line for people names


def make(recipe: Recipe, world: int, device: str, step: nn.Module, sharders: list) -> ShardingPlan:
    """Return the plan of `world` ranks.

    Args:
        recipe: the run.
        world: number of ranks.
        device: the ranks' device type, cpu or cuda.
        step: holds the tables, on any device.
        sharders: for its table collections.

    Raises:
        BadInput: the tables do not fit the machines of cluster.topology.
    """
    failed = None
    for behind in _choices(recipe, world, device):
        try:
            return _planner(recipe, world, device, behind).plan(step, sharders)
        except PlannerError as error:
            failed = error
    reason = str(failed).strip().splitlines()[0]
    raise BadInput(
        f"tables: no sharding plan fits {world} workers of cluster.topology ({reason}); "
        "add workers, lower rows or dim, or correct hbm_gb and ddr_gb"
    ) from failed


def agree(recipe: Recipe, device: str, step: nn.Module, sharders: list) -> ShardingPlan:
    """Return the plan that rank 0 makes for the default process group, on every rank. Collective.

    Raises:
        BadInput: on every rank, where the tables do not fit.
    """
    made = None
    if ranks.is_main():
        try:
            made = make(recipe, dist.get_world_size(), device, step, sharders)
        except BadInput as error:
            made = error
    made = ranks.from_main(made)
    if isinstance(made, BadInput):
        raise made
    return made


def _choices(recipe: Recipe, world: int, device: str) -> Iterator[set[str]]:
    """Yield the sets of tables to try behind the cache, the smallest first; on CPUs there is no cache."""
    if device != "cuda":
        yield set()
        return
    tables = {name: table for name, table in recipe.tables.items() if table.sharding != "data_parallel"}
    asked = {name for name, table in tables.items() if table.memory == "host"}
    free = [name for name, table in tables.items() if table.memory == "auto"]
    free.sort(key=lambda name: (-_size(tables[name]), name))
    room = world * recipe.cluster.topology.hbm_gb * _GIGA
    for count in range(len(free) + 1):
        behind = asked | set(free[:count])
        # Planning takes a minute at a thousand ranks, so what cannot fit by its weights alone is not tried.
        if count == len(free) or sum(_size(t) for name, t in tables.items() if name not in behind) <= room:
            yield behind


def _size(table: Table) -> int:
    return table.rows * table.dim * ELEMENT[table.dtype]


def topology(recipe: Recipe, world: int, device: str) -> Topology:
    """Return the planner's view of cluster.topology; bandwidths in bytes per millisecond as torchrec counts them."""
    t = recipe.cluster.topology
    per_ms = 1e9 / 1e3
    return Topology(
        world_size=world,
        compute_device=device,
        hbm_cap=int(t.hbm_gb * _GIGA),
        ddr_cap=int(t.ddr_gb * _GIGA),
        local_world_size=node(recipe, world),
        hbm_mem_bw=t.hbm_gb_s * per_ms,
        ddr_mem_bw=t.ddr_gb_s * per_ms,
        intra_host_bw=t.intra_gb_s * per_ms,
        inter_host_bw=t.inter_gb_s * per_ms,
    )


def node(recipe: Recipe, world: int) -> int:
    """Return how many ranks are a node to plans and to what shards by them; all are one where nodes differ in size."""
    size = min(recipe.cluster.topology.workers_per_node, world)
    return world if world % size else size


@contextlib.contextmanager
def nodes(recipe: Recipe, world: int) -> Iterator[None]:
    """Let torchrec group ranks as the plan does: it takes a node's size from the environment, and keeps its groups."""
    name, comm._INTRA_PG, comm._CROSS_PG = "LOCAL_WORLD_SIZE", None, None
    before = os.environ.get(name)
    os.environ[name] = str(node(recipe, world))
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def constraints(recipe: Recipe, world: int, behind: Collection[str] = ()) -> dict[str, ParameterConstraints]:
    """Return each sharded table's allowed sharding, its one kernel, and its expected ids per row, for the planner.

    Args:
        recipe: declares the tables.
        world: number of ranks; one alone has nobody to share a table's rows with.
        behind: the tables that lie in host memory behind a GPU cache.
    """
    free, out = ["table_wise", "row_wise"] if world > 1 else ["table_wise"], {}
    for name, table in recipe.tables.items():
        if table.sharding == "data_parallel":
            continue
        # Column-wise and data-parallel are never chosen unasked: both may change what is learned.
        allowed = free if table.sharding == "auto" else [_THEIRS.get(table.sharding, table.sharding)]
        users = [f for f in recipe.features.values() if f.looks_up() == name]
        lengths = [expected_ids(f) for f in users]
        out[name] = ParameterConstraints(
            sharding_types=allowed,
            compute_kernels=[CACHED if name in behind else "fused"],
            # All or none: torchrec complains of tables that are looked up beside prefetched ones and are not told so.
            cache_params=CacheParams(load_factor=table.cache, prefetch_pipeline=True) if behind else None,
            pooling_factors=lengths,
            bounds_check_mode=BoundsCheckMode.NONE,
        )
    return out


class _Enumerator(EmbeddingEnumerator):
    """Lists a table's options in one order. torchrec's own order is that of a set of strings, which decides ties."""

    def enumerate(self, *args: Any, **kwargs: Any) -> list[ShardingOption]:
        options = super().enumerate(*args, **kwargs)
        return sorted(options, key=lambda option: (option.fqn, option.sharding_type, option.compute_kernel))


def _planner(recipe: Recipe, world: int, device: str, behind: Collection[str]) -> EmbeddingShardingPlanner:
    machines, allowed = topology(recipe, world, device), constraints(recipe, world, behind)
    batch = recipe.data.batch_size // world
    return EmbeddingShardingPlanner(
        topology=machines,
        batch_size=batch,
        enumerator=_Enumerator(machines, batch, allowed),
        constraints=allowed,
        debug=False,
        stats=[],
    )


def cached(plan: ShardingPlan) -> bool:
    """Return whether a table lies in host memory behind a GPU cache."""
    return any(how.compute_kernel == CACHED for tables in plan.plan.values() for how in tables.values())


def placed(recipe: Recipe, plan: ShardingPlan, world: int) -> dict[str, dict[str, Any]]:
    """Return where every table lies, for people, results and checkpoints.

    Returns:
        {table: {sharding, kernel, ranks, rows, bytes}}: the ranks that hold a part of it, and the rows and bytes of
        weights that each of those holds.
    """
    out = {}
    for tables in plan.plan.values():
        for name, how in tables.items():
            rows, taken = dict.fromkeys(range(world), 0), dict.fromkeys(range(world), 0)
            for shard in how.sharding_spec.shards:
                rank, (count, dim) = shard.placement.rank(), shard.shard_sizes
                rows[rank] = max(rows[rank], count)  # pieces of columns are of the same rows
                taken[rank] += count * dim * ELEMENT[recipe.tables[name].dtype]
            on = [rank for rank in range(world) if taken[rank]]
            out[name] = {
                "sharding": how.sharding_type,
                "kernel": how.compute_kernel,
                "ranks": on,
                "rows": [rows[rank] for rank in on],
                "bytes": [taken[rank] for rank in on],
            }
    for name, table in recipe.tables.items():
        if name not in out:  # replicated
            everywhere = {"rows": [table.rows] * world, "bytes": [_size(table)] * world}
            out[name] = {"sharding": "data_parallel", "kernel": "dense", "ranks": [*range(world)], **everywhere}
    return out


def in_words(where: dict[str, dict[str, Any]]) -> str:
    """Return a line that says where tables lie, from `placed`."""
    said = []
    for name, table in list(where.items())[:_SHOWN]:
        on = table["ranks"]
        ranks_ = f"rank {on[0]}" if len(on) == 1 else f"{len(on)} ranks"
        behind = " in host memory behind a GPU cache" if table["kernel"] == CACHED else ""
        most = f"{max(table['rows']):,} rows and {max(table['bytes']) / 2**20:,.1f} MiB per rank"
        said.append(f"{name} {table['sharding']} on {ranks_}{behind} ({table['kernel']}, up to {most})")
    more = f" and {len(where) - _SHOWN} more" if len(where) > _SHOWN else ""
    return ", ".join(said) + more if said else "there are no tables"
