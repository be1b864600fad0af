"""A plain model becomes a sharded one: plan, shards with fused optimizers, dense optimizer, pipeline.

What is computed stays what plain PyTorch computes on the global batch. Three facts keep it so: the loss divides by the
all-reduced number of rows and is multiplied by the number of ranks (torchrec averages table gradients over ranks);
dense gradients are averaged in one flat all-reduce; initial table rows depend on (seed, table, row) alone.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_in_backward
from torchrec.distributed.embedding import EmbeddingCollectionSharder, ShardedEmbeddingCollection
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import BoundsCheckMode, CacheParams, ShardingEnv, ShardingPlan
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from configs.errors import BadInput
from configs.schema import Recipe, SequenceFeature
from modules.model import Model, ReplicatedCollection, initial_values
from trainers import ranks
from trainers.combine import Combination
from trainers.step import CachedTablePipeline, DensePipeline, Step, TablePipeline

SPARSE = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
}
_CACHED = "fused_uvm_caching"
_KERNELS = {"auto": ["fused", _CACHED], "gpu": ["fused"], "host": [_CACHED]}
DENSE = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}


@dataclass
class Sharded:
    """A model ready to train: everything that a checkpoint keeps, and the pipeline that steps it."""

    recipe: Recipe
    module: DistributedModelParallel
    optimizers: dict[str, torch.optim.Optimizer]  # "tables" (fused), "dense", "replicated": those that exist
    pipeline: TablePipeline | CachedTablePipeline | DensePipeline
    device: torch.device

    @property
    def model(self) -> Model:
        return self.module.module.model

    def plan(self) -> dict[str, dict[str, object]]:
        """Return {table: {sharding, ranks}} as planned, for people and checkpoints."""
        out = {}
        for collection in self.module.plan.plan.values():
            for table, how in collection.items():
                out[table] = {"sharding": how.sharding_type, "ranks": sorted(set(how.ranks or []))}
        for path, collection in self.model.tables.items():
            if path.endswith("replicated"):
                out |= {table: {"sharding": "data_parallel", "ranks": "all"} for table in collection.embeddings}
        return out

    def shards(self) -> Iterator[tuple[str, torch.Tensor, int, int]]:
        """Yield (table, local weight, first row, first column) of every sharded piece on this rank."""
        for module in self.module.modules():
            if isinstance(module, ShardedEmbeddingCollection):
                for key, value in module.state_dict().items():
                    table = key.split(".")[-2]
                    for shard in value.local_shards():
                        row, column = shard.metadata.shard_offsets
                        yield table, shard.tensor, row, column

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
    if device.type == "cpu" and recipe.optimizers.sparse.kind == "adam" and recipe.tables:
        raise BadInput("optimizers.sparse.kind: fbgemm has no fused adam on CPU; use rowwise_adagrad, adagrad or sgd")


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
    plan = _plan(recipe, step, sharders, device)
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
    combined = CombinedOptimizer(list(optimizers.items()))
    if "tables" in optimizers:
        kind = CachedTablePipeline if _cached(plan) else TablePipeline
        pipeline = kind(module, combined, device, pipeline_postproc=True)
    else:
        pipeline = DensePipeline(module, combined, device)
    combination = Combination(recipe, step.model, dense, replicated, device)
    pipeline.settle(combination, dense + replicated, recipe.optimizers.dense.clip_norm)
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
    with _fitting(world):
        return _planner(recipe, world, device).plan(step, sharders)


def _fused(recipe: Recipe, device: torch.device) -> tuple[Step, list[EmbeddingCollectionSharder]]:
    """Return the step with an optimizer fused into every table, and the sharders for it."""
    step = Step(Model(recipe, device=device, tables_device="meta"), recipe)
    apply_in_backward(
        SPARSE[recipe.optimizers.sparse.kind],
        [p for _, c in _sharded_collections(step) for p in c.parameters()],
        _sparse_arguments(recipe),
    )
    # fbgemm ignores weight_decay unless it is told its kind.
    return step, [EmbeddingCollectionSharder({"weight_decay_mode": WeightDecayMode.L2}, _codecs(recipe))]


def _sharded_collections(module: nn.Module) -> Iterator[tuple[str, EmbeddingCollection]]:
    for path, child in module.named_modules():
        if type(child) is EmbeddingCollection:
            yield path, child


def _sparse_arguments(recipe: Recipe) -> dict[str, float]:
    sparse = recipe.optimizers.sparse
    arguments = {"lr": sparse.lr}
    if sparse.kind != "sgd":
        arguments["eps"] = sparse.eps
    if sparse.weight_decay:
        arguments["weight_decay"] = sparse.weight_decay
    return arguments


def _codecs(recipe: Recipe):
    kind = recipe.cluster.quantize_comms
    if kind == "none":
        return None
    forward = CommType.FP16 if kind == "fp16" else CommType.BF16
    # Gradients need bf16's range; activations can spend the bits on precision.
    return get_qcomm_codecs_registry(QCommsConfig(forward_precision=forward, backward_precision=CommType.BF16))


def topology(recipe: Recipe, world: int, device: str) -> Topology:
    """Return the planner's view of cluster.topology; bandwidths in bytes per millisecond as torchrec counts them."""
    t = recipe.cluster.topology
    giga, per_ms = 1024**3, 1e9 / 1e3
    return Topology(
        world_size=world,
        compute_device=device,
        hbm_cap=int(t.hbm_gb * giga),
        ddr_cap=int(t.ddr_gb * giga),
        local_world_size=min(t.workers_per_node, world),
        hbm_mem_bw=t.hbm_gb_s * per_ms,
        ddr_mem_bw=t.ddr_gb_s * per_ms,
        intra_host_bw=t.intra_gb_s * per_ms,
        inter_host_bw=t.inter_gb_s * per_ms,
    )


