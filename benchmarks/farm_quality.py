"""What each part of FARM is worth: the model, the model without each of its parts, and simpler ones, on the same rows.

    python benchmarks/farm_quality.py simulated kuairand --seeds 1 2 3

The recipes' heads say how their data are made. Each run keeps the checkpoint that is best on the validation split; the
test split is read once, after that, and scored by that checkpoint. A cell is the mean over seeds and their deviation.
Rows are also split by what the user had done before: at most `FEW` events in the sparse domain (live rooms; likes), or
more. Runs go to --runs; one that is there and whose recipe is unchanged is read, not trained again.
"""

import argparse
import datetime
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from quality import processor, scored

from livetrain.cluster import launch
from livetrain.configs.load import dump_recipe, load_recipe
from livetrain.configs.schema import Recipe
from livetrain.modules.metrics import binary
from livetrain.trainers.runtime.versions import versions

FEW = {"simulated": 5, "kuairand": 0}  # events
SPARSE = {"simulated": "live_streamer", "kuairand": "like_video"}  # the sparse domain's history
RECIPES = Path("configs/recipes")
Scores = dict[str, np.ndarray]  # of the test split's rows: logits and labels by task, groups, events


def variants(data: str) -> dict[str, tuple[str, list[str]]]:
    """Return what is compared: name -> (recipe, overrides)."""
    alone = {"simulated": "live", "kuairand": "watch"}[data]
    farm, cross = f"farm_{data}", f"din_{data}_cross"
    return {
        "FARM": (farm, []),
        "without frequency": (farm, ["model.frequency=null"]),
        "without alignment": (farm, ["model.align.weight=0"]),
        "without fusion (concat)": (farm, ["model.fuse=concat"]),
        "one domain": (f"{farm}_{alone}", []),
        "CGC on DIN, both domains": (cross, ["model.kind=cgc"]),
        "DIN, both domains": (cross, []),
        "DIN, one domain": (f"din_{data}_{alone}", []),
        "SASRec, one domain": (f"sasrec_{data}", []),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", choices=list(SPARSE))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=Path("runs/farm"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/farm_quality.md"))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes to every recipe")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[Scores]]] = {data: {} for data in given.data}
    for seed in given.seeds:
        for data in given.data:
            for name, (recipe, changes) in variants(data).items():
                run = f"{data}-{name.translate(str.maketrans(' ', '-', '(),'))}-{seed}"
                found[data].setdefault(name, []).append(measure(recipe, [*changes, *given.set], seed, given.runs, run))
                given.out.write_text(document(found))
    print(given.out.read_text())


def measure(recipe: str, changes: list[str], seed: int, runs: Path, name: str) -> Scores:
    """Return the test split's scores by one run's best checkpoint; the run is trained if it is not there."""
    fixed = [f"train.seed={seed}", "cluster.workers=0", f"name={name}"]
    made, run = load_recipe(RECIPES / f"{recipe}.yaml", [*changes, *fixed]), runs / name
    if not (run / "result.json").exists():
        launch.train(made, runs)
    elif (run / "config.yaml").read_text() != dump_recipe(made):
        sys.exit(f"{run}: this run was trained with another recipe; remove it, or give another --runs")
    return scores(made, run)


def scores(recipe: Recipe, run: Path) -> Scores:
    """Return the test split's rows as the run's best checkpoint scores them."""
    sparse = next((f for f in SPARSE.values() if f in recipe.features), None)
    parts: dict[str, list[torch.Tensor]] = {}
    for batch, logits in scored(recipe, run):
        kept = batch.weights > 0
        row = {"groups": batch.groups, "rows": batch.rows}
        if sparse is not None:
            row["events"] = batch.lists(sparse).lengths()
        for number, task in enumerate(recipe.tasks):
            row |= {f"{task}.logits": logits[task], f"{task}.labels": batch.labels[:, number]}
        for key, value in row.items():
            parts.setdefault(key, []).append(value[kept])
    order = torch.cat(parts["rows"]).argsort().numpy()
    return {key: torch.cat(part).numpy()[order] for key, part in parts.items()}


def figure(one: Scores, task: str, kind: str, rows: np.ndarray | None = None) -> float:
    """Return a run's AUC, GAUC or UAUC of a task, over the rows whose label is known."""
    labels, logits, groups = one[f"{task}.labels"], one[f"{task}.logits"], one["groups"]
    kept = ~np.isnan(labels) if rows is None else rows & ~np.isnan(labels)
    labels, logits, groups = labels[kept], logits[kept], groups[kept]
    if kind == "auc":
        return binary.auc(labels, logits)
    return getattr(binary, kind)(labels, logits, groups)


def document(found: dict[str, dict[str, list[Scores]]]) -> str:
    """Return the Markdown file."""
    lines = [
        "# What each part of FARM is worth\n",
        f"Command: `python {' '.join(sys.argv)}`",
        f"{datetime.date.today()}, {processor()}; {', '.join(map(' '.join, versions().items()))}.",
    ]
    for data, by_name in found.items():
        if by_name:
            lines += ["", f"## {data}", *tables(data, by_name)]
    return "\n".join([*lines, ""])


def tables(data: str, by_name: dict[str, list[Scores]]) -> Iterator[str]:
    """Yield the lines of one data set's tables."""
    first = by_name["FARM"][0]
    tasks = [key.removesuffix(".labels") for key in first if key.endswith(".labels")]
    shares = {task: np.nanmean(first[f"{task}.labels"]) for task in tasks}
    rates = ", ".join(f"{task} {share:.4f}" for task, share in shares.items())
    yield f"\n{len(first['groups']):,} test rows of {len(np.unique(first['groups'])):,} users; positive: {rates}."
    for kind in ("auc", "gauc", "uauc"):
        yield from table(f"test {kind.upper()}", by_name, {task: (task, kind, None) for task in tasks})
    few = first["events"] <= FEW[data]
    for title, rows in ((f"at most {FEW[data]} events", few), (f"more than {FEW[data]} events", ~few)):
        columns = {f"{task} {kind.upper()}": (task, kind, rows) for task in tasks[:2] for kind in ("auc", "gauc")}
        columns |= {f"{task} AUC": (task, "auc", rows) for task in tasks[2:]}
        yield from table(f"{title} of {SPARSE[data]} before: {rows.sum():,} rows", by_name, columns)


def table(title: str, by_name: dict[str, list[Scores]], columns: dict[str, tuple]) -> Iterator[str]:
    """Yield a table: a line per variant, a cell per (task, kind, rows)."""
    yield f"\n| {title} | seeds | {' | '.join(columns)} |"
    yield "| --- " * (len(columns) + 2) + "|"
    for name, runs in by_name.items():
        cells = [spread([figure(run, *column) for run in runs]) for column in columns.values()]
        yield f"| {name} | {len(runs)} | {' | '.join(cells)} |"


def spread(values: list[float]) -> str:
    """Return mean and deviation, as .7412 ± .0008."""
    deviation = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{deviation}"


if __name__ == "__main__":
    main()
