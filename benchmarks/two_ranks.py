"""Two ranks of one thread each against one rank of two, on two cores: this livetrain beside an earlier one.

    mkdir -p before/livetrain && git archive c76110b | tar -x -C before/livetrain
    python benchmarks/two_ranks.py configs/recipes/din_ml1m.yaml --before before

Every side trains the same recipe with the same global batch, whole steps with the reader, in processes that live as
long as the benchmark. The sides take turns, a round each, so that what else the machine does meets all of them; ratios
are of neighbouring rounds, over "1 rank". A side's wall clock is its slowest rank's, its processor time that of
all its ranks, gloo's threads and their polling included. --nice gives further sides whose gloo threads yield to
computing.
"""

import argparse
import datetime
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Side(NamedTuple):
    """A way to train: ranks, changes to the recipe, the folder that has livetrain, the nice value of gloo's threads."""

    ranks: int
    changes: tuple[str, ...] = ()
    where: str | None = None
    nice: int = 0


def serve(given: argparse.Namespace) -> None:
    """Be one rank of a side: run a round for every line of standard input, and answer with its seconds."""
    import torch
    import torch.distributed as dist

    from livetrain.configs.load import load_recipe
    from livetrain.trainers.data.read.source import Source
    from livetrain.trainers.data.read.statistics import scan
    from livetrain.trainers.runtime.process import set_up
    from livetrain.trainers.runtime.ranks import seed_step
    from livetrain.trainers.train.feed import Meter
    from livetrain.trainers.train.loop import Job, Trainer

    set_up()
    if given.world > 1:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[given.rank]})
    torch.set_num_threads(2 // given.world)
    before = set(os.listdir("/proc/self/task"))
    dist.init_process_group("gloo", init_method=f"file://{given.store}", rank=given.rank, world_size=given.world)
    recipe = load_recipe(given.recipe, [f"cluster.workers={given.world}", *given.changes])
    source = Source.open(recipe, "train")
    trainer = Trainer(Job(recipe, Path(recipe.data.path), {"train": source}, scan(source, recipe)), torch.device("cpu"))
    trainer.sharded.module.train()
    if given.nice:
        for thread in set(os.listdir("/proc/self/task")) - before:
            os.setpriority(os.PRIO_PROCESS, int(thread), given.nice)
    batches: Iterator[Any] = itertools.chain.from_iterable(trainer.reader.batches(epoch) for epoch in itertools.count())
    meter = Meter()
    print("ready", flush=True)
    for line in sys.stdin:
        dist.barrier()
        start, busy = time.perf_counter(), time.process_time()
        for step in range(int(line)):
            trainer.sharded.set_rates(1.0)
            seed_step(1, step)
            meter.add(trainer.sharded.pipeline.progress(batches))
        meter.read(0.0)
        print(time.perf_counter() - start, time.process_time() - busy, flush=True)
    os._exit(0)


class Running:
    """A side's processes."""

    def __init__(self, side: Side, given: argparse.Namespace, folder: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(2 // side.ranks)}
        if side.where is not None:
            environment["PYTHONPATH"] = side.where
        self.ranks = [
            subprocess.Popen(
                [sys.executable, __file__, given.recipe, "--rank", str(rank), "--world", str(side.ranks)]
                + ["--store", f"{folder}/{id(self)}", "--nice", str(side.nice), "--changes", *side.changes],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for rank in range(side.ranks)
        ]
        self._answers()

    def _answers(self) -> list[str]:
        lines = []
        for rank in self.ranks:
            assert rank.stdout is not None
            for line in rank.stdout:
                if line[0].isdigit() or line == "ready\n":
                    break
            else:
                sys.exit("a rank ended")
            lines.append(line)
        return lines

    def round(self, steps: int) -> tuple[float, float]:
        """Return seconds by the wall clock, and of processors."""
        for rank in self.ranks:
            assert rank.stdin is not None
            rank.stdin.write(f"{steps}\n")
            rank.stdin.flush()
        seconds = [tuple(map(float, line.split())) for line in self._answers()]
        return max(wall for wall, _ in seconds), sum(busy for _, busy in seconds)

    def end(self) -> None:
        for rank in self.ranks:
            assert rank.stdin is not None
            rank.stdin.close()
            rank.wait(60)


def spread(values: list[float], digits: int = 2) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} - {max(values):,.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--before", help="folder with an earlier livetrain/")
    parser.add_argument("--nice", type=int, nargs="*", default=[])
    parser.add_argument("--steps", type=int, default=10, help="a round")
    parser.add_argument("--rounds", type=int, default=9)
    for name in ("--rank", "--world"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    parser.add_argument("--changes", nargs="*", default=[], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank is not None:
        (given.nice,) = given.nice
        serve(given)
    running = ("model.activation=running_dice",)
    sides = {"1 rank": Side(1)}
    if given.before:
        sides["2 ranks, before"] = Side(2, where=given.before)
    sides["2 ranks"] = Side(2)
    sides |= {f"2 ranks, gloo at nice {nice}": Side(2, nice=nice) for nice in given.nice}
    sides |= {"1 rank, running_dice": Side(1, running), "2 ranks, running_dice": Side(2, running)}
    with tempfile.TemporaryDirectory() as folder:
        load = os.getloadavg()
        started = {name: Running(side, given, folder) for name, side in sides.items()}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for turn in range(given.rounds + 1):
            for name, side in started.items():
                seconds = side.round(given.steps)
                if turn:  # the first round warms up
                    found[name].append(seconds)
        for side in started.values():
            side.end()
    import torch

    print(
        f"Command: `python {' '.join(sys.argv)}`, {datetime.date.today()}, {os.cpu_count()} cores, torch "
        f"{torch.__version__}; load {load[0]:.1f} before, {os.getloadavg()[0]:.1f} after\n"
    )
    print("| side | ms per step | processor ms per step, all ranks | speed over 1 rank | processor time over 1 rank |")
    print("| --- " * 5 + "|")
    for name, times in found.items():
        base = found["1 rank, running_dice" if "running" in name else "1 rank"]
        ratios = [
            spread([over(one[kind], mine[kind]) for one, mine in zip(base, times, strict=True)])
            for kind, over in enumerate((lambda one, mine: one / mine, lambda one, mine: mine / one))
        ]
        each = [spread([1e3 * t[kind] / given.steps for t in times], 0) for kind in (0, 1)]
        print(f"| {name} | {' | '.join([*each, *ratios])} |")


if __name__ == "__main__":
    main()
