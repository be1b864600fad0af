"""A plain model becomes a sharded one: plan, shards with fused optimizers, dense optimizer, pipeline.

What is computed stays what plain PyTorch computes on the global batch. Three facts keep it so: the loss divides by the
all-reduced number of rows and is multiplied by the number of ranks (torchrec averages table gradients over ranks);
dense gradients are averaged in one flat all-reduce; initial table rows depend on (seed, table, row) alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_in_backward
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.optim.keyed import KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from livetrain.configs.errors import BadInput
from livetrain.configs.registry import OPTIMIZERS
from livetrain.configs.schema import Recipe
from livetrain.modules.model import Model, PooledCollection, ReplicatedCollection, initial_values
from livetrain.modules.optimizers import table_optimizer
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train import planning
from livetrain.trainers.train.gradients.combination import Combination
from livetrain.trainers.train.step import (
    SHARDED,
    CachedTablePipeline,
    DensePipeline,
    Pipeline,
    Step,
    TablePipeline,
    Update,
)

DENSE = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}


class BagSharder(EmbeddingBagCollectionSharder):
    """torchrec's for pooled tables, on CPUs too by rows: gloo knows the reduce-scatter by now."""

    @property
    def module_type(self) -> type[PooledCollection]:
        """Return what is sharded."""
        return PooledCollection

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return the kinds of sharding that there are; planning asks for those that it may use."""
        return [*{*super().sharding_types(compute_device_type), "row_wise"}]


@dataclass
class Sharded:
    """A model ready to train: everything that a checkpoint keeps, and the pipeline that steps it."""

    recipe: Recipe
    module: DistributedModelParallel
    optimizers: dict[str, KeyedOptimizer]  # "tables" (fused), "dense", "replicated": those that exist
    pipeline: Pipeline
    device: torch.device

    @property
    def model(self) -> Model:
        return self.module.module.model

    def plan(self) -> dict[str, dict[str, Any]]:
        """Return where every table lies: {table: {sharding, kernel, ranks, rows, bytes}}, see `planning.placed`."""
        return planning.placed(self.recipe, self.module.plan, ranks.world())

    def shards(self) -> Iterator[tuple[str, torch.Tensor, int, int]]:
        """Yield (table, local weight, first row, first column) of every sharded piece on this rank."""
        for module in self.module.modules():
            if isinstance(module, SHARDED):
                for key, value in module.state_dict().items():
                    table = key.split(".")[-2]
                    for shard in value.local_shards():
                        row, column = shard.metadata.shard_offsets
                        yield table, shard.tensor, row, column

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
        sparse, dense = self.recipe.optimizers.sparse.lr, self.recipe.optimizers.dense.lr
        rates = {"tables": sparse, "replicated": sparse, "dense": dense}
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rates[name] * factor


def check_device(recipe: Recipe, device: torch.device) -> None:
    """Raise BadInput for what a recipe asks and the device cannot do."""
    kind = recipe.optimizers.sparse.kind
    able = [name for name in OPTIMIZERS if device.type in OPTIMIZERS.owner(name).devices]
    if recipe.tables and kind not in able:
        raise BadInput(
            f"optimizers.sparse.kind: fbgemm has no fused {kind} on {device.type.upper()}; use {', '.join(able)}"
        )


def shard(recipe: Recipe, device: torch.device) -> Sharded:
    """Build the recipe's model, its tables sharded over the ranks of the default process group.

    Args:
        recipe: the run.
        device: this rank's device.

    Raises:
        BadInput: the tables do not fit the machines of cluster.topology, or the device cannot train them.
    """
    check_device(recipe, device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if recipe.train.precision == "tf32" else "highest")
    step, sharders = _fused(recipe, device)
    plan = planning.agree(recipe, device.type, step, sharders)
    module = DistributedModelParallel(
        step,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=device,
        plan=plan,
        sharders=sharders,
        init_data_parallel=False,
        init_parameters=False,
    )
    optimizers = _optimizers(recipe, module)
    dense, replicated = (
        list(optimizers[key].params.values()) if key in optimizers else [] for key in ("dense", "replicated")
    )
    combination = Combination(recipe, step.model, dense, replicated, device)
    # Replicated tables are tables: where one lies must not change whether its gradient is clipped.
    update = Update(optimizers, combination, dense, recipe.optimizers.dense.clip_norm)
    kind = DensePipeline
    if "tables" in optimizers:
        kind = CachedTablePipeline if planning.cached(plan) else TablePipeline
    pipeline = kind(module, update, device)
    sharded = Sharded(recipe, module, optimizers, pipeline, device)
    with torch.no_grad():
        for table, weight, row, column in sharded.shards():
            initial_values(recipe, table).fill(weight, row, column)
    return sharded


def dry_plan(recipe: Recipe, world: int, device: str) -> ShardingPlan:
    """Return the plan that `world` ranks would make for the recipe's tables, without those ranks.

    Args:
        recipe: the run.
        world: number of ranks.
        device: the ranks' device type, cpu or cuda.

    Raises:
        BadInput: the tables do not fit the machines of cluster.topology, or the device cannot train them.
    """
    check_device(recipe, torch.device(device))
    step, sharders = _fused(recipe, torch.device("meta"))
    return planning.make(recipe, world, device, step, sharders)


def _fused(recipe: Recipe, device: torch.device) -> tuple[Step, list[Any]]:
    """Return the step with an optimizer fused into every table, and the sharders for it."""
    step = Step(Model(recipe, device=device, tables_device="meta"), recipe)
    optimizer = table_optimizer(recipe.optimizers.sparse)
    apply_in_backward(
        optimizer.torch_class,
        [p for _, c in _sharded_collections(step) for p in c.parameters()],
        optimizer.arguments(),
    )
    # fbgemm ignores weight_decay unless it is told its kind.
    fused = {"weight_decay_mode": WeightDecayMode.L2, **optimizer.fused()}
    sharders = (EmbeddingCollectionSharder, BagSharder)
    return step, [sharder(dict(fused), _codecs(recipe)) for sharder in sharders]


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


def _optimizers(recipe: Recipe, module: DistributedModelParallel) -> dict[str, KeyedOptimizer]:
    replicated_paths = tuple(
        f"{path}." for path, child in module.module.named_modules() if isinstance(child, ReplicatedCollection)
    )
    rest = dict(in_backward_optimizer_filter(module.module.named_parameters()))
    replicated = {k: p for k, p in rest.items() if k.startswith(replicated_paths)} if replicated_paths else {}
    dense = {k: p for k, p in rest.items() if k not in replicated}
    out: dict[str, KeyedOptimizer] = {}
    if any(isinstance(m, SHARDED) for m in module.modules()):
        out["tables"] = module.fused_optimizer
    if replicated:
        table = table_optimizer(recipe.optimizers.sparse)
        out["replicated"] = KeyedOptimizerWrapper(replicated, lambda p: table.torch_class(p, **table.arguments()))
    d = recipe.optimizers.dense
    arguments = {"lr": d.lr, "weight_decay": d.weight_decay, "fused": True}  # one pass over each parameter
    out["dense"] = KeyedOptimizerWrapper(dense, lambda p: DENSE[d.kind](p, **arguments))
    for optimizer in out.values():
        if isinstance(optimizer, KeyedOptimizerWrapper):
            _make_state(optimizer)
    return out


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
