"""What a sweep costs its trials: a training inside a sweep against the same training alone, in turns, on one Ray.

    python benchmarks/sweep.py configs/recipes/din_ml1m.yaml --rounds 2

Both train the same recipe on one Ray worker, without the test split; the sweep has one trial, so that nothing else
runs. "start-up" is from the call to the first line of the training log; "training" from there to the end of the
training's last evaluation; "end" is what follows: the result, its report, and the end of the trial's processes.
"""

import argparse
import datetime
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from livetrain.cluster import launch, ray_workers
from livetrain.cluster.sweep import tune
from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe
from livetrain.trainers.runtime import runlog
from livetrain.trainers.runtime.process import set_up
from livetrain.trainers.runtime.versions import versions

PARTS = ("start-up", "training", "end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sweep_overhead.md"))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes to the recipe")
    given = parser.parse_args()
    set_up()
    recipe = load_recipe(given.recipe, ["cluster.workers=1", *given.set])
    alone, inside = [], []
    with tempfile.TemporaryDirectory() as folder, ray_workers.attached(recipe.cluster):
        for number in range(-1, given.rounds):  # the first round warms Ray and the page cache up
            place = Path(folder) / str(number)
            found = by_itself(recipe, place), in_a_sweep(recipe, place)
            print(number, found, flush=True)
            if number >= 0:
                alone.append(found[0])
                inside.append(found[1])
    given.out.write_text(document(alone, inside))
    print(given.out.read_text())


def by_itself(recipe: Recipe, folder: Path) -> dict[str, float]:
    """Return the seconds of each part of a training alone."""
    start = time.time()
    launch.train(recipe.model_copy(update={"name": "alone"}), folder, test=False)
    return parts(folder / "alone", start)


def in_a_sweep(recipe: Recipe, folder: Path) -> dict[str, float]:
    """Return the seconds of each part of a sweep's only trial."""
    start = time.time()
    sweep = tune(recipe, {"train.seed": {"choice": [recipe.train.seed]}}, folder / "sweep", samples=1)
    return parts(sweep.run(sweep.best), start)


def parts(run: Path, start: float) -> dict[str, float]:
    """Return the seconds of each part of a run that has just ended, by its log."""
    lines = runlog.read(run)
    first = next(line["time"] for line in lines if line["kind"] == "train")
    last = [line["time"] for line in lines if line["kind"] == "eval"][-1]
    return dict(zip(PARTS, (first - start, last - first, time.time() - last), strict=True))


def document(alone: list[dict[str, float]], inside: list[dict[str, float]]) -> str:
    """Return the Markdown file."""

    def seconds(runs: list[dict[str, float]], part: str) -> str:
        values = [run[part] for run in runs]
        return f"{statistics.median(values):.1f} ({min(values):.1f} - {max(values):.1f})"

    ratios = [b["training"] / a["training"] for a, b in zip(alone, inside, strict=True)]
    rows = [f"| {part} | {seconds(alone, part)} | {seconds(inside, part)} |" for part in PARTS]
    made_with = ", ".join(map(" ".join, versions().items()))
    return f"""# What a sweep costs its trials

Command: `python benchmarks/sweep.py {" ".join(sys.argv[1:])}`, {datetime.date.today()}, {os.cpu_count()} cores;
{made_with}

| seconds, median and range of {len(alone)} | alone | in a sweep |
| --- | --- | --- |
{chr(10).join(rows)}

Training in a sweep over training alone: **{statistics.median(ratios):.2f}** ({min(ratios):.2f} - {max(ratios):.2f})

Both on one Ray worker, in turns, on a Ray that was there already; the sweep's only trial, so that nothing else ran.
"""


if __name__ == "__main__":
    main()
