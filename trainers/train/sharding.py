"""A plain model becomes a sharded one: plan, shards with fused optimizers, dense optimizer, pipeline.

What is computed stays what plain PyTorch computes on the global batch. Three facts keep it so: the loss divides by the
all-reduced number of rows and is multiplied by the number of ranks (torchrec averages table gradients over ranks);
dense gradients are averaged in one flat all-reduce; initial table rows depend on (seed, table, row) alone.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_in_backward
from torchrec.distributed import comm
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from livetrain.configs.errors import BadInput
from livetrain.configs.registry import OPTIMIZERS
from livetrain.configs.schema import Recipe
from livetrain.modules.features.bag import pools_where_rows_lie
from livetrain.modules.layers.distributed import Later
from livetrain.modules.layers.moving import Moving
from livetrain.modules.model import Model, PooledCollection, ReplicatedCollection, initial_values
from livetrain.modules.optimizers import FUSED_NAMES, dense_optimizer, table_optimizer
from livetrain.modules.tables import adam, host
from livetrain.modules.tables.admission import Register
from livetrain.modules.tables.changes import Changes
from livetrain.modules.tables.touched import Touched
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train import planning, replication
from livetrain.trainers.train.gradients.combination import Combination
from livetrain.trainers.train.layout.plan import node
from livetrain.trainers.train.mean import Mean
from livetrain.trainers.train.online import Anew, Online
from livetrain.trainers.train.step import (
    SHARDED,
    CachedTablePipeline,
    DensePipeline,
    Pipeline,
    Step,
    TablePipeline,
    Update,
)


class BagSharder(EmbeddingBagCollectionSharder):
    """torchrec's for pooled tables, on CPUs too where ranks add up each other's sums: gloo can by now."""

    @property
    def module_type(self) -> type[PooledCollection]:
        """Return what is sharded."""
        return PooledCollection

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return the kinds of sharding that there are; planning asks for those that it may use."""
        return [*{*super().sharding_types(compute_device_type), "row_wise", "table_row_wise", "grid_shard"}]


