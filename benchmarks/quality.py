"""How good the recipes' models are: every recipe trained with several seeds, measured on the test split, by task.

    python benchmarks/quality.py configs/recipes/dnn_dcnv2.yaml configs/recipes/din_ml1m.yaml --seeds 1 2 3

Each run keeps the checkpoint that is best on the validation split; the test split is read once, after that. The table
gives mean and deviation over seeds, and two bootstrap errors of the test AUC, which say how much another draw of test
rows, or of whole users, would move it. Runs go to --runs as <recipe>-seed<n>; one that is there and whose recipe is
unchanged is read, not trained again. quality_kuairand.py and quality_simulated.py set the recipes beside baselines.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from livetrain.cluster import launch
from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Batch
from livetrain.modules.metrics import binary
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.export.export import plain_model
from livetrain.trainers.export.fitted import learned
from livetrain.trainers.export.rows import inputs_of
from livetrain.trainers.runtime import run_folder
from livetrain.trainers.runtime.process import threads
from livetrain.trainers.runtime.run_folder import find_checkpoint

HEAD = (
    "| recipe | task | seeds | test rows | test AUC | error, rows | error, users | test GAUC | test log loss "
    "| valid AUC | valid GAUC | valid log loss | best steps | rows/s |"
)


def main() -> None:
    given = arguments()
    torch.set_num_threads(threads())
    rows = []
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for path in given.recipes:
        results = [measure(path, seed, given) for seed in given.seeds]
        rows += lines(path.stem, results)
        print("\n".join([HEAD, *rows]), flush=True)
        given.out.write_text(document(rows, results[-1]["versions"], given))
    print(f"written to {given.out}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quality_ml1m.md"))
    parser.add_argument("--title", help="of the file; by default the names of the recipes")
    add_training(parser)
    return parser.parse_args()


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add what says how recipes are trained: seeds, workers, folder of runs, changes to every recipe."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--workers", type=int, default=0, help="Ray workers; 0 trains inside this process")
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes to every recipe")


def measure(path: Path, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Return one run's result.json with its test AUCs' bootstrap errors; the run is trained if it is not there."""
    recipe, run = trained(path, seed, given)
    found = {f"test.{task}.{name}": error for task, pair in errors(recipe, run).items() for name, error in pair.items()}
    return json.loads((run / "result.json").read_text()) | found


def trained(path: Path, seed: int, given: argparse.Namespace) -> tuple[Recipe, Path]:
    """Return the recipe and the folder of a run, which is trained if it is not there."""
    name = f"{path.stem}-seed{seed}"
    changes = [f"train.seed={seed}", f"cluster.workers={given.workers}", f"name={name}", *given.set]
    recipe, run = load_recipe(path, changes), given.runs / name
    if not (run / "result.json").exists():
        launch.train(recipe, given.runs)
    elif run_folder.recipe_of(run) != recipe:
        sys.exit(f"{run}: this run was trained with another recipe; remove it, or give another --runs")
    return recipe, run


def errors(recipe: Recipe, run: Path) -> dict[str, dict[str, float]]:
    """Return, by task, the bootstrap errors of the test AUC over rows and over groups."""
    return {
        task: {
            "error_rows": binary.bootstrap(found.labels, found.logits)[0],
            "error_groups": binary.bootstrap(found.labels, found.logits, found.groups)[0],
        }
        for task, found in scores(recipe, run).items()
    }


@dataclass(frozen=True)
class Scores:
    """The rows of a split whose label is known, scored for one task; (n,) each, in the order of the split's rows."""

    labels: np.ndarray
    logits: np.ndarray
    groups: np.ndarray
    rows: np.ndarray  # number of the row in the split: sorted files, row groups, rows


