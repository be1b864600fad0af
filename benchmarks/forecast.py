"""Forecasts of a step on CPU ranks against measured steps, and against figures that others have published.

    python benchmarks/forecast.py measure --worlds 1 --rows 256 1024 --out measured.jsonl
    python benchmarks/forecast.py measure --worlds 2 4 --rows 512 --out measured.jsonl
    python benchmarks/forecast.py fit measured.jsonl --write configs/hardware/cpu.yaml
    python benchmarks/forecast.py published
    python benchmarks/forecast.py scale

Batches are made in memory and ranks have one thread each. What is measured is the processor time of all of a rank's
threads per step, which other programs on the machine change little: the least of --rounds rounds. The file of this
kind of machine is fitted on FITTED and tested on TESTED, which it has not seen. Where R ranks share two cores and each
is at work for t seconds of a step, the step takes max(1, R / 2) t; that is how four ranks on two cores are modelled.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import dlrm
import numpy as np
import torch
import torch.distributed as dist
from scipy.optimize import nnls
from torch import multiprocessing

from livetrain.configs.load import load_recipe
from livetrain.configs.machines import load_hardware
from livetrain.configs.schema import Recipe
from livetrain.configs.schema.hardware import Hardware
from livetrain.configs.trees import dump_tree
from livetrain.modules.batch import Batch
from livetrain.trainers.data.read.lookups import Looked, ids_per_row
from livetrain.trainers.forecast.cost import Work, parts
from livetrain.trainers.forecast.forecast import Forecaster
from livetrain.trainers.forecast.rows import made_up
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train import compiled_layers
from livetrain.trainers.train.sharding import shard

RECIPES = Path(__file__).parents[1] / "configs" / "recipes"
FITTED = ("din_ml1m", "dnn_kuairand", "dcnv2_dcnv2", "mmoe_simulated")
TESTED = ("din_simulated_live", "dnn_simulated", "shared_bottom_simulated", "deepfm_kuairand")
WARM = 2  # steps


def recipe_of(name: str, world: int, rows: int) -> Recipe:
    """Return a recipe for so many CPU ranks with so many rows each."""
    fixed = ["data.path=nowhere", f"cluster.workers={world}", "cluster.device=cpu"]
    return load_recipe(RECIPES / f"{name}.yaml", [*fixed, f"data.shards={world}", f"data.batch_size={world * rows}"])


def batches(recipe: Recipe, rows: int) -> Iterator[Batch]:
    """Yield batches of a rank, made beforehand."""
    made = [made_up(recipe, rows, ids_per_row(recipe)) for _ in range(4)]
    while True:
        yield from made


def work(rank: int, world: int, given: argparse.Namespace, store: str) -> None:
    """Train every recipe on one rank; rank 0 writes what it took, a line for each."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    for name, rows in itertools.product(given.recipes, given.rows):
        recipe = recipe_of(name, world, rows)
        sharded = shard(recipe, torch.device("cpu"))
        compiled_layers.enable(sharded.model, torch.device("cpu"))
        sharded.module.train()
        feed, each = batches(recipe, rows), []
        for _ in range(WARM):
            sharded.pipeline.progress(feed)
        for _ in range(given.rounds):
            dist.barrier()
            start = time.process_time()
            for _ in range(given.steps):
                sharded.pipeline.progress(feed)
            each.append((time.process_time() - start) / given.steps)
        mean = ranks.summed(torch.tensor(each, dtype=torch.float64)) / world  # of the ranks
        if rank == 0:
            found = {"recipe": name, "world": world, "rows": rows, "seconds": float(mean.min())}
            found["deviation"] = float(mean.std() / mean.mean())
            with given.out.open("a") as file:
                file.write(f"{json.dumps(found)}\n")
    dist.destroy_process_group()


def measure(given: argparse.Namespace) -> None:
    """Measure, and add what was found to a file."""
    for world in given.worlds:
        with tempfile.TemporaryDirectory() as folder:
            multiprocessing.spawn(work, (world, given, str(Path(folder) / "store")), nprocs=world)


