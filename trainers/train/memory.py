"""What a run takes of memory, told before it starts: a machine that runs out of memory tells nobody.

`needs` tells it by parts of the recipe, for all workers of one machine and without a plan; `per_rank` by kinds, for
each rank of a plan.
"""

import math
import os
import resource
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.modules.model import Model
from livetrain.modules.optimizers import dense_optimizer, table_optimizer
from livetrain.modules.tables.owner import held
from livetrain.trainers.data.read.items import read_items
from livetrain.trainers.data.read.lookups import Looked, ids_per_row
from livetrain.trainers.train.layout.plan import CACHED, Plan, shards
from livetrain.trainers.train.replication import replicated

ELEMENT = {"float32": 4, "float16": 2}  # bytes
_ON_DEVICE = 3  # batches of a pipeline that are on a GPU: computed, exchanged, copied
_ADMITTED, _WAITING = 13, 16  # bytes per row of a table of ids that every rank knows whole
_OWNED, _OWNED_WAITING = 16, 20  # and of one whose ids get rows online, on all ranks together
ROOM = 0.8  # part of a machine's free memory that the copies of a checkpoint may take


def check(recipe: Recipe, model: Model, saves: bool = True, free: int | None = None) -> str | None:
    """Refuse a run of this machine's own that its memory cannot hold. What a cluster's machines hold, they tell.

    Args:
        recipe: the run.
        model: its model, on any device.
        saves: whether it writes checkpoints.
        free: bytes; by default what this machine has free, its GPUs' memory included.

    Returns:
        In words, that checkpoints cannot be copied before they are written (see trainers.train.staging), or None.

    Raises:
        BadInput: the part that takes most is named.
    """
    if not _here(recipe):
        return None
    host = free_memory() if free is None else free
    free = _available(recipe) if free is None else free
    parts = needs(recipe, model)
    whole = sum(part.bytes for part in parts)
    if whole > free:
        most = max(parts, key=lambda part: part.bytes)
        raise BadInput(
            f"{most.key}: the run takes at least {amount(whole)} of memory, {amount(most.bytes)} of it for "
            f"{most.what}, and this machine has {amount(free)} free; {most.mend}"
        )
    left, copied = max(min(free - whole, host), 0), sum(part.copied for part in parts)
    return waits(copied, left, "this machine") if saves else None


def waits(copied: int, left: int, where: str) -> str | None:
    """Return in words that the copies of a checkpoint do not fit what is left of a machine's memory, or None."""
    if copied <= ROOM * left:
        return None
    return (
        f"training will wait while checkpoints are written: a copy takes {amount(copied)} of memory on {where}, which "
        f"has {amount(left)} left"
    )


@dataclass(frozen=True)
class Part:
    """What one part of a recipe takes of all workers together, and what of it a checkpoint's copy takes once more."""

    key: str
    bytes: int
    copied: int
    what: str
    mend: str


def needs(recipe: Recipe, model: Model) -> list[Part]:
    """Return what a run takes at the least: parameters with their optimizers' state, a copy of those for the checkpoint
    that is being written, and a step's batch with what is computed of it."""
    workers = max(recipe.cluster.least, 1)
    parts, whole = [], replicated(recipe, workers)
    for name, table in recipe.tables.items():
        weights, state = of_rows(recipe, name, table.rows, table.dim)
        size = copied = weights + state
        if name in whole:  # on every worker, with a gradient of its size
            size, copied = workers * (size + weights), workers * size
        admitted = workers * of_admission(recipe, name, workers)
        size, copied = size + admitted, copied + admitted
        what = f"the table's {table.rows:,} rows of {table.dim} columns"
        parts.append(Part(f"tables.{name}", size, copied, what, "lower its rows or dim, or train on a cluster"))
    numbers = sum(parameter.numel() for parameter in model.dense.parameters())
    mean = 0 if recipe.optimizers.ema is None else 4
    copied = workers * numbers * (4 + mean + dense_optimizer(recipe).state_bytes)
    what = f"the model's {numbers:,} parameters"
    parts.append(Part("model", copied + 4 * workers * numbers, copied, what, "lower the sizes of its layers"))
    read, computed = _row(recipe, model, dict.fromkeys(recipe.features, 1.0))  # lists of one id
    each = int((1 + recipe.data.prefetch) * read + computed)
    size = recipe.data.batch_size * (recipe.data.candidates or 1) * each
    parts.append(Part("data.batch_size", size, 0, "a step's rows", "lower it, or data.prefetch"))
    if (items := _shared_items(recipe)) and model.dense.network.towers is not None:
        read, computed = _item(recipe, model)
        every = workers * items * _gathered(recipe, model)
        size = int(items * ((1 + recipe.data.prefetch) * read + computed) + every)
        parts.append(
            Part("data.negatives.shared", size, 0, f"the {items:,} items that a step's rows share", "lower it")
        )
    return parts


