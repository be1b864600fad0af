"""How long a plan takes, and how even it is, beside torchrec's own planner.

    python benchmarks/planner.py [--ranks 8,64,256,1024] [--tables 22,220] [--torchrec 8,64]

Tables and features are drawn from a seed: rows from 10 to 100 million in equal parts by their logarithm, one in four
looked up by a list of 100 at most, all of 64 columns with row-wise Adagrad, for H100 nodes of 8 GPUs, 64,000 rows per
step. The k-th of a hundred frequent ids is a twentieth / k of a feature's. Tables that livetrain lays on every rank
(see trainers.train.replication) are left out. Times are processor time of one thread, without the imports; "with
shards" adds torchrec's description of every shard, which a rank needs. Evenness is the bytes that the busiest rank
looks up over the mean. torchrec's planner gets the same tables, machines and choices, but cannot be told which ids
are frequent, and is stopped after `--patience` seconds.
"""

import argparse
import math
import multiprocessing
import random
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection

from livetrain.configs.schema import Recipe
from livetrain.trainers.data.read.lookups import Looked, assumed
from livetrain.trainers.runtime.process import set_up
from livetrain.trainers.runtime.versions import versions
from livetrain.trainers.train import planning
from livetrain.trainers.train.layout.plan import Place, Plan
from livetrain.trainers.train.replication import settled

_ROWS = 64_000  # of a step


def drawn(tables: int, seed: int = 0) -> Recipe:
    """Return a recipe of so many tables."""
    draw = random.Random(seed)
    names = [f"t{number:03}" for number in range(tables)]
    kinds = [{"type": "sequence", "max_length": 100} if number % 4 == 3 else {"type": "id"} for number in range(tables)]
    return Recipe.model_validate(
        {
            "data": {"path": "nowhere", "batch_size": _ROWS, "shards": 1000},
            "features": {name: {"table": name, **kind} for name, kind in zip(names, kinds, strict=True)},
            "tables": {name: {"rows": int(10 ** draw.uniform(1, 8)), "dim": 64} for name in names},
            "model": {"kind": "dnn", "units": [256]},
            "tasks": {"click": {"label": "label"}},
            "cluster": {"workers": 1, "device": "cuda"},
        }
    )


def known(recipe: Recipe) -> dict[str, Looked]:
    """Return what is known of ids: the k-th frequent one is a twentieth / k of all, the other rows are alike."""
    share = 0.05 / np.arange(1, 101)
    return {name: replace(assumed(f), ids=np.arange(100), share=share) for name, f in recipe.features.items()}


def ours(recipe: Recipe, world: int) -> dict[str, Any]:
    """Plan with livetrain."""
    begun = time.process_time()
    plan = planning.make(recipe, world, "cuda", known(recipe))
    planned = time.process_time()
    planning.for_torchrec(recipe, plan, dict.fromkeys(plan.tables, "tables"))
    kinds = [place.sharding for place in plan.tables.values()]
    return {
        "seconds": planned - begun,
        "with shards": time.process_time() - begun,
        "table-wise": kinds.count("table_wise"),
        "row-wise": kinds.count("row_wise"),
        "busiest / mean": evenness(recipe, plan),
    }


def theirs(recipe: Recipe, world: int) -> dict[str, Any]:
    """Plan with torchrec's planner, given the same machines, choices and lengths of lists."""
    at = recipe.cluster.topology
    tables = {name: table for name, table in settled(recipe, world).tables.items() if table.sharding == "auto"}
    configs = [
        EmbeddingConfig(name=name, num_embeddings=table.rows, embedding_dim=table.dim, feature_names=[name])
        for name, table in tables.items()
    ]
    module = nn.ModuleDict({"tables": EmbeddingCollection(tables=configs, device=torch.device("meta"))})
    machines = Topology(
        world_size=world,
        compute_device="cuda",
        hbm_cap=int(at.hbm_gb * 1024**3),
        ddr_cap=int(at.ddr_gb * 1024**3),
        local_world_size=min(at.workers_per_node, world),
        hbm_mem_bw=at.hbm_gb_s * 1e6,  # bytes per millisecond
        ddr_mem_bw=at.ddr_gb_s * 1e6,
        intra_host_bw=at.intra_gb_s * 1e6,
        inter_host_bw=at.inter_gb_s * 1e6,
    )
    allowed = {
        name: ParameterConstraints(
            sharding_types=["table_wise", "row_wise"],
            compute_kernels=["fused"],
            pooling_factors=[assumed(recipe.features[name]).mean],
        )
        for name in tables
    }
    planner = EmbeddingShardingPlanner(
        topology=machines, batch_size=recipe.data.batch_size // world, constraints=allowed, debug=False, stats=[]
    )
    begun = time.process_time()
    try:
        plan: ShardingPlan = planner.plan(module, [EmbeddingCollectionSharder()])
    except PlannerError:
        return {"seconds": time.process_time() - begun, "found": "none fits"}
    found = plan.plan["tables"]
    places = {name: Place(how.sharding_type, how.compute_kernel, tuple(how.ranks)) for name, how in found.items()}
    kinds = [how.sharding_type for how in found.values()]
    return {
        "with shards": time.process_time() - begun,
        "table-wise": kinds.count("table_wise"),
        "row-wise": kinds.count("row_wise"),
        "busiest / mean": evenness(recipe, Plan(world, "cuda", places)),
    }


def evenness(recipe: Recipe, plan: Plan) -> float:
    """Return how many times the mean the busiest rank looks up."""
    served = planning.served(recipe, plan, known(recipe))
    return float(served.max() / served.mean())


def stopped(plan: Callable[..., dict[str, Any]], recipe: Recipe, world: int, patience: int) -> dict[str, Any]:
    """Return what a planner tells in a process of its own, or that it did not end in so much processor time."""
    context = multiprocessing.get_context("fork")
    mine, its = context.Pipe(duplex=False)

    def run() -> None:
        used = math.ceil(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (used + patience, used + patience))
        its.send(plan(recipe, world))

    process = context.Process(target=run)
    process.start()
    its.close()
    try:
        return mine.recv()
    except EOFError:
        return {"with shards": f"more than {patience}"}
    finally:
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="8,64,256,1024")
    parser.add_argument("--tables", default="22,220")
    parser.add_argument("--torchrec", default="8,64", help="numbers of ranks for torchrec's planner")
    parser.add_argument("--patience", type=int, default=300, help="seconds of processor time for torchrec's")
    given = parser.parse_args()
    set_up()
    torch.set_num_threads(1)
    print(", ".join(f"{package} {number}" for package, number in versions().items()) + "\n")
    columns = ("seconds", "with shards", "table-wise", "row-wise", "busiest / mean")
    print("| tables | ranks | planner | " + " | ".join(columns) + " |")
    print("| --- " * (3 + len(columns)) + "|")
    for tables in map(int, given.tables.split(",")):
        recipe = drawn(tables)
        for world in map(int, given.ranks.split(",")):
            told = {"livetrain": ours(recipe, world)}
            if str(world) in given.torchrec.split(","):
                told["torchrec"] = stopped(theirs, recipe, world, given.patience)
            for name, own in told.items():
                cells = (own.get(column, "") for column in columns)
                written = (f"{cell:,.2f}" if isinstance(cell, float) else str(cell) for cell in cells)
                print(f"| {tables} | {world} | {name} | " + " | ".join(written) + " |", flush=True)


if __name__ == "__main__":
    main()
