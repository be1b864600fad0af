"""Where the tables' rows lie: on which ranks, and in GPU memory or in host memory behind a GPU cache.

`memory: auto` means all tables in GPU memory where a plan for that fits, and otherwise the largest behind the cache
until one does. Of what fits, the busiest rank has least to do (see `layout`). A plan is a function of the recipe, what
is known of its data's ids, the number of ranks and their device type: the same in every process, and in the doctor's as
in the run's. A run keeps its plans in its folder, one for each number of ranks and device type that it had.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec, ShardMetadata
from torchrec.distributed.sharding_plan import placement
from torchrec.distributed.types import (
    BoundsCheckMode,
    CacheParams,
    EmbeddingModuleShardingPlan,
    ParameterSharding,
    ShardingPlan,
)

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.trainers.data.read.lookups import Looked
from livetrain.trainers.runtime import ranks
from livetrain.trainers.runtime.manifest import write_json
from livetrain.trainers.train.layout.costs import Costs
from livetrain.trainers.train.layout.plan import CACHED, Place, Plan, node, shards
from livetrain.trainers.train.layout.refusal import refusal
from livetrain.trainers.train.layout.search import lay
from livetrain.trainers.train.memory import ELEMENT, of_rows
from livetrain.trainers.train.replication import settled

NAME = "plan.json"  # in a run's folder
_TORCHREC = {"grid": "grid_shard"}  # names of shardings that differ
_SHOWN = 12  # tables that a line for people names

Lookups = Mapping[str, Looked]
Planner = Callable[[Recipe, int, str], Plan]
"""Makes the plan of a recipe for some ranks of a device type."""


def make(recipe: Recipe, world: int, device: str, lookups: Lookups | None = None) -> Plan:
    """Return the plan of `world` ranks; it takes no rank, no weights and no GPU.

    Args:
        recipe: the run; cluster.topology says what its machines are.
        world: number of ranks.
        device: the ranks' device type, cpu or cuda.
        lookups: what is known of the features' ids.

    Raises:
        DoesNotFit: the tables do not fit the machines of cluster.topology.
    """
    plan = _plan(recipe, world, device, lookups)
    if plan is None:
        raise refusal(Costs(settled(recipe, world), world, device, lookups), _fits(device, lookups))
    return plan


def _fits(device: str, lookups: Lookups | None) -> Callable[[Recipe, int], bool]:
    return lambda recipe, world: _plan(recipe, world, device, lookups) is not None


def _plan(recipe: Recipe, world: int, device: str, lookups: Lookups | None) -> Plan | None:
    recipe = settled(recipe, world)
    costs = Costs(recipe, world, device, lookups)
    sharded = [name for name, table in recipe.tables.items() if table.sharding != "data_parallel"]
    for behind in _choices(costs):
        for copied in (True, False):  # where a checkpoint finds no room for its copy, training waits for it
            ways = {name: costs.ways(name, name in behind, copied) for name in sharded}
            room = np.tile(costs.room(copied), (world, 1))
            layout = lay(ways, room) if (room >= 0).all() else None
            if layout is not None:
                kernels = {name: CACHED if name in behind else "fused" for name in sharded}
                places = {n: Place(at.way.sharding, kernels[n], at.ranks) for n, at in layout.tables.items()}
                return Plan(world, device, places)
    return None


def _choices(costs: Costs) -> Iterator[set[str]]:
    """Yield the sets of tables to try behind the cache, the smallest first; on CPUs there is no cache."""
    if not costs.gpu:
        yield set()
        return
    recipe = costs.recipe
    tables = {name: table for name, table in recipe.tables.items() if table.sharding != "data_parallel"}
    asked = {name for name, table in tables.items() if table.memory == "host"}
    free = [name for name, table in tables.items() if table.memory == "auto"]
    free.sort(key=lambda name: (-_weights(recipe, name), name))
    held = {name: sum(of_rows(recipe, name, table.rows, table.dim)) for name, table in tables.items()}
    cache = {name: table.cache * _weights(recipe, name) for name, table in tables.items()}
    room = costs.world * float(costs.room(copied=False)[0])
    for count in range(len(free) + 1):
        behind = asked | set(free[:count])
        # What cannot fit by its size alone is not tried.
        if count == len(free) or sum(cache[n] if n in behind else size for n, size in held.items()) <= room:
            yield behind


def _weights(recipe: Recipe, name: str) -> int:
    table = recipe.tables[name]
    return of_rows(recipe, name, table.rows, table.dim)[0]


def of_run(run: Path, lookups: Callable[[], Lookups] | None, recipe: Recipe, world: int, device: str) -> Plan:
    """Return a run's plan: that of its folder if there is one for such ranks, or else a new one, which is kept there.

    Args:
        run: its folder.
        lookups: returns what is known of the features' ids, for a new plan. None where nothing is to be kept, as by an
            evaluation, which does not see the data that the run trains on.
        recipe, world, device: as of `make`.

    Raises:
        DoesNotFit: as of `make`.
    """
    path, key = run / NAME, _key(settled(recipe, world), world, device)
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if key in kept:
        return Plan.from_dict(kept[key])
    if lookups is None:
        return make(recipe, world, device)
    plan = make(recipe, world, device, lookups())
    write_json(path, kept | {key: plan.to_dict()})
    return plan


def _key(recipe: Recipe, world: int, device: str) -> str:
    """Return a digest of what a plan is for; what was measured of the data is no part of it, so that a run goes on."""
    parts = recipe.model_dump(
        mode="json",
        include={
            "features": True,
            "tables": True,
            "tasks": True,
            "model": True,
            "optimizers": True,
            "train": {"accumulate"},
            "data": {"batch_size", "candidates", "prefetch", "shuffle_gb"},
            "cluster": {"topology", "quantize_comms"},
        },
    )
    return xxhash.xxh128_hexdigest(json.dumps([parts, world, device], sort_keys=True).encode())


def agree(planner: Planner, recipe: Recipe, device: str) -> Plan:
    """Return the plan that rank 0 has or makes for the default process group, on every rank. Collective.

    Raises:
        BadInput: on every rank, where the tables do not fit.
        RuntimeError: on every rank, where rank 0 failed otherwise, as on a full disk.
    """
    made: Plan | Exception | None = None
    if ranks.is_main():
        try:
            made = planner(recipe, ranks.world(), device)
        except BadInput as error:
            made = error
        except Exception as error:  # which the others would wait for in vain; it may be none that can be sent
            made = RuntimeError(f"rank 0 could not plan the tables: {type(error).__name__}: {error}")
            made.__cause__ = error
    made = ranks.from_main(made)
    if isinstance(made, Exception):
        raise made
    assert made is not None
    return made


def for_torchrec(recipe: Recipe, plan: Plan, collections: Mapping[str, str]) -> ShardingPlan:
    """Return a plan as torchrec takes it.

    Args:
        recipe: the run.
        plan: its own.
        collections: the path of each sharded table's collection in the module that is sharded.
    """
    local = node(recipe.cluster.topology, plan.world)
    out: dict[str, EmbeddingModuleShardingPlan] = {path: EmbeddingModuleShardingPlan() for path in collections.values()}
    for name, path in collections.items():
        table, place = recipe.tables[name], plan.tables[name]
        parts = [
            ShardMetadata(
                shard_sizes=[part.rows, part.columns],
                shard_offsets=[part.row, part.column],
                placement=placement(plan.device, part.rank, local),
            )
            for part in shards(table, place, recipe.cluster.topology, plan.world)
        ]
        out[path][name] = ParameterSharding(
            sharding_type=_TORCHREC.get(place.sharding, place.sharding),
            compute_kernel=place.kernel,
            ranks=list(place.ranks),
            sharding_spec=EnumerableShardingSpec(parts),
            # All or none: torchrec complains of tables that are looked up beside prefetched ones and are not told so.
            cache_params=CacheParams(load_factor=table.cache, prefetch_pipeline=True) if plan.cached else None,
            bounds_check_mode=BoundsCheckMode.NONE,
        )
    return ShardingPlan(out)


def served(recipe: Recipe, plan: Plan, lookups: Lookups | None = None) -> np.ndarray:
    """Return (world,) the bytes of sharded tables' rows that each rank looks up per step, for all ranks."""
    costs, out = Costs(settled(recipe, plan.world), plan.world, plan.device, lookups), np.zeros(plan.world)
    for name, place in plan.tables.items():
        parts = shards(recipe.tables[name], place, recipe.cluster.topology, plan.world)
        high = sum(part.column == 0 for part in parts)
        looked = costs.lookups(name) * costs.share(name, high)
        for number, part in enumerate(parts):
            out[part.rank] += looked[number % high] * part.columns * ELEMENT[recipe.tables[name].dtype]
    return out


