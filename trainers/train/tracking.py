"""Tracking which rows of sharded tables change, for deltas (see trainers.export.deltas)."""

import uuid
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, ShardedTensorMetadata, TensorProperties
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec

from livetrain.modules.model import ReplicatedCollection
from livetrain.modules.optimizers import table_optimizer
from livetrain.modules.tables.changes import Changes
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train.sharding import Sharded
from livetrain.trainers.train.step import SHARDED

NAME = "changes"  # of what a checkpoint keeps: the steps by table, and in its manifest since when and of which lineage


def track(sharded: Sharded) -> Changes:
    """Keep account of the rows that change from now on, before a checkpoint is loaded. Collective.

    All of sharded tables but the frozen ones; of one whose optimizer moves all rows, all of them. A table that lies by
    columns is watched where its first columns are: every part of a row is looked up in the same steps.
    """
    changes = Changes(ranks.from_main(uuid.uuid4().hex[:16] if ranks.is_main() else None))
    trained = [name for name, table in sharded.recipe.tables.items() if not table.frozen]
    for module in sharded.module.modules():
        if isinstance(module, ReplicatedCollection):
            for name, embedding in module.embeddings.items():
                if name in trained:
                    changes.watch(name, embedding, whole=not table_optimizer(sharded.recipe, name).replicated)
        if isinstance(module, SHARDED):
            for kernel in (kernel for lookup in module._lookups for kernel in lookup._emb_modules):
                names = [config.name for config in kernel._config.embedding_tables]
                kept = [
                    (name, place, kernel._row_offset[place])
                    for place, name in enumerate(names)
                    if name in trained and kernel._col_offset[place] == 0
                ]
                changes.watch_fused(kernel.emb_module, kernel._local_rows, kernel._feature_table_map, kept)
    sharded.pipeline.update.changes = changes
    return changes


def state(sharded: Sharded) -> dict[str, Any]:
    """Return the live tensors of a model's changes by table, as a checkpoint keeps them. Collective."""
    changes = sharded.changes
    assert changes is not None
    found: dict[str, Any] = {}
    for name, whole in _sharded_tables(sharded):
        if not sharded.recipe.tables[name].frozen:
            found[name] = _by_rows(whole, changes, name)
    for name in sorted(changes.pieces.keys() - found.keys()):  # on every rank, of which each knows what it looked up
        if ranks.world() > 1:
            dist.all_reduce(changes.pieces[name].last, op=dist.ReduceOp.MAX)
        found[name] = changes.pieces[name].last
    return found


def taken_up(changes: Changes, content: dict[str, Any], same: bool) -> None:
    """Take up the account of the checkpoint that was loaded, whose manifest is given; `same`: as the same training."""
    changes.step = content["step"]
    kept = content.get(NAME)
    changes.since = changes.step if kept is None else kept["since"]
    if kept is None:
        for piece in changes.pieces.values():
            piece.last.zero_()
    elif same:
        changes.lineage = kept["lineage"]


def _sharded_tables(sharded: Sharded) -> Iterator[tuple[str, ShardedTensor]]:
    for module in sharded.module.modules():
        if isinstance(module, SHARDED):
            yield from ((key.split(".")[-2], value) for key, value in module.state_dict().items())


def _by_rows(weight: ShardedTensor, changes: Changes, name: str) -> ShardedTensor:
    """Return a table's steps, (rows,), sharded as its first columns are."""
    shards = [
        ShardMetadata(each.shard_offsets[:1], each.shard_sizes[:1], each.placement)
        for each in weight.metadata().shards_metadata
        if each.shard_offsets[1] == 0
    ]
    local = []
    for each in (shard.metadata for shard in weight.local_shards()):
        if each.shard_offsets[1] == 0:
            own = ShardMetadata(each.shard_offsets[:1], each.shard_sizes[:1], each.placement)
            local.append(Shard(changes.pieces[name].last, own))
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        local,
        ShardedTensorMetadata(shards, weight.size()[:1], TensorProperties(dtype=torch.int32)),
        sharding_spec=EnumerableShardingSpec(shards),
    )