@dataclass
class Sharded:
    """A model ready to train: everything that a checkpoint keeps, and the pipeline that steps it."""

    recipe: Recipe  # every replicated table says so, see `replication.settled`
    module: DistributedModelParallel
    optimizers: dict[str, KeyedOptimizer]  # "tables" (fused), "dense", "replicated": those that exist
    pipeline: Pipeline
    device: torch.device
    planned: planning.Plan
    registers: dict[str, Register]  # of tables whose ids get rows before: every rank has them whole, all are the same
    online: Online  # of tables whose ids get rows while it trains

    @property
    def model(self) -> Model:
        return self.module.module.model

    @property
    def changes(self) -> Changes | None:
        """The account of the rows that change, where anybody asked for it; see trainers.train.tracking."""
        return self.pipeline.update.changes

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Let the dense part be what is evaluated: its running mean where optimizers.ema asks for one."""
        mean = self.pipeline.update.mean
        return contextlib.nullcontext() if mean is None else mean.in_use()

    def plan(self) -> dict[str, dict[str, Any]]:
        """Return where every table lies: {table: {sharding, kernel, ranks, rows, bytes}}, see `planning.placed`."""
        return planning.placed(self.recipe, self.planned)

    def shards(self) -> Iterator[tuple[str, torch.Tensor, int, int]]:
        """Yield (table, local weight, first row, first column) of every sharded piece on this rank."""
        for module in self.module.modules():
            if isinstance(module, SHARDED):
                for key, value in module.state_dict().items():
                    table = key.split(".")[-2]
                    for shard in value.local_shards():
                        row, column = shard.metadata.shard_offsets
                        yield table, shard.tensor, row, column

    def states(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return the optimizers' state by optimizer and parameter, a table's alike whether or not it is replicated."""
        found = {name: dict(optimizer.state_dict()["state"]) for name, optimizer in self.optimizers.items()}
        for key, values in found.pop("replicated", {}).items():
            table = key.split(".")[-2]
            found.setdefault("tables", {})[key] = {
                f"{table}.{FUSED_NAMES.get(name, name)}": value.squeeze(1)  # an accumulator per row is (rows, 1)
                for name, value in values.items()
                if name != "step"
            }
        return found

    def anew(self) -> Anew:
        """Return what lets rows of the tables begin anew."""
        return Anew(self.recipe, self.model.state_dict(), self.states().get("tables", {}))

    def mark(self, table: str, rows: torch.Tensor) -> None:
        """Say that rows of a table change by other means than its optimizer's, where anybody asked."""
        if self.changes is not None:
            self.changes.mark(table, rows)

    def purge(self) -> None:
        """Forget the rows in GPU caches, after the tables behind them were written: see checkpoint.load."""
        for module in self.module.modules():
            if isinstance(module, SHARDED):
                for lookup in module._lookups:
                    lookup.purge()

    def check_pipelined(self) -> None:
        """Raise where torchrec silently gave up overlapping the exchange of ids (it says nothing itself)."""
        wanted = sum(not name.endswith("replicated") for name in self.model.tables)
        if self.pipeline.pipelined() != wanted:
            raise RuntimeError(
                f"{self.pipeline.pipelined()} of {wanted} table collections are pipelined; "
                "a model's forward has become untraceable between the batch and its tables"
            )

    def set_rates(self, factor: float) -> None:
        """Set every optimizer's learning rate to its rate in the recipe times `factor`."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor


def check_device(recipe: Recipe, device: torch.device) -> None:
    """Raise BadInput for what a recipe asks and the device cannot do."""
    for name, table in recipe.tables.items():
        if device.type in table_optimizer(recipe, name).devices:
            continue
        kind, key = recipe.optimizer(name).kind, f"tables.{name}.optimizer" if table.optimizer else "optimizers.sparse"
        able = [name for name in OPTIMIZERS if device.type in OPTIMIZERS.owner(name).devices]
        raise BadInput(f"{key}.kind: fbgemm has no fused {kind} on {device.type.upper()}; use {', '.join(able)}")


def shard(recipe: Recipe, device: torch.device, planner: planning.Planner = planning.make) -> Sharded:
    """Build the recipe's model, its tables sharded over the ranks of the default process group.

    Args:
        recipe: the run.
        device: this rank's device.
        planner: has or makes the tables' plan, on rank 0.

    Raises:
        BadInput: the tables do not fit the machines of cluster.topology, or the device cannot train them.
    """
    check_device(recipe, device)
    ranks.of_sums(device.type == "cuda", timedelta(seconds=recipe.cluster.timeout_s))
    recipe = replication.settled(recipe, ranks.world())
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if recipe.train.precision == "tf32" else "highest")
    step, sharders = _fused(recipe, device, once=_finds_repeated(device))
    online = Online(recipe, step.model, device)
    plan = planning.agree(planner, recipe, device.type)
    paths = {key.split(".")[-2]: path for path, one in _sharded_collections(step) for key, _ in one.named_parameters()}
    with host.tables() if _on_host(recipe, device) else contextlib.nullcontext(), _nodes(recipe, ranks.world()):
        module = DistributedModelParallel(
            step,
            env=ShardingEnv.from_process_group(dist.group.WORLD),
            device=device,
            plan=planning.for_torchrec(recipe, plan, paths),
            sharders=sharders,
            init_data_parallel=False,
            init_parameters=False,
        )
    steps = adam.Steps(any(table_optimizer(recipe, name).counts for name in recipe.tables))
    optimizers, touched = _optimizers(recipe, module, steps)
    dense, replicated = (
        list(optimizers[key].params.values()) if key in optimizers else [] for key in ("dense", "replicated")
    )
    combination = Combination(recipe, step.model, dense, replicated, device, touched)
    steps.kernels = list(_kernels(module)) if steps.counted else []
    mean = (
        None if recipe.optimizers.ema is None or not dense else Mean(optimizers["dense"].params, recipe.optimizers.ema)
    )
    moving = [layer for layer in step.model.dense.modules() if isinstance(layer, Moving)]
    # Replicated tables are tables: where one lies must not change whether its gradient is clipped.
    update = Update(optimizers, combination, dense, recipe.optimizers.dense.clip_norm, steps, mean, moving)
    kind = DensePipeline
    if "tables" in optimizers:
        kind = CachedTablePipeline if plan.cached else TablePipeline
        if plan.cached and combination.looks_again:
            raise BadInput(
                f"gradients.kind: '{recipe.gradients.kind}' looks up the rows of a batch twice, and those of tables in "
                "host memory are fetched once; let the tables fit the GPUs, or use another kind"
            )
        if plan.cached and online.owners:
            raise BadInput(
                f"tables.{next(iter(online.owners))}.assign: 'online' begins rows anew between steps, and those on "
                "the host are fetched ahead of them; let the tables fit the GPUs, or use assign: before"
            )
    pipeline = kind(module, update, device)
    registers = {
        name: Register(recipe.tables[name], map)
        for name, map in step.model.maps.items()
        if recipe.tables[name].assign == "before"
    }
    sharded = Sharded(recipe, module, optimizers, pipeline, device, plan, registers, online)
    if online.owners:
        online.join(module, sharded.anew, sharded.mark, at_once=kind is DensePipeline)
        update.online = online
    with torch.no_grad():
        for table, weight, row, column in sharded.shards():
            initial_values(recipe, table).fill(weight, row, column)
    return sharded


@contextlib.contextmanager
def _nodes(recipe: Recipe, world: int) -> Iterator[None]:
    """Let torchrec group ranks as the plan does: it takes a node's size from the environment, and keeps its groups."""
    name, comm._INTRA_PG, comm._CROSS_PG = "LOCAL_WORLD_SIZE", None, None
    before = os.environ.get(name)
    os.environ[name] = str(node(recipe.cluster.topology, world))
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def dry_plan(recipe: Recipe, world: int, device: str, lookups: planning.Lookups | None = None) -> planning.Plan:
    """Return the plan that `world` ranks would make for the recipe's tables, without those ranks.

    Args:
        recipe: the run.
        world: number of ranks.
        device: the ranks' device type, cpu or cuda.
        lookups: what is known of the features' ids.

    Raises:
        BadInput: the tables do not fit the machines of cluster.topology, or the device cannot train them.
    """
    check_device(recipe, torch.device(device))
    return planning.make(recipe, world, device, lookups)


