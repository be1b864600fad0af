"""livetrain's whole step against a bare torchrec loop, and 2 ranks against 1.

    python benchmarks/trainer.py configs/recipes/din_ml1m.yaml

"livetrain" is a run as it is: Parquet decoded, shuffled and joined, ids hashed, weighted loss, metrics, learning-rate
schedule. "bare" is what torchrec's examples show: DistributedModelParallel with DDP around the same network,
TrainPipelineSparseDist, a mean loss, on batches that lie in memory, hashed already. Ranks are processes pinned to one
core each; the two take turns, and ratios are of neighbouring rounds. Weak scaling: every rank has the batch of one.
The ratio by processor time, the reader's threads included, says more where other programs run.
"""

import argparse
import datetime
import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_in_backward
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe
from livetrain.modules.model import Model, set_statistics
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.statistics import Statistics, scan
from livetrain.trainers.runtime.process import set_up
from livetrain.trainers.runtime.ranks import seed_step
from livetrain.trainers.runtime.versions import versions
from livetrain.trainers.train.feed import Meter
from livetrain.trainers.train.loop import Job, Trainer

CPU = torch.device("cpu")


class Ours:
    """A Trainer, stepped from its own reader."""

    def __init__(self, recipe: Recipe, statistics_: Statistics) -> None:
        job = Job(recipe, Path(recipe.data.path), {"train": Source.open(recipe, "train")}, statistics_)
        self.trainer = Trainer(job, CPU)
        self.trainer.sharded.module.train()
        self.batches = self.trainer.reader.batches(0)
        self.meter = Meter()

    def steps(self, count: int) -> None:
        for step in range(count):
            self.trainer.sharded.set_rates(1.0)
            seed_step(1, step)
            self.meter.add(self.trainer.sharded.pipeline.progress(self.batches))
        self.meter.read(0.0)


class Bare(nn.Module):
    """The same network as a torchrec example would train it."""

    def __init__(self, recipe: Recipe, statistics_: Statistics, batches: list) -> None:
        super().__init__()
        model = Model(recipe, tables_device="meta")
        set_statistics(model, statistics_.mean, statistics_.std, statistics_.quantiles)
        self.model, self.task = model, next(iter(recipe.tasks))
        for batch in batches:
            batch.ids = model.hash(batch.ids)
        model.hash = nn.Identity()
        sparse = recipe.optimizers.sparse
        apply_in_backward(RowWiseAdagrad, model.tables.parameters(), {"lr": sparse.lr, "eps": sparse.eps})
        sharders = [EmbeddingCollectionSharder()]
        ways = ParameterConstraints(sharding_types=["table_wise", "row_wise"], compute_kernels=["fused"])
        planner = EmbeddingShardingPlanner(
            topology=Topology(world_size=dist.get_world_size(), compute_device="cpu"),
            batch_size=batches[0].weights.shape[0],
            constraints=dict.fromkeys(recipe.tables, ways),
        )
        plan = planner.collective_plan(self, sharders, dist.group.WORLD)
        sharded = DistributedModelParallel(self, device=CPU, plan=plan, sharders=sharders)
        dense = dict(in_backward_optimizer_filter(sharded.named_parameters()))
        adam = KeyedOptimizerWrapper(dense, lambda p: torch.optim.Adam(p, lr=recipe.optimizers.dense.lr))
        optimizer = CombinedOptimizer([sharded.fused_optimizer, adam])
        self.pipeline = [TrainPipelineSparseDist(sharded, optimizer, CPU)]
        self.batches = itertools.cycle(batches)

    def forward(self, batch):
        logits = self.model(batch.ids, batch.dense, None)[self.task]
        return nn.functional.binary_cross_entropy_with_logits(logits, batch.labels[:, 0]), logits.detach()

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.pipeline[0].progress(self.batches)


def rank_main(rank: int, world: int, store: str, given: argparse.Namespace, answers) -> None:
    """Run the rounds on one rank; rank 0 sends the seconds of each."""
    set_up()
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    recipe = recipe_of(given, world)
    source = Source.open(recipe, "train")
    figures = scan(source, recipe)
    sides = {"livetrain": Ours(recipe, figures)}
    reader = sides["livetrain"].trainer.reader
    sides["bare torchrec"] = Bare(recipe, figures, list(reader.batches(1, 0, 20)))
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}  # wall and processor, of a round
    for turn in range(given.rounds + 1):
        for name, side in sides.items():
            dist.barrier()
            start, busy = time.perf_counter(), time.process_time()
            side.steps(given.steps)
            busy = time.process_time() - busy
            dist.barrier()
            if turn:  # the first round warms up
                seconds[name].append((time.perf_counter() - start, busy))
    if rank == 0:
        rows = given.steps * recipe.data.batch_size
        answers.put({name: [(rows / a, rows / b) for a, b in times] for name, times in seconds.items()})
        answers.close()
        answers.join_thread()
    os._exit(0)  # the reader's and the pipeline's half-used batches need no goodbye


def recipe_of(given: argparse.Namespace, world: int) -> Recipe:
    """Return the recipe with one rank's batch per rank."""
    batch = load_recipe(given.recipe).data.batch_size
    return load_recipe(given.recipe, [f"data.batch_size={batch * world}", f"cluster.workers={world}", *given.overrides])


def measure(world: int, given: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Return rows/s of all ranks and rows per processor second of rank 0, of every round, by side."""
    context = torch.multiprocessing.get_context("spawn")
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world, f"{folder}/store", given, answers)
        ranks = [context.Process(target=rank_main, args=(rank, *arguments)) for rank in range(world)]
        for process in ranks:
            process.start()
        found = answers.get(timeout=given.timeout)
        for process in ranks:
            process.join(30)
    return found


def spread(values: list[float], digits: int = 0) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} - {max(values):,.{digits}f})"


def main() -> None:
    set_up()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="changes to the recipe, as in livetrain train")
    parser.add_argument("--steps", type=int, default=20, help="a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--timeout", type=int, default=600, help="seconds for all rounds of one number of ranks")
    given = parser.parse_args()
    found = {world: measure(world, given) for world in (1, 2)}
    print(f"Command: `python {' '.join(sys.argv)}`, {datetime.date.today()}, {os.cpu_count()} cores; {versions()}\n")
    print("| ranks | livetrain, rows/s | bare torchrec, rows/s | livetrain / bare | by rank 0's processor time |")
    print("| --- " * 5 + "|")
    for world, sides in found.items():
        pairs = list(zip(sides["livetrain"], sides["bare torchrec"], strict=True))
        ratios = [spread([ours[kind] / bare[kind] for ours, bare in pairs], 2) for kind in (0, 1)]
        rates = [spread([wall for wall, _ in side]) for side in sides.values()]
        print(f"| {world} | {' | '.join(rates + ratios)} |")
    for name in found[1]:
        one, two = (statistics.median(wall for wall, _ in found[world][name]) for world in (1, 2))
        print(f"\nWeak scaling of {name} from 1 to 2 ranks: {two / one / 2:.2f}")


if __name__ == "__main__":
    main()