def scored(recipe: Recipe, run: Path, split: str = "test") -> Iterator[tuple[Batch, dict[str, torch.Tensor]]]:
    """Yield a split's batches, of rows or requests, each with the logits (B,) by task of a run's best checkpoint."""
    path, fitted = find_checkpoint(run, "best"), recipe.model.fitted
    model: Any = learned(recipe, path).logits if fitted else plain_model(recipe, path)
    reader = Reader(Source.open(recipe, split), recipe, rank=0, world=1, shuffle=False, groups=True)
    with closing(reader.batches(0)) as batches:
        for batch in batches:
            plain = batch.ids, batch.dense, None, batch.vectors, batch.requests
            given = inputs_of(batch, recipe) if fitted else plain
            with torch.no_grad():
                logits = model(*given)
            yield batch, logits


def scores(recipe: Recipe, run: Path, split: str = "test") -> dict[str, Scores]:
    """Return, by binary task, how a run's best checkpoint scores a split."""
    places = {task: place for place, task in enumerate(recipe.tasks) if recipe.tasks[task].kind == "binary"}
    found: dict[str, list[tuple[torch.Tensor, ...]]] = {task: [] for task in places}
    for batch, logits in scored(recipe, run, split):
        for task, place in places.items():
            known = batch.weights > 0
            if batch.sample_weights is not None:
                known &= batch.sample_weights[:, place] > 0
            columns = (batch.labels[:, place], logits[task], batch.groups, batch.rows)
            found[task].append(tuple(column[known] for column in columns))
    joined = {task: [torch.cat(x).numpy() for x in zip(*parts, strict=True)] for task, parts in found.items()}
    return {task: Scores(*(x[np.argsort(parts[-1])] for x in parts)) for task, parts in joined.items()}


def lines(name: str, results: list[dict[str, Any]]) -> list[str]:
    """Return a recipe's lines of the table, one per task."""
    tasks = [key.split(".")[1] for key in results[0] if key.startswith("test.") and key.endswith(".auc")]
    return [line(name, task, results) for task in tasks]


def line(name: str, task: str, results: list[dict[str, Any]]) -> str:
    """Return one line of the table."""

    def of(key: str) -> np.ndarray:
        return np.array([result[key] for result in results])

    cells = [
        name,
        task,
        len(results),
        f"{results[0]['test.rows']:,.0f}",
        f"**{spread(of(f'test.{task}.auc'))}**",
        f"{of(f'test.{task}.error_rows').mean():.4f}",
        f"{of(f'test.{task}.error_groups').mean():.4f}",
        *(spread(of(f"test.{task}.{figure}")) for figure in ("gauc", "log_loss")),
        *(spread(of(f"valid.{task}.{figure}")) for figure in ("auc", "gauc", "log_loss")),
        ", ".join(f"{step:,.0f}" for step in of("best_step")),
        f"{of('rows_per_s').mean():,.0f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def spread(values: np.ndarray) -> str:
    """Return mean and deviation of a figure over seeds."""
    return f"{values.mean():.4f}" + (f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else "")


def document(rows: list[str], versions: dict[str, str], given: argparse.Namespace) -> str:
    """Return the Markdown file."""
    title = given.title or f"What is reached by {', '.join(path.stem for path in given.recipes)}"
    intro = f"""# {title}

{made(versions, given)}

Mean ± deviation over seeds. A run keeps the checkpoint of the best validation AUC, and nothing is chosen on the test
split. "error": bootstrap deviation of the test AUC over rows and over whole users.
"""
    return "\n".join([intro, HEAD, rule(HEAD), *rows, ""])


def rule(head: str) -> str:
    """Return the line below a table's head."""
    return "|" + " --- |" * (head.count("|") - 1)


def made(versions: dict[str, str], given: argparse.Namespace) -> str:
    """Return how a file of results was made: command, date, machine, versions."""
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    where = f"{given.workers} Ray workers" if given.workers else "one process, without Ray"
    made_with = ", ".join(map(" ".join, versions.items()))
    return f"""Command: `{command}`
On {datetime.date.today()}: {where}, {torch.get_num_threads()} thread(s) each, {processor()}; {made_with}."""


def processor() -> str:
    """Return the processor's name and the number of its cores, or the GPU's name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
