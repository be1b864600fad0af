"""What a GPU makes of a recipe: whether it computes what a CPU does, and how fast, by precision and batch size.

    python benchmarks/device.py configs/recipes/din_ml1m.yaml tables.movie.rows=50000000 data.threads=8 --ids 5000000
    python benchmarks/device.py configs/recipes/din_ml1m.yaml --device cpu --precisions float32 --batches 1536

The second one tries the script where there is no GPU. Columns are generated as by reader.py, with --ids different ids,
and go through the whole of livetrain, Parquet included, in one process without Ray.

- "agreement": the same steps from the same weights and rows on a CPU; the largest difference of a step's loss, and of a
  parameter of the network over the largest of its tensor, after the last step. float32 on both.
- "data wait": the share of a step for which the trainer had no batch. "busy": the share of the time in which the GPU
  ran at least one kernel or copy, by the profiler, in steps of their own.
- "lookup" and "update": the bytes of the rows that a step looks up, read and written, over the time of the embeddings'
  forward pass; read, read and written over that of their backward pass; and both over what a copy within the device's
  memory moves.
- "cores": rows/s of training over the rows that reading alone brings in a second of processor time: what feeds the GPU.
"""

import argparse
import datetime
import importlib.metadata
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from reader import IDS, generate, take_turns
from torch.autograd import DeviceType

from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Batch
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.statistics import Statistics, scan
from livetrain.trainers.runtime import ranks
from livetrain.trainers.runtime.process import set_up
from livetrain.trainers.train.feed import Meter
from livetrain.trainers.train.loop import Job, Trainer

COPIED = 2**28  # bytes
PROFILED = 5  # steps


class Run:
    """Training on generated rows, taken step by step."""

    def __init__(self, recipe: Recipe, source: Source, statistics: Statistics, device: torch.device) -> None:
        self.trainer = Trainer(Job(recipe, Path("unused"), {"train": source}, statistics), device)
        self.trainer.sharded.module.train()
        epochs = itertools.chain.from_iterable(map(self.trainer.reader.batches, itertools.count()))
        self._feed = self.trainer.breakdown.waiting(epochs)
        self._device = device

    def steps(self, count: int) -> tuple[float, list[list[float]], Batch]:
        """Take steps; return their seconds, the tasks' sums of losses by step and the last batch."""
        sharded, meter, sums = self.trainer.sharded, Meter(), []
        synchronise(self._device)
        start = time.perf_counter()
        for _ in range(count):
            sharded.set_rates(1.0)
            ranks.seed_step(1, self.trainer.step)
            with self.trainer.breakdown.step():
                output = sharded.pipeline.progress(self._feed)
            meter.add(output)
            sums.append(output.loss_sums)
            self.trainer.step += 1
        synchronise(self._device)
        return time.perf_counter() - start, [each.tolist() for each in sums], output.batch

    def parts(self, seconds: float) -> dict[str, float]:
        """Return milliseconds per step by part, over the steps since the last call."""
        found = self.trainer.breakdown.read(seconds)
        return {name.removeprefix("ms."): value for name, value in found.items() if name.startswith("ms.")}

    def busy(self) -> float | None:
        """Return the share of the time in which the GPU worked; None for a CPU, or where the profiler sees nothing."""
        if self._device.type != "cuda":
            return None
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            self.steps(PROFILED)
        spans = sorted(
            (event.time_range.start, event.time_range.end)
            for event in profiler.events()
            if event.device_type == DeviceType.CUDA and not event.is_user_annotation  # these span idle time too
        )
        if not spans:
            return None
        worked, end = 0.0, spans[0][0]
        for start, stop in spans:
            worked += max(0.0, stop - max(start, end))
            end = max(end, stop)
        return worked / (end - spans[0][0])


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def running(recipe: Recipe, source: Source, statistics: Statistics, device: torch.device) -> Iterator[Run]:
    """Give a run in a process group of its own."""
    with ranks.alone(device.type == "cuda"):
        yield Run(recipe, source, statistics, device)


def agreement(recipe: Recipe, source: Source, statistics: Statistics, device: torch.device, steps: int) -> str:
    """Say how far the device's losses and parameters are from a CPU's."""
    found = []
    for where in (torch.device("cpu"), device):
        with running(recipe, source, statistics, where) as run:
            _, sums, _ = run.steps(steps)
            weights = [value.detach().cpu().double() for value in run.trainer.sharded.model.dense.parameters()]
            found.append((torch.tensor(sums, dtype=torch.float64), weights))
    (sums, ours), (others, theirs) = found
    loss = ((sums - others).abs() / sums.abs()).max()
    pairs = zip(ours, theirs, strict=True)
    apart = max(((a - b).abs().max() / a.abs().max().clamp(min=1e-12)).item() for a, b in pairs)
    size = recipe.data.batch_size
    return f"agreement with a CPU over {steps} steps of {size:,} rows: loss {loss:.1e}, network {apart:.1e}"