def placed(recipe: Recipe, plan: Plan) -> dict[str, dict[str, Any]]:
    """Return where every table lies, for people, results and checkpoints.

    Returns:
        {table: {sharding, kernel, ranks, rows, bytes}}: the ranks that hold a part of it, and the rows and bytes of
        weights that each of those holds.
    """
    out = {}
    for name, place in plan.tables.items():
        table = recipe.tables[name]
        rows, taken = dict.fromkeys(range(plan.world), 0), dict.fromkeys(range(plan.world), 0)
        for part in shards(table, place, recipe.cluster.topology, plan.world):
            rows[part.rank] = max(rows[part.rank], part.rows)  # pieces of columns are of the same rows
            taken[part.rank] += part.rows * part.columns * ELEMENT[table.dtype]
        on = [rank for rank in range(plan.world) if taken[rank]]
        out[name] = {
            "sharding": place.sharding,
            "kernel": place.kernel,
            "ranks": on,
            "rows": [rows[rank] for rank in on],
            "bytes": [taken[rank] for rank in on],
        }
    for name, table in recipe.tables.items():
        if name not in plan.tables:
            everywhere = {"rows": [table.rows] * plan.world, "bytes": [_weights(recipe, name)] * plan.world}
            out[name] = {"sharding": "data_parallel", "kernel": "dense", "ranks": [*range(plan.world)], **everywhere}
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
