"""Step time of PCGrad over the plain sum, and over PCGrad as it is usually written.

    python benchmarks/gradients.py

The recipe is benchmarks/gradients.yaml (DIN below, CGC above) with 2, 4 and 8 tasks, on one rank and on two; batches of
2,048 rows per rank lie in memory, with histories of 0 to 50 events. A step is all of it: ids, lookups, forward,
backward, both optimizers. The sides of a comparison take turns in one process per rank, pinned to a core each, and
ratios are of neighbouring rounds.

    sum       one backward pass
    trunk     livetrain's PCGrad, scope trunk
    shared    livetrain's PCGrad, scope shared
    passes    the same gradients, one backward pass per task from its own loss over the same cut graph, and PCGrad on
              the vectors: what writing down the paper's algorithm at the cut costs
    whole     one backward pass, and every rank holds all tables whole (sharding: data_parallel)
    rows      the same tables, and livetrain's PCGrad, scope rows
    naive     tables are ordinary parameters, a whole backward pass per task, and PCGrad on the vectors of all
              parameters, as in public implementations. It needs every table whole on every rank

A kind's name is livetrain's combiner of that kind, scope trunk; --every compares all of them with the sum.
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
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Batch
from livetrain.modules.gradients.pcgrad import orders
from livetrain.modules.model import Model
from livetrain.trainers.runtime.process import set_up
from livetrain.trainers.runtime.ranks import seed_step
from livetrain.trainers.runtime.versions import versions
from livetrain.trainers.train import sharding
from livetrain.trainers.train.gradients import combination as combine
from livetrain.trainers.train.loss import Loss

CPU = torch.device("cpu")
# Processor time is what a machine that others use too can still tell; it leaves waiting for the other rank out.
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
SIDES = {
    "sum": {},
    "trunk": {"kind": "pcgrad", "scope": "trunk"},
    "shared": {"kind": "pcgrad", "scope": "shared"},
    "passes": {"kind": "pcgrad", "scope": "shared"},
    "whole": {},
    "rows": {"kind": "pcgrad", "scope": "rows"},
    "naive": {},
}
EVERY = ("pcgrad", "upgrad", "cagrad", "mgda", "nash_mtl", "imtl_g", "aligned_mtl", "gradnorm", "famo", "uncertainty")
SIDES |= {kind: {"kind": kind, "scope": "trunk"} for kind in EVERY}
WHOLE = ("whole", "rows")  # sides whose tables every rank holds whole


def recipe_of(tasks: int, world: int, side: str) -> Recipe:
    """Return the benchmark's recipe for a side, with so many tasks and 2,048 rows per rank."""
    recipe = load_recipe(Path(__file__).with_suffix(".yaml"))
    content = recipe.model_dump()
    content["tasks"] = {f"task{i}": {"label": f"label{i}"} for i in range(tasks)}
    content["gradients"] = SIDES[side]
    for table in content["tables"].values() if side in WHOLE else ():
        table["sharding"] = "data_parallel"
    content["data"]["batch_size"] *= world
    content["cluster"]["workers"] = world
    return Recipe.model_validate(content)


def batches(recipe: Recipe, count: int, rank: int, world: int) -> list[Batch]:
    """Make a rank's batches: skewed ids, histories of 0 to max_length events, labels that contradict each other."""
    generator = torch.Generator().manual_seed(rank)
    size, tasks = recipe.data.batch_size // world, len(recipe.tasks)
    keyed = {name: f for name, f in recipe.features.items() if f.carrier == "ids"}
    out = []
    for _ in range(count):
        shared = torch.randint(0, 51, (size,), generator=generator)
        lengths, values = [], []
        for feature in keyed.values():
            length = shared if feature.form == "sequence" else torch.ones(size, dtype=torch.long)
            skewed = torch.rand(int(length.sum()), generator=generator) ** 3
            lengths.append(length)
            values.append((skewed * recipe.tables[feature.table].rows).long())
        labels = (torch.rand(size, tasks, generator=generator) < 0.3).float()
        labels[:, 1] = 1 - labels[:, 0]
        out.append(
            Batch(
                KeyedJaggedTensor(keys=list(keyed), values=torch.cat(values), lengths=torch.cat(lengths)),
                torch.randn(size, len(recipe.features) - len(keyed), generator=generator),
                labels,
                torch.ones(size),
                torch.arange(size),
            )
        )
    return out