def of_rows(recipe: Recipe, name: str, rows: int, dim: int) -> tuple[int, int]:
    """Return the bytes of a part of a table, and of its optimizer's state."""
    return rows * dim * ELEMENT[recipe.tables[name].dtype], rows * table_optimizer(recipe, name).state_bytes(dim)


def of_admission(recipe: Recipe, name: str, world: int) -> int:
    """Return the bytes that one of so many ranks holds to know which ids have the rows of a table of `hash: table`.

    They are 12 for each row, a key and its last use, and one that says whether it has changed hands; with a threshold
    16 more, for as many ids that wait. Where ids get rows online they are 16, for a last use in batches besides, and
    with a threshold 20 more, and a rank holds its share of them alone: on its GPU, if it has one.
    """
    table = recipe.tables[name]
    if table.hash != "table":
        return 0
    if table.assign == "online":
        most = max(map(len, held(table, world)))
        return most * (_OWNED + (_OWNED_WAITING if table.threshold > 1 else 0))
    return table.rows * (_ADMITTED + (_WAITING if table.threshold > 1 else 0))


def of_shard(recipe: Recipe, name: str, rows: int, dim: int, gpu: bool, cached: bool) -> dict[str, dict[str, int]]:
    """Return what a shard of a table takes of a rank's GPU and of its host, by kinds.

    Args:
        recipe: the run.
        name: the table's.
        rows: of the shard.
        dim: its columns.
        gpu: whether the rank has a GPU.
        cached: whether the rows lie on the host, behind a cache on the GPU.
    """
    weights, state = of_rows(recipe, name, rows, dim)
    held = {"weights": weights, "optimizer state": state}
    copied = {"checkpoint copy": weights + state}
    if cached:
        return {"gpu": {"cache": math.ceil(weights * recipe.tables[name].cache)}, "host": held | copied}
    return {"gpu": held, "host": copied} if gpu else {"gpu": {}, "host": held | copied}