def read(path: Path) -> list[dict[str, Any]]:
    """Return what was measured."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@lru_cache
def work_of(name: str, world: int, rows: int) -> Work:
    """Return what a rank does in a step."""
    hardware = load_hardware("cpu")
    recipe = recipe_of(name, world, rows)
    cluster = recipe.cluster.model_copy(update={"topology": hardware.topology()})
    return Forecaster(lambda _: recipe, hardware).work(recipe.model_copy(update={"cluster": cluster}))[1]


def busy(one: Work, hardware: Hardware) -> float:
    """Return the processor seconds of a rank's step that are forecast."""
    return sum(seconds for part, seconds in parts(one, hardware).items() if part != "cores")


FREE = 1e6  # GB/s or TFLOP/s that take no time
SOUGHT = ("operator", "group", "lookup", "row", "intra", "float32", "memory_gb_s", "intra_gb_s")  # of the hardware file


def with_only(hardware: Hardware, key: str | None) -> Hardware:
    """Return machines on which all but one of SOUGHT takes no time; that takes a microsecond, or a ns per unit."""
    us = {name: float(name == key) for name in type(hardware.us).model_fields}
    rates = {name: 1.0 if name == key else FREE for name in ("memory_gb_s", "intra_gb_s")}
    speed = 1e-3 if key == "float32" else FREE  # TFLOP/s: a ns per operation
    values = {"us": us, "tflops": dict.fromkeys(("float32", "tf32", "bfloat16"), speed), **rates}
    return Hardware.model_validate(hardware.model_dump() | values | {"inter_gb_s": FREE, "host_gb_s": FREE})


def fitted(found: list[dict[str, Any]], hardware: Hardware) -> dict[str, float]:
    """Return SOUGHT, none below 0, with the least sum of squared relative errors of the steps of FITTED.

    What no measured step depends on is left out.
    """
    known = [one for one in found if one["recipe"] in FITTED]
    matrix = np.zeros((len(known), len(SOUGHT)))
    for at, one in enumerate(known):
        work = work_of(one["recipe"], one["world"], one["rows"])
        nothing = busy(work, with_only(hardware, None))
        matrix[at] = [busy(work, with_only(hardware, key)) - nothing for key in SOUGHT]
    measured = np.array([one["seconds"] for one in known])
    scale = matrix.max(axis=0)
    told = scale > 0
    taken, _ = nnls(matrix[:, told] / scale[told] / measured[:, None], np.ones(len(known)))
    return dict(zip(np.array(SOUGHT)[told].tolist(), (taken / scale[told]).tolist(), strict=True))


def fit(given: argparse.Namespace) -> None:
    """Fit the file of this kind of machine to what was measured, and write it."""
    hardware = load_hardware(str(given.write))
    found = fitted(read(given.measured), hardware)
    tree = hardware.model_dump(mode="json")
    for key, value in found.items():
        if key in tree["us"]:
            tree["us"][key] = round(value, 3)
        elif key == "float32":
            tree["tflops"] = dict.fromkeys(tree["tflops"], round(min(1e-3 / value, FREE) if value else FREE, 5))
        else:
            tree[key] = round(min(1 / value, FREE) if value else FREE, 4)
    head = [line for line in given.write.read_text().splitlines() if line.startswith("#")]
    given.write.write_text("\n".join([*head, dump_tree(Hardware.model_validate(tree).model_dump(mode="json"))]))
    print(found, "\n")
    compare(given)


# Published rows per second: what, who, the hardware, workers, rows per worker, and the figure.
PUBLISHED = (
    ("DLRM-DCNv2", "HugeCTR, MLPerf Training 4.0", "h100", 8, 6912, 13.8e6),
    ("DLRM", "TorchRec's example", "a100", 8, 256, 284_615),
    ("DLRM", "TorchRec's example", "a100", 1, 16384, 740_065),
    ("DLRM", "TorchRec's example", "a100", 4, 4096, 1_458_176),
    ("DLRM", "TorchRec's example", "a100", 8, 2048, 1_671_168),
    ("DLRM", "TorchRec's example", "a100", 8, 8192, 5_373_952),
)