def project_vectors(rows: list[Tensor], order: Tensor, inner) -> Tensor:
    """PCGrad's algorithm as published, on vectors; `inner` gives inner products over all ranks."""
    total = torch.zeros_like(rows[0])
    for i, others in enumerate(order.tolist()):
        g = rows[i].clone()
        for j in others:
            if j != i and (product := inner(g, rows[j])) < 0:
                g -= product / inner(rows[j], rows[j]) * rows[j]
        total += g
    return total


class Passes(combine.Combination):
    """PCGrad at the cut, written down as in the paper: a pass per task, then vectors."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._whole = False  # a pass goes from the logits to the embeddings, with no cut at the trunk's input

    def _several_passes(self, losses: Tensor) -> None:
        split, leaves = self._split(), [leaf for _, leaf in self._compared()]
        starts = torch.autograd.grad(losses.sum(), [leaf for _, leaf in self._logits])
        rows, own = [], []
        for task, ((logits, _), start) in enumerate(zip(self._logits, starts, strict=True)):
            inputs = [*split.shared, *leaves, *split.own[task]]
            found = torch.autograd.grad(
                logits, inputs, start, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            dense = self._average(list(found[: len(split.shared)]))
            at_cut = found[len(split.shared) :][: len(leaves)]
            rows.append(torch.cat([g.reshape(-1) for g in (*dense, *at_cut)]))
            own += found[len(inputs) - len(split.own[task]) :]
        border = sum(p.numel() for p in split.shared)

        def inner(a: Tensor, b: Tensor) -> float:
            here = (a[border:] @ b[border:]).reshape(1)
            return float(a[:border] @ b[:border] + self._average([here])[0] / dist.get_world_size())

        total = project_vectors(rows, orders(len(rows), 1, self.step), inner)
        parts = total.split([p.numel() for p in (*split.shared, *leaves)])
        for parameter, part in zip(split.shared, parts, strict=False):
            parameter.grad = part.view_as(parameter)
        for parameter, gradient in zip((p for each in split.own for p in each), self._average(own), strict=True):
            parameter.grad = gradient
        below = zip(self._embeddings.items(), parts[len(split.shared) :], strict=True)
        self._below({name: part.view_as(leaf) for (name, (_, leaf)), part in below}, [])


class Sharded:
    """livetrain's step, with its own combination or another one."""

    def __init__(self, recipe: Recipe, data: list[Batch], combination: type = combine.Combination) -> None:
        usual, sharding.Combination = sharding.Combination, combination
        self.sharded = sharding.shard(recipe, CPU)
        sharding.Combination = usual
        self.sharded.module.train()
        self.feed = itertools.cycle(data)

    def steps(self, count: int) -> None:
        for step in range(count):
            self.sharded.set_rates(1.0)
            seed_step(1, step)
            self.sharded.pipeline.progress(self.feed)


class Naive:
    """Ordinary tables, replicated; a backward pass per task through everything; PCGrad on vectors of all parameters."""

    def __init__(self, recipe: Recipe, data: list[Batch]) -> None:
        self.model, self.loss = Model(recipe).train(), Loss(recipe)
        dense = list(self.model.dense.parameters())
        tables = list(self.model.tables.parameters())
        self.parameters = dense + tables
        self.optimizers = [torch.optim.Adam(dense, lr=1e-3), torch.optim.Adagrad(tables, lr=0.02)]
        self.feed, self.step = itertools.cycle(data), 0

    def steps(self, count: int) -> None:
        for _ in range(count):
            batch = next(self.feed)
            losses, _ = self.loss(self.model(batch.ids, batch.dense, batch.weights), batch)
            rows = []
            for loss in losses:
                found = torch.autograd.grad(loss, self.parameters, retain_graph=True, materialize_grads=True)
                rows.append(torch.cat([g.reshape(-1) for g in found]))
                if dist.get_world_size() > 1:
                    dist.all_reduce(rows[-1])
                    rows[-1] /= dist.get_world_size()
            total = project_vectors(rows, orders(len(rows), 1, self.step), lambda a, b: float(a @ b))
            parts = total.split([p.numel() for p in self.parameters])
            for parameter, part in zip(self.parameters, parts, strict=True):
                parameter.grad = part.view_as(parameter)
            for optimizer in self.optimizers:
                optimizer.step()
            self.step += 1