def _fused(recipe: Recipe, device: torch.device, once: bool = False) -> tuple[Step, list[Any]]:
    """Return the step with an optimizer fused into every table, and the sharders for it.

    Args:
        recipe: the run, settled.
        device: where the step is.
        once: whether an id that a rank looks up several times in a batch travels once.
    """
    step = Step(Model(recipe, device=device, tables_device="meta"), recipe)
    for _, collection in _sharded_collections(step):
        for key, weight in collection.named_parameters():
            optimizer = table_optimizer(recipe, key.split(".")[-2])
            apply_in_backward(optimizer.torch_class, [weight], optimizer.arguments())
            weight._optimizer_kwargs[0].update(optimizer.fused())  # type: ignore[attr-defined]  # as torchrec reads it
    # fbgemm ignores weight_decay unless it is told its kind.
    given = {"weight_decay_mode": WeightDecayMode.L2}, _codecs(recipe)
    return step, [EmbeddingCollectionSharder(*given, use_index_dedup=once), BagSharder(*given)]


def _on_host(recipe: Recipe, device: torch.device) -> bool:
    """Return whether a table needs an update that fbgemm has on GPUs alone, see modules.tables.host."""
    adam = any(table_optimizer(recipe, name).torch_class is torch.optim.Adam for name in recipe.tables)
    decayed = [name for name in recipe.tables if recipe.optimizer(name).weight_decay]
    return device.type == "cpu" and (adam or any(pools_where_rows_lie(recipe, name) for name in decayed))


