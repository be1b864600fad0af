"""A warm start: a new run begins with what an earlier one has learned; its tables may have grown since.

A table of R rows may grow to k R. Row r of the new table begins as row r mod R of the old one, with its optimizer
state: an id whose row is r in k R rows had row r mod R in R rows (see modules.features.hashing.row), so every
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
from livetrain.trainers.runtime.run_folder import find_checkpoint
from livetrain.trainers.train import checkpoint, compatible
from livetrain.trainers.train.sharding import Sharded

_MEND = "start from another run, or leave train.warm_start out"


def find(recipe: Recipe) -> Path | None:
    """Return the checkpoint that a recipe begins with, the best of the run train.warm_start; None without one.

    Raises:
        BadInput: there is no such checkpoint, or it is another model's.
    """
    if recipe.train.warm_start is None:
        return None
    try:
        path = find_checkpoint(Path(recipe.train.warm_start), "best", _MEND)
        mend = f"give it that value (of rows a whole multiple will do), {_MEND}"
        compatible.check_same(path, _as_before(recipe, path), resume=False, mend=mend)
    except BadInput as error:
        raise type(error)(f"train.warm_start: {error}") from error.__cause__
    return path


def _as_before(recipe: Recipe, path: Path) -> Recipe:
    """Return the recipe with the rows that its tables had in a checkpoint, where they have a whole multiple now."""
    tables = dict(recipe.tables)
    for name, rows in _rows(path).items():
        if name in tables and tables[name].rows % rows == 0:
            tables[name] = tables[name].model_copy(update={"rows": rows})
    return recipe.model_copy(update={"tables": tables})


def _rows(path: Path) -> dict[str, int]:
    """Return the rows of a checkpoint's tables."""
    return {name: table["rows"] for name, table in run_folder.content(path)["recipe"]["tables"].items()}


def load(sharded: Sharded, recipe: Recipe, path: Path) -> None:
    """Load a checkpoint into a model whose tables may have grown, with its optimizers' state. Collective.

    Args:
        sharded: what to load into, in place.
        recipe: its recipe.
        path: from `find`.

    Raises:
        BadInput: the checkpoint is damaged.
    """
    try:
        _load(sharded, recipe, path)
    except run_folder.Damaged as error:
        raise BadInput(f"train.warm_start: {error}; {_MEND}") from None


def _load(sharded: Sharded, recipe: Recipe, path: Path) -> None:
    before = _rows(path)
    grown = {f".embeddings.{n}.weight": before[n] for n, t in recipe.tables.items() if t.rows != before[n]}
    state = checkpoint.state(sharded)
    asked = {
        part: _without_none(
            {key: _smaller(value, rows) if (rows := _old_rows(key, grown)) else value for key, value in values.items()}
        )
        for part, values in state.items()
    }
    checkpoint.read(asked, path)
    for part, values in state.items():
        for key, value in values.items():
            if (rows := _old_rows(key, grown)) and key in asked[part]:
                _spread(value, asked[part][key], rows)
    sharded.purge()


def _without_none(content: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if value is not None}


def _old_rows(key: str, grown: dict[str, int]) -> int | None:
    """Return the rows that the table of a state's entry had, if it has grown."""
    return next((rows for ending, rows in grown.items() if key.endswith(ending)), None)


def _smaller(value: Any, rows: int) -> Any:
    """Return a place for the old rows of a grown table's entry that this rank needs; None where it needs none.

    It lies on the host, where there is room for half a table more.
    """
    if isinstance(value, dict):
        return _without_none({key: _smaller(part, rows) for key, part in value.items()}) or None
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
    if isinstance(value, torch.Tensor) and value.dim() > 0:
        return torch.empty(rows, *value.shape[1:], dtype=value.dtype)
    return value


def _spread(value: Any, loaded: Any, rows: int) -> None:
    """Fill a grown table's entry from what was loaded."""
    if isinstance(value, dict):
        for key, part in value.items():
            _spread(part, loaded[key], rows)
    elif isinstance(value, ShardedTensor):
        found = iter(loaded.local_shards())
        for shard in value.local_shards():
            pieces = {old: next(found).tensor for old, _ in _pieces(shard, rows)}
            for at, old, count in _ranges(shard.metadata.shard_offsets[0], shard.metadata.shard_sizes[0], rows):
                piece = pieces[old] if old in pieces else pieces[0][old:]  # of a whole old table
                shard.tensor[at : at + count].copy_(piece[:count])
    elif isinstance(value, torch.Tensor) and value.dim() > 0:
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