def besides(
    recipe: Recipe, world: int, gpu: bool, whole: Iterable[str], lookups: Mapping[str, Looked] | None = None
) -> dict[str, dict[str, int]]:
    """Return what a rank's GPU and host hold besides sharded tables, by kinds; of every rank the same.

    Args:
        recipe: the run.
        world: number of ranks.
        gpu: whether they have GPUs.
        whole: the tables that every rank holds whole.
        lookups: what is known of the features' ids.
    """
    model = Model(recipe, device="meta", tables_device="meta")
    numbers = sum(parameter.numel() for parameter in model.dense.parameters())
    mean = 0 if recipe.optimizers.ema is None else 4
    dense = numbers * (4 + mean + dense_optimizer(recipe).state_bytes)
    sizes = [of_rows(recipe, name, recipe.tables[name].rows, recipe.tables[name].dim) for name in whole]
    weights, state = sum(size for size, _ in sizes), sum(size for _, size in sizes)
    rows = -(-recipe.data.batch_size // world) * (recipe.data.candidates or 1)
    read, computed = (rows * size for size in _row(recipe, model, ids_per_row(recipe, lookups)))
    if (items := _shared_items(recipe)) and model.dense.network.towers is not None:
        own = -(-items // world)
        of_item = _item(recipe, model)
        read, computed = read + own * of_item[0], computed + own * of_item[1] + items * _gathered(recipe, model)
    online = [name for name, table in recipe.tables.items() if table.assign == "online"]
    admitted = sum(of_admission(recipe, name, world) for name in recipe.tables if name not in online)
    owned = sum(of_admission(recipe, name, world) for name in online)
    device = {
        "weights": weights,
        "optimizer state": state,
        "gradients": weights + 4 * numbers,
        "dense part": dense,
        "activations": int(computed),
        "batches": int(_ON_DEVICE * read) if gpu else 0,
    }
    host = {
        "batches": int((1 + recipe.data.prefetch) * read),
        "windows": int(recipe.data.shuffle_gb * 1e9 / world),
        "checkpoint copy": weights + state + dense + admitted + owned,
        **({"ids": admitted} if admitted else {}),
    }
    if owned or (gpu and admitted):  # the keys are looked up there
        known = [table for name, table in recipe.tables.items() if table.hash == "table" and name not in online]
        device["ids"] = owned + (sum(8 * table.rows for table in known) if gpu else 0)
    return {"gpu": device, "host": host} if gpu else {"gpu": {}, "host": _added(device, host)}


def per_rank(
    recipe: Recipe, plan: Plan, lookups: Mapping[str, Looked] | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """Return what every rank of a plan takes, by kinds: tables and besides, on its GPU and on its host.

    Args:
        recipe: the run, as it was planned for.
        plan: its tables'.
        lookups: what is known of the features' ids.

    Returns:
        {"gpu" or "host": {kind: (world,) int64 bytes}}. Without GPUs all is on the host. A checkpoint's copy is not
        made where there is no room for it (see trainers.train.staging).
    """
    gpu = plan.gpu
    out: dict[str, dict[str, np.ndarray]] = {"gpu": {}, "host": {}}

    def add(where: str, kind: str, ranks: Any, size: int) -> None:
        out[where].setdefault(kind, np.zeros(plan.world, np.int64))[ranks] += size

    whole = [name for name in recipe.tables if name not in plan.tables]
    for where, parts in besides(recipe, plan.world, gpu, whole, lookups).items():
        for kind, size in parts.items():
            add(where, kind, slice(None), size)
    for name, place in plan.tables.items():
        for shard in shards(recipe.tables[name], place, recipe.cluster.topology, plan.world):
            held = of_shard(recipe, name, shard.rows, shard.columns, gpu, place.kernel == CACHED)
            for where, parts in held.items():
                for kind, size in parts.items():
                    add(where, kind, shard.rank, size)
    return out


def _added(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {kind: one.get(kind, 0) + other.get(kind, 0) for kind in {**one, **other}}


def _row(recipe: Recipe, model: Model, ids: Mapping[str, float]) -> tuple[float, float]:
    """Return what a row of a batch takes at the least: as it is read, and values and gradients of what layers return.

    Args:
        recipe: the run.
        model: its model.
        ids: of a row, by feature.
    """
    features = recipe.features.items()
    read = sum(
        4 * f.numbers if f.carrier == "numbers" else 8 + 8 * ids[name]
        for name, f in features
        if f.carrier != "features"
    )
    columns = sum(ids[name] * recipe.tables[table].dim for name, f in features if (table := f.looks_up()))
    layers = sum(layer.out_features for layer in model.dense.modules() if isinstance(layer, nn.Linear))
    return read, 2 * 4 * (columns + layers // recipe.train.accumulate)


def _shared_items(recipe: Recipe) -> int:
    """Return how many items the rows of a step share, over all workers together; 0 where they share none."""
    section = recipe.data.negatives
    if section is None or section.shared is None:
        return 0
    if section.shared != "all":
        return section.shared
    try:
        return len(read_items(section.catalogue, "data.negatives.catalogue", [section.item])[0])
    except BadInput:  # of a run on another machine, where the catalogue lies
        key = next((name for name, f in recipe.features.items() if recipe.column(name) == section.item), None)
        table = recipe.features[key].looks_up() if key else None
        return recipe.tables[table].rows if table else 0


def _item(recipe: Recipe, model: Model) -> tuple[float, float]:
    """Return what `_row` does, of an item that a step shares: it has no user's features."""
    names = {*model.dense.network.towers.names["item"]}
    read, computed = _row(recipe, model, {name: float(name in names) for name in recipe.features})
    return read + 4, computed  # and how often it is expected


def _gathered(recipe: Recipe, model: Model) -> int:
    """Return what an item's vector takes on each rank, which all have those of all: values and gradients."""
    table = recipe.features[model.dense.network.towers.names["item"][0]].looks_up()
    return 2 * 4 * (recipe.tables[table].dim if table else 0)


def _here(recipe: Recipe) -> bool:
    """Return whether the run's workers are processes of this machine."""
    if recipe.cluster.most == 0:
        return True
    ray = sys.modules.get("ray")
    return not (recipe.cluster.address or os.environ.get("RAY_ADDRESS") or (ray and ray.is_initialized()))


def _available(recipe: Recipe) -> int:
    free = free_memory()
    if recipe.cluster.device != "cpu" and torch.cuda.is_available():
        free += sum(torch.cuda.get_device_properties(n).total_memory for n in range(torch.cuda.device_count()))
    return free


def free_memory(root: Path = Path("/")) -> int:
    """Return the bytes that this machine, or the container it is, has left."""
    lines = (line.split() for line in (root / "proc/meminfo").read_text(encoding="utf-8").splitlines())
    free = next(int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:")
    group = root / "sys/fs/cgroup"
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        if (group / limit).is_file() and (most := (group / limit).read_text(encoding="utf-8").strip()).isdigit():
            free = min(free, int(most) - int((group / used).read_text(encoding="utf-8")))
    return free


def peak() -> dict[str, int]:
    """Return the most bytes that this process has held: on its host, and on its GPU."""
    host = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"host": host, "gpu": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0}


def amount(size: float) -> str:
    """Return a number of bytes for people."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