def _finds_repeated(device: torch.device) -> bool:
    """Return whether fbgemm finds the ids that repeat in a batch, which on CPUs it does not; one rank sends none."""
    key = device.type.upper()
    return ranks.world() > 1 and torch._C._dispatch_has_kernel_for_dispatch_key("fbgemm::jagged_unique_indices", key)


def _kernels(module: nn.Module) -> Iterator[Any]:
    """Yield fbgemm's part of each group of sharded tables."""
    for child in module.modules():
        for lookup in getattr(child, "_lookups", ()):
            yield from (kernel.emb_module for kernel in lookup._emb_modules)


def _sharded_collections(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, child in module.named_modules():
        if type(child) in (EmbeddingCollection, PooledCollection):
            yield path, child


def _codecs(recipe: Recipe) -> dict[str, Any] | None:
    kind = recipe.cluster.quantize_comms
    if kind == "none":
        return None
    forward = CommType.FP16 if kind == "fp16" else CommType.BF16
    # Gradients need bf16's range; activations can spend the bits on precision.
    return get_qcomm_codecs_registry(QCommsConfig(forward_precision=forward, backward_precision=CommType.BF16))


def _optimizers(
    recipe: Recipe, module: DistributedModelParallel, steps: adam.Steps
) -> tuple[dict[str, KeyedOptimizer], list[Touched]]:
    replicated_paths = tuple(
        f"{path}." for path, child in module.module.named_modules() if isinstance(child, ReplicatedCollection)
    )
    rest = dict(in_backward_optimizer_filter(module.module.named_parameters()))
    replicated = {k: p for k, p in rest.items() if k.startswith(replicated_paths)} if replicated_paths else {}
    dense = {k: p for k, p in rest.items() if k not in replicated}
    out: dict[str, KeyedOptimizer] = {}
    if any(isinstance(m, SHARDED) for m in module.modules()):
        out["tables"] = module.fused_optimizer
    marks = {key: _touched(module.module, key) for key in replicated}
    wrapped = [
        KeyedOptimizerWrapper({key: parameter}, partial(_replica, recipe, key, marks[key], steps))
        for key, parameter in replicated.items()
    ]
    if wrapped:
        out["replicated"] = CombinedOptimizer([("", each) for each in wrapped])
    if dense:  # what is solved for has no dense part that steps would move
        out["dense"] = KeyedOptimizerWrapper(dense, dense_optimizer(recipe).make)
        wrapped.append(out["dense"])
    for optimizer in wrapped:
        _make_state(optimizer)
    for optimizer in out.values():
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return out, list(marks.values())


def _touched(module: nn.Module, key: str) -> Touched:
    """Return what marks the rows of the replicated table whose weight has a dotted key in a module."""
    embedding = module.get_submodule(key.removesuffix(".weight"))
    assert isinstance(embedding, nn.Embedding)
    return Touched(embedding, Later)


def _replica(
    recipe: Recipe, key: str, touched: Touched, steps: adam.Steps, parameters: list[nn.Parameter]
) -> torch.optim.Optimizer:
    """Return the optimizer of the replicated table whose weight has a dotted key."""
    return table_optimizer(recipe, key.split(".")[-2]).replica(parameters[0], touched, steps)


def _make_state(optimizer: KeyedOptimizerWrapper) -> None:
    """Give an optimizer the state of step 0, which torch would only make in its first step.

    A checkpoint loads into what is there: without this Adam's moments would silently be left out.
    """
    before = {key: parameter.detach().clone() for key, parameter in optimizer.params.items()}
    optimizer.init_state()  # a step with zero gradients: it counts, and weight decay moves the parameters
    optimizer.zero_grad()
    with torch.no_grad():
        for key, parameter in optimizer.params.items():
            parameter.copy_(before[key])
        for state in optimizer.state.values():
            for value in state.values():
                value.zero_()