def published(_: argparse.Namespace) -> None:
    """Print forecasts beside published figures."""
    print("| workload | who | hardware | rows per worker | published, rows/s | forecast | of published | limited by |")
    print("| --- " * 8 + "|")
    for what, who, name, workers, rows, figure in PUBLISHED:
        hot, sizes = (dlrm.HOT, dlrm.MLPERF) if what == "DLRM-DCNv2" else (None, dlrm.TORCHREC)
        precision = "bfloat16" if hot else "tf32"  # what PyTorch 1.10 took by default
        lookups = {f"c{n}": Looked(float(each)) for n, each in enumerate(hot or [1] * 26)}
        recipe = dlrm.recipe(workers, workers * rows, sizes, hot, precision=precision, compile=False)
        found = Forecaster(lambda _, recipe=recipe: recipe, load_hardware(name), lookups).all([workers], advised=False)[
            0
        ]
        cells = [what, who, f"{workers} {name}", f"{rows:,}", f"{figure:,.0f}", f"{found.rows_per_s:,.0f}"]
        print(f"| {' | '.join([*cells, f'{found.rows_per_s / figure:.2f}', found.limit])} |")
        print(
            f"<!-- {', '.join(f'{part} {1e3 * each:.2f} ms' for part, each in found.parts.items() if each > 1e-5)} -->"
        )


def scale(_: argparse.Namespace) -> None:
    """Print the formula's step beside the simulated ones, up to 1,024 workers."""
    print("| recipe | workers | step, ms | simulated: median | 95 % | rows/s | efficiency | limited by |")
    print("| --- " * 8 + "|")
    for name in ("din_ml1m", "mmoe_kuairand"):

        def load(more: Sequence[str], name: str = name) -> Recipe:
            fixed = [
                "data.path=nowhere",
                "data.shards=1024",
                "data.batch_size_per_worker=8192",
                "data.threads=12",
                "train.compile=false",
            ]
            return load_recipe(RECIPES / f"{name}.yaml", [*fixed, *more])

        for one in Forecaster(load, load_hardware("h100")).all([8, 64, 256, 1024], advised=False):
            times = [one.seconds, one.simulated.median, one.simulated.p95] if one.simulated else []
            cells = [name, f"{one.workers:,}", *(f"{1e3 * each:.2f}" for each in times), f"{one.rows_per_s:,.0f}"]
            print(f"| {' | '.join([*cells, f'{one.efficiency:.2f}', one.limit])} |", flush=True)


def compare(given: argparse.Namespace) -> None:
    """Print what was forecast of the measured steps, and by how much it is off."""
    hardware, off = load_hardware(str(given.write)), dict[tuple[str, int], list[float]]()
    print("| recipe | | ranks | rows of each | measured, ms | forecast, ms | error | measured, rows/s | forecast |")
    print("| --- " * 9 + "|")
    for one in read(given.measured):
        work = work_of(one["recipe"], one["world"], one["rows"])
        taken, set_ = busy(work, hardware), "fitted" if one["recipe"] in FITTED else "tested"
        error = taken / one["seconds"] - 1
        off.setdefault((set_, one["world"]), []).append(abs(error))
        shared = max(1.0, one["world"] / hardware.cores)
        rates = [one["world"] * one["rows"] / (shared * seconds) for seconds in (one["seconds"], taken)]
        cells = [
            one["recipe"],
            set_,
            one["world"],
            f"{one['rows']:,}",
            f"{1e3 * one['seconds']:.1f}",
            f"{1e3 * taken:.1f}",
        ]
        print(f"| {' | '.join(map(str, cells))} | {error:+.0%} | {rates[0]:,.0f} | {rates[1]:,.0f} |")
    print("\n| | ranks | median error | largest |\n| --- | --- | --- | --- |")
    for (set_, world), errors in sorted(off.items()):
        print(f"| {set_} | {world} | {statistics.median(errors):.0%} | {max(errors):.0%} |")
    for set_ in ("fitted", "tested"):
        every = [error for (own, _), errors in off.items() if own == set_ for error in errors]
        print(f"| {set_} | all | {statistics.median(every):.0%} | {max(every):.0%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("measure")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--worlds", type=int, nargs="+", required=True)
    one.add_argument("--rows", type=int, nargs="+", required=True, help="of a rank's batch")
    one.add_argument("--recipes", nargs="+", default=[*FITTED, *TESTED])
    one.add_argument("--steps", type=int, default=3)
    one.add_argument("--rounds", type=int, default=3)
    one.set_defaults(run=measure)
    one = commands.add_parser("fit")
    one.add_argument("measured", type=Path)
    one.add_argument("--write", type=Path, required=True)
    one.set_defaults(run=fit)
    one = commands.add_parser("scale")
    one.set_defaults(run=scale)
    one = commands.add_parser("published")
    one.set_defaults(run=published)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