def copying(device: torch.device) -> float:
    """Return bytes/s read and written by a copy within the device's memory."""
    source, target = torch.zeros(2, COPIED // 4, device=device).unbind()
    seconds = []
    for _ in range(10):
        synchronise(device)
        start = time.perf_counter()
        target.copy_(source)
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return 2 * COPIED / min(seconds)


def looked_up(recipe: Recipe, batch: Batch) -> int:
    """Return the bytes of the rows that a batch looks up."""
    width = {"float32": 4, "float16": 2}
    tables = [recipe.tables[recipe.features[name].table] for name in batch.ids.keys()]  # noqa: SIM118 (no mapping)
    counts = batch.ids.length_per_key()
    return sum(count * table.dim * width[table.dtype] for count, table in zip(counts, tables, strict=True))


def measure(recipe: Recipe, source: Source, statistics: Statistics, device: torch.device, steps: int) -> dict[str, Any]:
    """Return the figures of one precision and batch size."""
    size = recipe.data.batch_size
    with running(recipe, source, statistics, device) as run:
        run.steps(steps)  # warms up
        run.parts(1.0)
        seconds, _, batch = run.steps(steps)
        parts = run.parts(seconds)
        busy = run.busy()
        reader = run.trainer.reader
        reading = take_turns(1, {"reader": lambda: (size for _ in reader.batches(0))})["reader"][0]
    rows = steps * size / seconds
    return {
        "rows": rows,
        "busy": busy,
        "wait": parts["data_wait"] * steps / 1e3 / seconds,
        "lookup": 2 * looked_up(recipe, batch) / (parts["embedding_forward"] / 1e3),
        "update": 3 * looked_up(recipe, batch) / (parts["embedding_backward"] / 1e3),
        "cores": rows / (reading.rows / reading.busy),
        "parts": parts,
    }


def line(precision: str, batch: int, found: dict[str, Any], copied: float) -> str:
    rate = {name: f"{found[name] / 1e9:.0f} ({found[name] / copied:.2f})" for name in ("lookup", "update")}
    busy = "" if found["busy"] is None else f"{found['busy']:.0%}"
    cells = [
        precision,
        f"{batch:,}",
        f"{found['rows']:,.0f}",
        f"{1e3 * batch / found['rows']:.1f}",
        f"{found['wait']:.0%}",
    ]
    return f"| {' | '.join([*cells, busy, rate['lookup'], rate['update'], format(found['cores'], '.1f')])} |"


def main() -> None:
    set_up()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="changes to the recipe, as in livetrain train")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows generated")
    parser.add_argument("--ids", type=int, default=IDS, help="different ids of a column")
    parser.add_argument("--batches", type=int, nargs="+", default=[1536, 12_288, 98_304], help="rows of a batch")
    parser.add_argument("--precisions", nargs="+", default=["float32", "tf32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=20, help="of each measurement")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no GPU here; --device cpu tries the script")
    device = torch.device(given.device, 0) if given.device == "cuda" else torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:

        def made(*more: str) -> Recipe:
            fixed = [f"data.path={folder}", f"cluster.device={given.device}", "cluster.workers=0"]
            return load_recipe(given.recipe, [*given.overrides, *fixed, *more])

        recipe = made()
        generate(recipe, Path(folder), given.rows, 2048, given.ids)
        source = Source.open(recipe, "train")
        statistics = scan(source, recipe)
        name = torch.cuda.get_device_name(device) if given.device == "cuda" else "CPU"
        print(f"Command: `python {' '.join(sys.argv)}`, {datetime.date.today()}; {name}, {os.cpu_count()} cores")
        print(
            ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchrec", "pyarrow")), "\n"
        )
        print(agreement(made("train.precision=float32"), source, statistics, device, 10))
        copied = copying(device)
        print(f"a copy moves {copied / 1e9:.0f} GB/s\n")
        heads = ("precision", "batch", "rows/s", "ms per step", "data wait", "busy")
        print(f"| {' | '.join(heads)} | lookup, GB/s (of a copy) | update, GB/s (of a copy) | cores |")
        print("| --- " * 9 + "|")
        every = {}
        for precision, batch in itertools.product(given.precisions, given.batches):
            changed = made(f"train.precision={precision}", f"data.batch_size={batch}")
            every[precision, batch] = measure(changed, source, statistics, device, given.steps)
            print(line(precision, batch, every[precision, batch], copied), flush=True)
        for (precision, batch), found in every.items():
            spent = ", ".join(f"{name} {ms:.2f}" for name, ms in found["parts"].items() if ms >= 0.005)
            print(f"\n{precision}, {batch:,} rows, ms per step: {spent}")


if __name__ == "__main__":
    main()
