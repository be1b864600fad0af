"""How good the recipes' models are: every recipe trained with several seeds, measured on the test split.

    python benchmarks/quality.py configs/recipes/dnn_dcnv2.yaml configs/recipes/din_ml1m.yaml --seeds 1 2 3

Each run keeps the checkpoint that is best on the validation split; the test split is read once, after that. The table
gives mean and deviation over seeds, and two bootstrap errors of the test AUC, which say how much another draw of test
rows, or of whole users, would move it. Runs go to --runs as <recipe>-seed<n>; one that is there and whose recipe is
unchanged is read, not trained again.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import modules.models  # noqa: F401  (registers the kinds that a recipe may name)
from cluster import launch
from configs.load import dump_recipe, load_recipe
from configs.schema import Recipe
from trainers import metrics
from trainers.data.reader import Reader
from trainers.data.source import Source
from trainers.export import find_checkpoint, plain_model

HEAD = (
    "| recipe | seeds | test rows | test AUC | error, rows | error, users | test GAUC | test log loss "
    "| valid AUC | valid GAUC | valid log loss | best steps | rows/s |"
)


def main() -> None:
    given = arguments()
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    rows = []
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for path in given.recipes:
        results = [measure(path, seed, given) for seed in given.seeds]
        rows.append(row(path.stem, results))
        print(f"{HEAD}\n{rows[-1]}", flush=True)
        given.out.write_text(document(rows, results[-1]["versions"], given))
    print(f"written to {given.out}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--workers", type=int, default=0, help="Ray workers; 0 trains inside this process")
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quality_ml1m.md"))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes to every recipe")
    return parser.parse_args()


def measure(path: Path, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Return one run's result.json with its test AUC's bootstrap errors; the run is trained if it is not there."""
    name = f"{path.stem}-seed{seed}"
    changes = [f"train.seed={seed}", f"cluster.workers={given.workers}", f"name={name}", *given.set]
    recipe, run = load_recipe(path, changes), given.runs / name
    if not (run / "result.json").exists():
        launch.train(recipe, given.runs)
    elif (run / "config.yaml").read_text() != dump_recipe(recipe):
        sys.exit(f"{run}: this run was trained with another recipe; remove it, or give another --runs")
    return json.loads((run / "result.json").read_text()) | errors(recipe, run)


def errors(recipe: Recipe, run: Path) -> dict[str, float]:
    """Return the bootstrap errors of the first task's test AUC, by rows and by groups."""
    labels, logits, groups = scores(recipe, run)
    return {
        "error_rows": metrics.bootstrap(labels, logits)[0],
        "error_groups": metrics.bootstrap(labels, logits, groups)[0],
    }


def scores(recipe: Recipe, run: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels, logits and groups (n,) of the test split's rows, scored by the run's best checkpoint."""
    model, task = plain_model(recipe, find_checkpoint(run, "best")), next(iter(recipe.tasks))
    reader = Reader(Source.open(recipe, "test"), recipe, rank=0, world=1, shuffle=False, groups=True)
    found = []
    with torch.no_grad():
        for batch in reader.batches(0):
            logits, kept = model(batch.ids, batch.dense, None)[task], batch.weights > 0
            found.append((batch.labels[kept, 0], logits[kept], batch.groups[kept]))
    return tuple(torch.cat(part).numpy() for part in zip(*found, strict=True))


def row(name: str, results: list[dict[str, Any]]) -> str:
    """Return a recipe's line of the table."""
    task = next(key.split(".")[1] for key in results[0] if key.startswith("test.") and key.endswith(".auc"))

    def of(key: str) -> np.ndarray:
        return np.array([result[key] for result in results])

    def spread(key: str) -> str:
        values = of(key)
        return f"{values.mean():.4f}" + (f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else "")

    cells = [
        name,
        len(results),
        f"{results[0]['test.rows']:,.0f}",
        f"**{spread(f'test.{task}.auc')}**",
        f"{of('error_rows').mean():.4f}",
        f"{of('error_groups').mean():.4f}",
        *(spread(f"test.{task}.{figure}") for figure in ("gauc", "log_loss")),
        *(spread(f"valid.{task}.{figure}") for figure in ("auc", "gauc", "log_loss")),
        ", ".join(f"{step:,.0f}" for step in of("best_step")),
        f"{of('rows_per_s').mean():,.0f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def document(rows: list[str], versions: dict[str, str], given: argparse.Namespace) -> str:
    """Return the Markdown file."""
    rule = "|" + " --- |" * (HEAD.count("|") - 1)
    where = f"{given.workers} Ray workers" if given.workers else "one process, without Ray"
    made_with = ", ".join(map(" ".join, versions.items()))
    intro = f"""# What the MovieLens-1M recipes reach

Command: `{command()}`
On {datetime.date.today()}: {where}, {torch.get_num_threads()} thread(s) each, {processor()}; {made_with}.

Mean ± deviation over seeds. A run keeps the checkpoint of the best validation AUC, and nothing is chosen on the test
split. "error": bootstrap deviation of the test AUC over rows and over whole users.
"""
    return "\n".join([intro, HEAD, rule, *rows, ""])


def command() -> str:
    """Return the command line that is running."""
    return shlex.join(["python", "benchmarks/quality.py", *sys.argv[1:]])


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
