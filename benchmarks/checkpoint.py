"""What a checkpoint costs training: written in the background, against one that training waits for.

    python benchmarks/checkpoint.py configs/recipes/din_ml1m.yaml

Two ranks are processes with gloo, pinned to one core each, so that a write has no core of its own. The movie table is
made large (--rows) and row-wise; ids are drawn uniformly. In a round every way takes its turn:

- blocking: the live state written, synced, hashed and committed while training waits;
- background: `Saver.save`, then steps until every rank's write is done. "stall" is the time until `save` returns;
  "slower steps" is what the steps during the write took beyond as many free steps, measured just before;
- background, not niced: the same with the writing thread at training's own priority.

Figures are of the slowest rank, medians over rounds with the lowest and highest in brackets; ratios are of one round.
Every rank allocates its buffers in the first save, which is told apart.
"""

import argparse
import datetime
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Batch
from livetrain.trainers.runtime import ranks, run_folder
from livetrain.trainers.runtime.process import set_up
from livetrain.trainers.runtime.versions import versions
from livetrain.trainers.train import checkpoint
from livetrain.trainers.train.sharding import Sharded, shard

CPU = torch.device("cpu")
NICE = {"background": checkpoint.NICE, "background, not niced": 0}


def batch_of(recipe: Recipe, seed: int) -> Batch:
    """Return one rank's batch of uniformly drawn ids, half of every history full."""
    draw = torch.Generator().manual_seed(seed)
    rows = recipe.data.batch_size // ranks.world()
    ids = {name: f for name, f in recipe.features.items() if f.carrier == "ids"}
    lengths = [f.max_length // 2 if f.form == "sequence" else 1 for f in ids.values()]
    kjt = KeyedJaggedTensor(
        keys=list(ids),
        values=torch.randint(1 << 40, (rows * sum(lengths),), generator=draw),
        lengths=torch.tensor(lengths).repeat_interleave(rows),
    )
    dense = torch.randn(rows, len(recipe.features) - len(ids), generator=draw)
    labels = torch.randint(2, (rows, len(recipe.tasks)), generator=draw).float()
    return Batch(kjt, dense, labels, torch.ones(rows), torch.arange(rows))


class Clock:
    """Seconds since all ranks were here: by the wall clock and of this process's processor time; the worst rank's."""

    def __init__(self) -> None:
        dist.barrier()
        self.started = time.perf_counter(), time.process_time()

    def stop(self) -> "Clock":
        seconds = time.perf_counter() - self.started[0], time.process_time() - self.started[1]
        self.wall, self.cpu = (max(of_all) for of_all in zip(*ranks.gather(seconds), strict=True))
        return self


class Bench:
    """One rank: its model and its batches."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder, self.count = recipe, folder, 0
        self.sharded: Sharded = shard(recipe, CPU)
        self.sharded.module.train()
        self.batches = itertools.cycle([batch_of(recipe, 100 * ranks.rank() + i) for i in range(8)])
        self.steps_until(lambda taken: taken == 5)

    def steps_until(self, done: Callable[[int], bool]) -> tuple[int, Clock]:
        """Train until `done(steps taken)` on every rank; return the steps and their time."""
        taken, over, clock = 0, False, Clock()
        while not over:
            self.sharded.pipeline.progress(self.batches)
            taken += 1
            over = ranks.summed(torch.tensor([int(done(taken))])).item() == ranks.world()
        return taken, clock.stop()

    def blocking(self) -> dict[str, float]:
        self.count += 1
        content = {"step": self.count, "position": {"best_step": None}, "recipe": {"train": {"keep": 1}}}
        clock = Clock()
        checkpoint.write(checkpoint.state(self.sharded), self.folder, content, dist.group.WORLD)
        clock.stop()
        return {"stall": clock.wall, "cpu": clock.cpu}

    def background(self, saver: checkpoint.Saver, nice: int, free: int) -> dict[str, float]:
        """Measure one background save, after `free` steps without one."""
        checkpoint.NICE = nice
        steps, clock = self.steps_until(lambda taken: taken == free)
        step, step_cpu = clock.wall / steps, clock.cpu / steps
        self.count += 1
        clock = Clock()
        saver.save(self.count, {"best_step": None})
        stall = clock.stop()
        steps, clock = self.steps_until(lambda taken: not saver._thread.is_alive())
        saver.wait()
        return {
            "stall": stall.wall,
            "stall_cpu": stall.cpu,
            "write": clock.wall,
            "slower": clock.wall - steps * step,
            "times": clock.wall / steps / step,
            "cpu": stall.cpu + clock.cpu - steps * step_cpu,
        }


def rank_main(rank: int, store: str, given: argparse.Namespace, answers) -> None:
    """Run the rounds on one rank; rank 0 sends the figures of each."""
    set_up()
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}/store", rank=rank, world_size=2)
    bench = Bench(recipe_of(given), Path(store))
    rounds: list[dict[str, dict[str, float]]] = []
    with checkpoint.Saver(bench.sharded, bench.recipe, bench.folder) as saver:
        first = bench.background(saver, checkpoint.NICE, given.free)["stall"]
        bench.blocking()
        for _ in range(given.rounds):
            found = {"blocking": bench.blocking()}
            found |= {way: bench.background(saver, nice, given.free) for way, nice in NICE.items()}
            rounds.append(found)
    state = [p.stat().st_size for p in run_folder.committed(bench.folder)[-1].glob("*.distcp")]
    if rank == 0:
        answers.put((sum(state), first, rounds))
    dist.barrier()
    dist.destroy_process_group()


def recipe_of(given: argparse.Namespace) -> Recipe:
    large = [f"tables.movie.rows={given.rows}", "tables.movie.sharding=row_wise", "cluster.workers=2", "train.keep=1"]
    return load_recipe(given.recipe, [*large, *given.overrides])


def measure(given: argparse.Namespace) -> tuple[int, float, list]:
    context = torch.multiprocessing.get_context("spawn")
    answers = context.Queue()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        processes = [context.Process(target=rank_main, args=(rank, folder, given, answers)) for rank in range(2)]
        for process in processes:
            process.start()
        found = answers.get(timeout=given.timeout)
        for process in processes:
            process.join(30)
    return found


def spread(values: list[float], digits: int = 2) -> str:
    low, middle, high = (f"{pick(values):.{digits}f}" for pick in (min, statistics.median, max))
    return f"{middle} ({low} - {high})"


def report(given: argparse.Namespace, size: int, first: float, rounds: list) -> str:
    """Return the figures as a Markdown page."""
    lines = [
        "# Checkpoints: written in the background, against training waiting\n",
        f"Command: `python {' '.join(sys.argv)}`, {datetime.date.today()}. 2 ranks on {os.cpu_count()} cores (one "
        f"each, for training and writing; load average {os.getloadavg()[1]:.1f}), gloo, files synced to a local disk.",
        f"Versions: {', '.join(f'{name} {number}' for name, number in versions().items())}.",
        f"Checkpoint: {size / 2**20:,.0f} MiB, tables and optimizer state. {given.rounds} rounds.\n",
        "| way | stall, s | stall / blocking | the same of processor time | steps during the write, s | "
        "their time / a free step's | lost to slower steps, s | lost in all / blocking | processor time, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| blocking | {spread([r['blocking']['stall'] for r in rounds])} | 1 | 1 | | | | 1 | "
        f"{spread([r['blocking']['cpu'] for r in rounds])} |",
    ]
    for way in NICE:
        blocking = [r["blocking"]["stall"] for r in rounds]
        keys = ("stall", "write", "slower", "times", "cpu")
        stall, write, slower, times, cpu = ([r[way][key] for r in rounds] for key in keys)
        share = [s / b for s, b in zip(stall, blocking, strict=True)]
        busy = [r[way]["stall_cpu"] / r["blocking"]["cpu"] for r in rounds]
        lost = [(s + w) / b for s, w, b in zip(stall, slower, blocking, strict=True)]
        cells = [
            spread(stall, 3),
            spread(share),
            spread(busy),
            spread(write),
            spread(times),
            spread(slower),
            spread(lost),
            spread(cpu),
        ]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    lines.append(f"\nThe first save of a run, which allocates the buffers, stalls {first:.3f} s.")
    return "\n".join(lines) + "\n"


def main() -> None:
    set_up()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="changes to the recipe, as in livetrain train")
    parser.add_argument("--rows", type=int, default=4_000_000, help="of the movie table")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--free", type=int, default=20, help="steps without a write, before each background save")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written (the system's temporary folder)")
    parser.add_argument("--timeout", type=int, default=1200, help="seconds for all rounds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/checkpoint.md")
    given = parser.parse_args()
    page = report(given, *measure(given))
    given.out.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
