"""What architectures cost beside what they reach: KuaiRand-Pure, four tasks, the same features, one thread.

    livetrain data kuairand --raw DIR --out data/kuairand
    OMP_NUM_THREADS=1 python benchmarks/architectures.py --seeds 1 2 3

All models read the features, histories and tasks of configs/recipes/base/kuairand_tasks.yaml. Each run is trained in a
process of its own, keeps the checkpoint that is best on 05-05, and is measured once on 05-06..05-08. A step's cost is
its processor time, tables and optimizers included, on batches in memory: other programs on the machine hardly change
it. Runs and figures that are there are read and not made again, so that the command goes on where it was stopped. What
stands in the file of results from "## Found" on is written by hand, and is kept.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality import add_training, made, measure, rule, spread

from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe
from livetrain.modules.model import Model
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.runtime import ranks
from livetrain.trainers.runtime.process import threads
from livetrain.trainers.runtime.versions import versions
from livetrain.trainers.train.sharding import shard

TASKS = ("click", "long_view", "like", "profile_enter")
ATTENTION = (
    "[{query: [video, author], events: [video_id, video_author], side: [video_action, video_gap]},"
    " {query: [video, author], events: [like_video, like_author], side: [like_gap]}]"
)
MODELS = {  # recipe, and the changes that make it another model
    "dnn": ("cgc", "model={kind: dnn, units: [200, 80]}"),
    "din": ("cgc", f"model={{kind: din, attention: {ATTENTION}, units: [200, 80]}}"),
    "sasrec": ("sasrec", None),
    "cgc": ("cgc", None),
    "rankmixer": ("rankmixer", None),
    "pepnet": ("pepnet", None),
    "stem": ("stem", None),
    "hstu": ("hstu", None),
    "twin": ("twin", None),
    "onetrans": ("onetrans", None),
    "cgc over rankmixer": ("cgc_rankmixer", None),
    "gbdt": ("cgc", "model={kind: gbdt}"),
}
FOUND = "## Found"
STEPS = 12
COST = "| model | dense parameters | table parameters | rows per processor second | peak memory of a run, MiB |"
QUALITY = "| task | model | seeds | test AUC | error, rows | error, users | test GAUC | valid AUC | best steps |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL", help="by default all")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/architectures.md"))
    add_training(parser)
    parser.set_defaults(runs=Path("runs/architectures"))
    given = parser.parse_args()
    torch.set_num_threads(threads())
    costs = {name: kept(given.runs / folder(name) / "cost.json", cost, name, given) for name in given.models}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in given.models}
    for seed in given.seeds:
        for name in given.models:
            place = given.runs / folder(name) / f"figures-{seed}.json"
            found[name].append(kept(place, figures, name, seed, given))
            print(name, seed, *(f"{found[name][-1][f'valid.{task}.auc']:.4f}" for task in TASKS), flush=True)
            write(costs, {model: results for model, results in found.items() if results}, given)
    print(f"written to {given.out}")


def folder(name: str) -> str:
    """Return the name of the folder of a model's runs."""
    return name.replace(" ", "-")


def kept(place: Path, function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Return what a function found, called in a process of its own, or what it had found before."""
    if not place.exists():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(function, arguments)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(found))
    found = json.loads(place.read_text())
    assert isinstance(found, dict)
    return found


def path_of(name: str) -> Path:
    """Return the recipe of a model."""
    return Path(f"configs/recipes/{MODELS[name][0]}_kuairand.yaml")


def figures(name: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Train a model and measure it."""
    torch.set_num_threads(threads())
    changes = [*given.set, *([MODELS[name][1]] if MODELS[name][1] else [])]
    asked = argparse.Namespace(**vars(given) | {"set": changes, "runs": given.runs / folder(name)})
    return measure(path_of(name), seed, asked)


def cost(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Return the parameters of a model, and what its training steps cost; nothing of one that is fitted."""
    torch.set_num_threads(threads())
    changes = ["cluster.workers=0", *given.set, *([MODELS[name][1]] if MODELS[name][1] else [])]
    recipe = load_recipe(path_of(name), changes)
    if recipe.model.fitted:
        return {}
    dense = sum(p.numel() for p in Model(recipe, tables_device="meta").dense.parameters())
    tables = sum(table.rows * table.dim for table in recipe.tables.values())
    return {"dense": dense, "tables": tables, "rows_per_s": recipe.data.batch_size / step_time(recipe)}


def step_time(recipe: Recipe) -> float:
    """Return the median processor time of a training step, in seconds."""
    reader = Reader(Source.open(recipe, "train"), recipe, rank=0, world=1, shuffle=False)
    batches = list(islice(reader.batches(0), STEPS))
    with ranks.alone(cuda=False):
        sharded = shard(recipe, torch.device("cpu"))
        sharded.module.train()
        sharded.set_rates(1.0)
        feed, times = iter(batches * 2), []
        for step in range(STEPS):
            start = time.process_time()
            ranks.seed_step(1, step)
            sharded.pipeline.progress(feed)
            times.append(time.process_time() - start)
    return statistics.median(times[STEPS // 3 :])


def write(costs: dict[str, Any], found: dict[str, list[dict[str, Any]]], given: argparse.Namespace) -> None:
    """Write the file of results, as far as there are some."""
    lines = [COST, rule(COST)]
    for name, each in costs.items():
        peaks = [result["memory"]["host"] / 2**20 for result in found.get(name, [])]
        cells = [name, *(f"{each[key]:,.0f}" if each else "-" for key in ("dense", "tables", "rows_per_s"))]
        lines.append(f"| {' | '.join([*cells, f'{max(peaks):,.0f}' if peaks else '-'])} |")
    lines += ["", QUALITY, rule(QUALITY)]
    lines += [row(task, name, results) for task in TASKS for name, results in found.items()]
    old = given.out.read_text() if given.out.exists() else ""
    text = "\n".join([intro(given), *lines, ""])
    given.out.write_text(text + (f"\n{FOUND}{old.split(FOUND, 1)[1]}" if FOUND in old else ""))


def row(task: str, name: str, results: list[dict[str, Any]]) -> str:
    """Return a model's line for a task."""

    def of(key: str) -> np.ndarray:
        return np.array([result[key] for result in results], dtype=float)

    cells = [task, name, str(len(results)), f"**{spread(of(f'test.{task}.auc'))}**"]
    cells += [f"{of(f'test.{task}.{error}').mean():.4f}" for error in ("error_rows", "error_groups")]
    cells += [spread(of(f"test.{task}.gauc")), spread(of(f"valid.{task}.auc"))]
    return f"| {' | '.join([*cells, ', '.join(f'{step:,.0f}' for step in of('best_step'))])} |"


def intro(given: argparse.Namespace) -> str:
    """Return what stands above the tables."""
    return f"""# Architectures: cost beside quality

{made(versions(), given)}

KuaiRand-Pure with four tasks and the features of `base/kuairand_tasks.yaml`; `sasrec` reads only what was watched,
`hstu` averages what was liked. Learned from 04-25..05-04 in one epoch; the checkpoint is the best on 05-05, and
05-06..05-08 are looked at once. Mean ± deviation over seeds; "error": bootstrap deviation of the test AUC over rows and
over whole users. Cost: the median processor time of a training step of 768 rows, tables and optimizers included;
memory is all that a run's process held at most, of which the libraries take about 500. `gbdt` is fitted in one go: it
has no steps. Nothing was tuned: sizes are those that each recipe began with.
"""


if __name__ == "__main__":
    main()
