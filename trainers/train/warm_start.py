"""A warm start: a new run begins with what an earlier one has learned, as far as it fits (see trainers.train.fitting).

A table of R rows may grow to k R. Row r of the new table begins as row r mod R of the old one, with its optimizer
state: an id whose row is r in k R rows had row r mod R in R rows (see modules.tables.hashing.row), so every
id begins with what it had, and the model answers what it answered before. What collided may part from then on.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, ShardedTensorBase, ShardedTensorMetadata
from torch.distributed._shard.sharding_spec import ShardMetadata

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.trainers.runtime import ranks, run_folder
from livetrain.trainers.runtime.manifest import write_text
from livetrain.trainers.runtime.run_folder import find_checkpoint
from livetrain.trainers.train import checkpoint
from livetrain.trainers.train.fitting import Fit, Taken, fit
from livetrain.trainers.train.sharding import Sharded

NAME = "warm_start.txt"
_MEND = "start from another run, or leave train.warm_start out"


def find(recipe: Recipe) -> Path | None:
    """Return the checkpoint that a recipe begins with, the best of the run train.warm_start; None without one.

    Raises:
        BadInput: there is no such checkpoint.
    """
    if recipe.train.warm_start is None:
        return None
    try:
        return find_checkpoint(Path(recipe.train.warm_start.run), "best", _MEND)
    except BadInput as error:
        raise type(error)(f"train.warm_start: {error}") from error.__cause__


def plan(recipe: Recipe, path: Path) -> Fit:
    """Return what a recipe's model begins with of a checkpoint from `find`.

    Raises:
        BadInput: a name in train.warm_start is nowhere, or nothing fits.
    """
    try:
        return fit(recipe, run_folder.recipe_in(path), str(path))
    except BadInput as error:
        start = "" if str(error).startswith("train.warm_start") else "train.warm_start: "
        raise type(error)(f"{start}{error}") from error.__cause__


def tell(recipe: Recipe, path: Path, run: Path) -> list[str]:
    """Write what is taken of a checkpoint, and what begins anew and why, to a run's folder; return it in short.

    Raises:
        BadInput: see `plan`.
    """
    lines = plan(recipe, path).lines
    wide = max(len(line.name) for line in lines)
    rows = [f"{line.name:<{wide}}  {line.taken:<7}  {line.why}".rstrip() for line in lines]
    write_text(run / NAME, "\n".join([f"of {path}", *rows, ""]))
    fates = [line for line in lines if line.taken != "all" or line.why]
    whole = f"{len(lines) - len(fates)} of {len(lines)} tables and layers are taken whole"
    return [
        f"begins with {path}: {whole}; all are in {run / NAME}",
        *(f"{line.name}: {line.taken} taken" + (f" ({line.why})" if line.why else "") for line in fates),
    ]


def load(sharded: Sharded, recipe: Recipe, path: Path) -> set[str]:
    """Load what fits of a checkpoint into a model, with its optimizers' state. Collective.

    Args:
        sharded: what to load into, in place.
        recipe: its recipe.
        path: from `find`.

    Returns:
        The names of the tables that were loaded.

    Raises:
        BadInput: the checkpoint is damaged.
    """
    found = plan(recipe, path)
    try:
        _load(sharded, recipe, path, found)
    except run_folder.Damaged as error:
        raise BadInput(f"train.warm_start: {error}; {_MEND}") from None
    return {key.split(".")[-2] for key in found.taken if key.startswith("tables.")}


def _load(sharded: Sharded, recipe: Recipe, path: Path, found: Fit) -> None:
    asked: dict[str, dict[str, Any]] = {}
    copies: list[tuple[Any, Taken, dict[str, Any], str]] = []  # where to, how, and where from once it is read

    def ask(value: Any, taken: Taken, place: dict[str, Any], key: str) -> None:
        if (room := _room(value, taken)) is not None:
            place[key] = room
            if room is not value:
                copies.append((value, taken, place, key))

    state = checkpoint.state(sharded)
    for key, value in state["model"].items():
        if (taken := found.taken.get(key)) is not None:
            ask(value, taken, asked.setdefault("model", {}), taken.key)
    for part in [name for name in state if name.startswith("optimizer_")]:
        for key, values in state[part].items():
            own = key.removeprefix("model.")
            if (taken := found.taken.get(own)) is None or not taken.state:
                continue
            place = asked.setdefault(part, {}).setdefault(key.replace(own, taken.key), {})
            table, was = own.split(".")[-2], taken.key.split(".")[-2]
            for name, value in values.items():
                ask(value, taken, place, f"{was}.{name.removeprefix(f'{table}.')}" if f"{table}." in name else name)
    old = run_folder.recipe_in(path)
    if list(old.tasks) == list(recipe.tasks) and old.gradients.kind == recipe.gradients.kind and "gradients" in state:
        asked["gradients"] = state["gradients"]
    if "steps" in state:
        asked["steps"] = state["steps"]
    checkpoint.read(asked, path, whole=False)
    for value, taken, place, key in copies:
        if key in place:
            _fill(value, place[key], taken)
    if (mean := sharded.pipeline.update.mean) is not None:  # what was evaluated is what goes on, and a mean of its own
        with torch.no_grad():
            for name, parameter in mean.parameters.items():
                parameter.copy_(mean.values[name])
    sharded.purge()


def _room(value: Any, taken: Taken) -> Any:
    """Return what an old tensor is read into: the tensor that begins with it, where the two have one shape; None where
    this rank needs nothing of it."""
    if not isinstance(value, torch.Tensor | ShardedTensor) or len(value.size()) == 0:
        return value
    if taken.places:
        return torch.empty(taken.shape, dtype=value.dtype)
    return value if value.size()[0] == taken.shape[0] else _smaller(value, taken.shape[0])


def _fill(value: Any, loaded: Any, taken: Taken) -> None:
    """Copy what was read to where it belongs."""
    if not taken.places:
        _spread(value, loaded, taken.shape[0])
        return
    whole = [(torch.arange(size),) * 2 for size in value.shape]
    both = [taken.places.get(dim, each) for dim, each in enumerate(whole)]
    here, there = (torch.meshgrid(*places, indexing="ij") for places in zip(*both, strict=True))
    value[tuple(each.to(value.device) for each in here)] = loaded[there].to(value.device)


def _smaller(value: Any, rows: int) -> Any:
    """Return a place for the old rows of a grown table's entry that this rank needs; None where it needs none.

    It lies on the host, where there is room for half a table more.
    """
    if isinstance(value, ShardedTensor):
        shards = [
            Shard.from_tensor_and_offsets(
                torch.empty(count, *shard.tensor.shape[1:], dtype=shard.tensor.dtype),
                [old, *shard.metadata.shard_offsets[1:]],
                ranks.rank(),
            )
            for shard in value.local_shards()
            for old, count in _pieces(shard, rows)
        ]
        if not shards:
            return None
        # Loading asks for the size and the local shards; the metadata must cover the table, so they name it whole.
        size = [rows, *value.size()[1:]]
        everything = ShardMetadata([0] * len(size), size, f"rank:{ranks.rank()}/cpu")
        whole = ShardedTensorMetadata([everything], torch.Size(size), value.metadata().tensor_properties)
        place = ShardedTensorBase._init_from_local_shards_and_global_metadata(shards, whole)
        place._process_group = None  # type: ignore[attr-defined]  # which asking for the size mentions
        return place
    return torch.empty(rows, *value.shape[1:], dtype=value.dtype)


def _spread(value: Any, loaded: Any, rows: int) -> None:
    """Fill a grown table's entry from what was loaded."""
    if isinstance(value, ShardedTensor):
        found = iter(loaded.local_shards())
        for shard in value.local_shards():
            pieces = {old: next(found).tensor for old, _ in _pieces(shard, rows)}
            for at, old, count in _ranges(shard.metadata.shard_offsets[0], shard.metadata.shard_sizes[0], rows):
                piece = pieces[old] if old in pieces else pieces[0][old:]  # of a whole old table
                shard.tensor[at : at + count].copy_(piece[:count])
    else:
        for at, old, count in _ranges(0, len(value), rows):
            value[at : at + count].copy_(loaded[old : old + count])


def _pieces(shard: Shard, rows: int) -> list[tuple[int, int]]:
    """Return the first row and the number of rows of each part of the old table that a shard begins with."""
    first, size = shard.metadata.shard_offsets[0], shard.metadata.shard_sizes[0]
    return [(0, rows)] if size >= rows else [(old, count) for _, old, count in _ranges(first, size, rows)]


def _ranges(first: int, size: int, rows: int) -> Iterator[tuple[int, int, int]]:
    """Yield where rows [first, first + size) of a grown table begin: (place from 0 on, old row, how many in a row)."""
    at = 0
    while at < size:
        old = (first + at) % rows
        count = min(rows - old, size - at)
        yield at, old, count
        at += count