def constraints(recipe: Recipe, world: int, device: str) -> dict[str, ParameterConstraints]:
    """Return each sharded table's allowed sharding and kernels, and its expected ids a row, for the planner.

    Args:
        recipe: declares the tables.
        world: number of ranks; one alone has nobody to share a table's rows with.
        device: "cpu" or "cuda".
    """
    free, out = ["table_wise", "row_wise"] if world > 1 else ["table_wise"], {}
    for name, table in recipe.tables.items():
        if table.sharding == "data_parallel":
            continue
        # Column-wise and data-parallel are never chosen unasked: both may change what is learned.
        allowed = free if table.sharding == "auto" else [table.sharding]
        users = [f for f in recipe.features.values() if getattr(f, "table", None) == name]
        lengths = [float(f.max_length) / 2 if isinstance(f, SequenceFeature) else 1.0 for f in users]
        out[name] = ParameterConstraints(
            sharding_types=allowed,
            compute_kernels=_KERNELS[table.memory] if device == "cuda" else ["fused"],
            cache_params=CacheParams(load_factor=table.cache, prefetch_pipeline=True) if device == "cuda" else None,
            pooling_factors=lengths,
            bounds_check_mode=BoundsCheckMode.NONE,
        )
    return out


def _plan(recipe: Recipe, step: nn.Module, sharders: list, device: torch.device) -> ShardingPlan:
    world = ranks.world()
    with _fitting(world):
        return _planner(recipe, world, device.type).collective_plan(step, sharders, dist.group.WORLD)


def _planner(recipe: Recipe, world: int, device: str) -> EmbeddingShardingPlanner:
    return EmbeddingShardingPlanner(
        topology=topology(recipe, world, device),
        batch_size=recipe.data.batch_size // world,
        constraints=constraints(recipe, world, device),
        debug=False,
        stats=[],
    )


@contextlib.contextmanager
def _fitting(world: int) -> Iterator[None]:
    try:
        yield
    except PlannerError as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(
            f"tables: no sharding plan fits {world} workers of cluster.topology ({reason}); "
            "add workers, lower rows or dim, or correct hbm_gb and ddr_gb"
        ) from error


def _cached(plan: ShardingPlan) -> bool:
    """Return whether a table lies in host memory behind a GPU cache."""
    return any(how.compute_kernel == _CACHED for tables in plan.plan.values() for how in tables.values())


def _optimizers(recipe: Recipe, module: DistributedModelParallel) -> dict[str, torch.optim.Optimizer]:
    replicated_paths = tuple(
        f"{path}." for path, child in module.module.named_modules() if isinstance(child, ReplicatedCollection)
    )
    rest = dict(in_backward_optimizer_filter(module.module.named_parameters()))
    replicated = {k: p for k, p in rest.items() if k.startswith(replicated_paths)} if replicated_paths else {}
    dense = {k: p for k, p in rest.items() if k not in replicated}
    out: dict[str, torch.optim.Optimizer] = {}
    if any(isinstance(m, ShardedEmbeddingCollection) for m in module.modules()):
        out["tables"] = module.fused_optimizer
    if replicated:
        make, arguments = SPARSE[recipe.optimizers.sparse.kind], _sparse_arguments(recipe)
        out["replicated"] = KeyedOptimizerWrapper(replicated, lambda p: make(p, **arguments))
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
