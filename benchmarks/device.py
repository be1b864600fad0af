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
- "roofline": the seconds that a step's looked-up rows take at a copy's speed (read and written; then read, read and
  written), over the seconds that the step took.
- "cores": rows/s of training over the rows that reading alone brings in a second of processor time: what feeds the GPU.

--json FILE appends each measurement as a line as soon as it is made: benchmarks/lease.sh keeps them so.
"""

import argparse
import datetime
import importlib.metadata
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from reader import IDS, generate, take_turns
from torch.autograd import DeviceType

from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Batch
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.statistics import Statistics, scan
from livetrain.trainers.runtime import ranks
from livetrain.trainers.runtime.process import set_up
from livetrain.trainers.train.feed import Meter
from livetrain.trainers.train.loop import Job, Trainer

COPIED = 2**28  # bytes
PRODUCT = 8192  # rows and columns of a large product's matrices; a sixteenth on a CPU
PROFILED = 5  # steps


class Run:
    """Training on generated rows, taken step by step; so many batches are read once and used again, or none."""

    def __init__(self, recipe: Recipe, data: "Data", device: torch.device, held: int = 0) -> None:
        self.trainer = Trainer(Job(recipe, Path("unused"), {"train": data.source}, data.statistics), device)
        self.trainer.sharded.module.train()
        batches = itertools.chain.from_iterable(map(self.trainer.reader.batches, itertools.count()))
        if held:
            batches = itertools.cycle(list(itertools.islice(batches, held)))
        self._feed = self.trainer.breakdown.waiting(batches)
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


class Data(NamedTuple):
    """The generated rows, as they are opened."""

    source: Source
    statistics: Statistics


@contextmanager
def running(recipe: Recipe, data: Data, device: torch.device, held: int = 0) -> Iterator[Run]:
    """Give a run in a process group of its own."""
    with ranks.alone(device.type == "cuda"):
        yield Run(recipe, data, device, held)


def agreement(recipe: Recipe, data: Data, device: torch.device, steps: int) -> dict[str, float]:
    """Return how far the device's losses and parameters are from a CPU's."""
    found = []
    for where in (torch.device("cpu"), device):
        with running(recipe, data, where) as run:
            _, sums, _ = run.steps(steps)
            weights = [value.detach().cpu().double() for value in run.trainer.sharded.model.dense.parameters()]
            found.append((torch.tensor(sums, dtype=torch.float64), weights))
    (sums, ours), (others, theirs) = found
    loss = ((sums - others).abs() / sums.abs()).max()
    pairs = zip(ours, theirs, strict=True)
    apart = max(((a - b).abs().max() / a.abs().max().clamp(min=1e-12)).item() for a, b in pairs)
    return {"steps": steps, "batch": recipe.data.batch_size, "loss": loss.item(), "network": apart}


def copying(device: torch.device) -> float:
    """Return bytes/s read and written by a copy within the device's memory."""
    source, target = torch.zeros(2, COPIED // 4, device=device).unbind()
    return 2 * COPIED / least(device, lambda: target.copy_(source))


def multiplying(device: torch.device, precision: str) -> float:
    """Return floating-point operations/s of one large matrix product, as a precision has it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    size = PRODUCT if device.type == "cuda" else PRODUCT // 16
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = torch.ones(2, size, size, device=device, dtype=kind).unbind()
    seconds = least(device, lambda: a @ b)
    torch.set_float32_matmul_precision(before)
    return 2 * size**3 / seconds


def least(device: torch.device, work: Callable[[], Any], repeat: int = 10) -> float:
    """Return the fewest seconds that something took of a few times."""
    seconds = []
    for _ in range(repeat):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def looked_up(recipe: Recipe, batch: Batch) -> int:
    """Return the bytes of the rows that a batch looks up."""
    width = {"float32": 4, "float16": 2}
    tables = [recipe.tables[recipe.features[name].table] for name in batch.ids.keys()]  # noqa: SIM118 (no mapping)
    counts = batch.ids.length_per_key()
    return sum(count * table.dim * width[table.dtype] for count, table in zip(counts, tables, strict=True))


def measure(recipe: Recipe, data: Data, device: torch.device, steps: int, held: int) -> dict[str, Any]:
    """Return the figures of one recipe."""
    size = recipe.data.batch_size
    with running(recipe, data, device, held) as run:
        start = time.perf_counter()
        run.steps(steps)
        warm = time.perf_counter() - start
        run.parts(1.0)
        seconds, _, batch = run.steps(steps)
        parts = run.parts(seconds)
        busy = run.busy()
    sparse = looked_up(recipe, batch)
    return {
        "precision": recipe.train.precision,
        "batch": size,
        "rows_per_s": steps * size / seconds,
        "step_ms": 1e3 * seconds / steps,
        "warm_s": warm,
        "busy": busy,
        "wait": parts["data_wait"] * steps / 1e3 / seconds,
        "lookup": 2 * sparse / (parts["embedding_forward"] / 1e3),
        "update": 3 * sparse / (parts["embedding_backward"] / 1e3),
        "tables": 5 * sparse / ((parts["embedding_forward"] + parts["embedding_backward"]) / 1e3),
        "parts": parts,
        "bytes": 5 * sparse,
    }


def reading(recipe: Recipe, data: Data) -> float:
    """Return the rows that reading alone brings in a second of processor time."""
    size, reader = recipe.data.batch_size, Reader(data.source, recipe, rank=0, world=1, shuffle=True)
    found = take_turns(1, {"reader": lambda: (size for _ in reader.batches(0))})["reader"][0]
    return found.rows / found.busy


HEAD = (
    "| changes | precision | batch | rows/s | ms per step | data wait | busy | lookup, GB/s (of a copy) "
    "| update, GB/s (of a copy) | of roofline | cores |"
)


def line(found: dict[str, Any]) -> str:
    """Return a measurement's line of the table."""
    copied = found["copied"]
    rate = {name: f"{found[name] / 1e9:.0f} ({found[name] / copied:.2f})" for name in ("lookup", "update")}
    cells = [
        found["changes"],
        found["precision"],
        f"{found['batch']:,}",
        f"{found['rows_per_s']:,.0f}",
        f"{found['step_ms']:.1f}",
        f"{found['wait']:.0%}",
        "" if found["busy"] is None else f"{found['busy']:.0%}",
        *rate.values(),
        f"{found['roofline']:.2f}",
        f"{found['cores']:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="changes to the recipe, as in livetrain train")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows generated")
    parser.add_argument("--ids", type=int, default=IDS, help="different ids of a column")
    parser.add_argument("--batches", type=int, nargs="+", default=[1536, 12_288, 98_304], help="rows of a batch")
    parser.add_argument("--precisions", nargs="+", default=["float32", "tf32", "bfloat16"])
    parser.add_argument("--each", nargs="+", default=[""], metavar="KEY=VALUE", help="measured with each of these")
    parser.add_argument("--steps", type=int, default=20, help="of each measurement")
    parser.add_argument("--held", type=int, default=0, help="batches that are read once and used again: no data wait")
    parser.add_argument("--no-agreement", action="store_true", help="do not compare with a CPU")
    parser.add_argument("--json", type=Path, help="file that gets a line per measurement")
    return parser.parse_args()


def main() -> None:
    set_up()
    given = arguments()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no GPU here; --device cpu tries the script")
    device = torch.device(given.device, 0) if given.device == "cuda" else torch.device("cpu")
    name = torch.cuda.get_device_name(device) if given.device == "cuda" else "CPU"
    print(f"Command: `python {' '.join(sys.argv)}`, {datetime.date.today()}; {name}, {os.cpu_count()} cores")
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchrec", "pyarrow")), "\n")
    with tempfile.TemporaryDirectory() as folder:
        report(given, device, Path(folder))


def report(given: argparse.Namespace, device: torch.device, folder: Path) -> None:
    """Measure, and print and keep each figure as soon as it is there."""

    def made(*more: str) -> Recipe:
        fixed = [f"data.path={folder}", f"cluster.device={given.device}", "cluster.workers=0"]
        return load_recipe(given.recipe, [*given.overrides, *fixed, *filter(None, more)])

    def tell(what: str, found: dict[str, Any]) -> dict[str, Any]:
        found = {"part": os.environ.get("PART", what), "what": what, "recipe": Path(given.recipe).stem, **found}
        if given.json:
            with given.json.open("a") as file:
                file.write(json.dumps(found) + "\n")
        return found

    recipe = made()
    generate(recipe, folder, given.rows, 2048, given.ids)
    source = Source.open(recipe, "train")
    data = Data(source, scan(source, recipe))
    if not given.no_agreement:
        found = tell("agreement", agreement(made("train.precision=float32"), data, device, 10))
        print(
            "agreement with a CPU over {steps} steps of {batch:,} rows: loss {loss:.1e}, network {network:.1e}".format(
                **found
            )
        )
    copied = copying(device)
    products = {precision: multiplying(device, precision) for precision in given.precisions}
    print(
        f"a copy moves {copied / 1e9:.0f} GB/s; a product does",
        ", ".join(f"{n / 1e12:.1f} TFLOP/s in {p}" for p, n in products.items()),
    )
    print(f"\n{HEAD}\n|{' --- |' * (HEAD.count('|') - 1)}")
    read: dict[int, float] = {}
    every = []
    for batch, precision, more in itertools.product(given.batches, given.precisions, given.each):
        changed = made(f"train.precision={precision}", f"data.batch_size={batch}", more)
        if batch not in read:
            read[batch] = reading(changed, data)
        found = measure(changed, data, device, given.steps, given.held)
        ideal = found["bytes"] / copied
        found |= {"changes": more, "copied": copied, "roofline": 1e3 * ideal / found["step_ms"]}
        found["cores"] = found["rows_per_s"] / read[batch]
        every.append(tell("rate", found))
        print(line(every[-1]), flush=True)
    for found in every:
        spent = ", ".join(f"{name} {ms:.2f}" for name, ms in found["parts"].items() if ms >= 0.005)
        print(f"\n{found['changes']} {found['precision']}, {found['batch']:,} rows, ms per step: {spent}")


if __name__ == "__main__":
    main()
