"""What a run takes of this machine's memory, told before it starts: a machine that runs out of memory tells nobody."""

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.modules.model import Model
from livetrain.modules.optimizers import dense_optimizer, table_optimizer
from livetrain.trainers.train.replication import replicated

ELEMENT = {"float32": 4, "float16": 2}  # bytes
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
        weights = table.rows * table.dim * ELEMENT[table.dtype]
        size = copied = weights + table.rows * table_optimizer(recipe, name).state_bytes(table.dim)
        if name in whole:  # on every worker, with a gradient of its size
            size, copied = workers * (size + weights), workers * size
        what = f"the table's {table.rows:,} rows of {table.dim} columns"
        parts.append(Part(f"tables.{name}", size, copied, what, "lower its rows or dim, or train on a cluster"))
    numbers = sum(parameter.numel() for parameter in model.dense.parameters())
    mean = 0 if recipe.optimizers.ema is None else 4
    copied = workers * numbers * (4 + mean + dense_optimizer(recipe).state_bytes)
    what = f"the model's {numbers:,} parameters"
    parts.append(Part("model", copied + 4 * workers * numbers, copied, what, "lower the sizes of its layers"))
    size = recipe.data.batch_size * (recipe.data.candidates or 1) * _row(recipe, model)
    parts.append(Part("data.batch_size", size, 0, "a step's rows", "lower it, or data.prefetch"))
    return parts


def _row(recipe: Recipe, model: Model) -> int:
    """Return what a row of a batch takes at the least: lists of one id, values and gradients of what layers return."""
    features = recipe.features.values()
    each = {"numbers": 4, "ids": 16, "features": 0}
    read = sum(each[feature.carrier] * feature.numbers for feature in features)
    columns = sum(recipe.tables[table].dim for feature in features if (table := feature.looks_up()))
    layers = sum(layer.out_features for layer in model.dense.modules() if isinstance(layer, nn.Linear))
    columns += layers // recipe.train.accumulate
    return (1 + recipe.data.prefetch) * read + 2 * 4 * columns


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