def side_of(name: str, tasks: int, world: int, data: list[Batch]):
    recipe = recipe_of(tasks, world, name)
    if name == "naive":
        return Naive(recipe, data)
    return Sharded(recipe, data, Passes if name == "passes" else combine.Combination)


def rank_main(rank: int, world: int, store: str, given: argparse.Namespace, answers) -> None:
    """Run the rounds on one rank; rank 0 sends milliseconds per step of each round, by tasks and side."""
    set_up()
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    out = {}
    for tasks in given.tasks:
        data = batches(recipe_of(tasks, world, "sum"), 4, rank, world)
        sides = {name: side_of(name, tasks, world, data) for name in given.sides}
        times: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(given.rounds + 1):
            for name, side in sides.items():
                dist.barrier()
                start = CLOCKS[given.clock]()
                side.steps(given.steps)
                dist.barrier()
                if turn:  # the first round warms up
                    times[name].append(1e3 * (CLOCKS[given.clock]() - start) / given.steps)
        out[tasks] = times
    if rank == 0:
        answers.put(out)
        answers.close()
        answers.join_thread()
    os._exit(0)  # the pipelines' half-used batches need no goodbye


def measure(world: int, given: argparse.Namespace) -> dict[int, dict[str, list[float]]]:
    """Return milliseconds per step of every round, by number of tasks and side."""
    context = torch.multiprocessing.get_context("spawn")
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=rank_main, args=(rank, world, f"{folder}/store", given, answers))
            for rank in range(world)
        ]
        for process in ranks:
            process.start()
        found = answers.get(timeout=given.timeout)
        for process in ranks:
            process.join(30)
    return found


def ratio(times: dict[str, list[float]], side: str, over: str) -> str:
    """Return the median, and the range, of a side's time over another's."""
    if side not in times or over not in times:
        return "-"
    values = [a / b for a, b in zip(times[side], times[over], strict=True)]
    return f"{statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"


def main() -> None:
    set_up()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--world", type=int, nargs="+", default=[1, 2])
    usual = [name for name in SIDES if name not in EVERY]
    parser.add_argument("--sides", nargs="+", default=usual, choices=list(SIDES))
    parser.add_argument(
        "--every", action="store_true", help="instead of --sides, every kind of combiner beside the sum"
    )
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--steps", type=int, default=3, help="a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--timeout", type=int, default=900, help="seconds for one number of ranks")
    given = parser.parse_args()
    if given.every:
        given.sides = ["sum", *EVERY]
    found = {world: measure(world, given) for world in given.world}
    print(f"Command: `python {' '.join(sys.argv)}`, {datetime.date.today()}, {os.cpu_count()} cores; {versions()}\n")
    pairs = [("trunk", "sum"), ("shared", "sum"), ("shared", "passes"), ("shared", "naive"), ("naive", "sum")]
    pairs += [("whole", "sum"), ("rows", "whole"), ("rows", "naive")]
    pairs += [(kind, "sum") for kind in EVERY]
    pairs = [pair for pair in pairs if {*pair} <= {*given.sides}]
    print("| ranks | tasks | sum, ms | " + " | ".join(f"{a} / {b}" for a, b in pairs) + " |")
    print("| --- " * (3 + len(pairs)) + "|")
    for world, by_tasks in found.items():
        for tasks, times in by_tasks.items():
            alone = f"{statistics.median(times['sum']):.0f}" if "sum" in times else "-"
            print(f"| {world} | {tasks} | {alone} | " + " | ".join(ratio(times, *pair) for pair in pairs) + " |")


if __name__ == "__main__":
    main()
