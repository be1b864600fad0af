"""What a warm start is worth: nights one after another, each with last night's weights and without them.

    livetrain data kuairand --raw DIR --out data/kuairand
    python benchmarks/nightly.py configs/recipes/din_kuairand.yaml --train 1 3

Every night learns from the `--train` days before its validation day and is measured on the day after it, from the first
night that the data allow to the last; a warm night begins with the night before, which has not seen its test day.
"""

import argparse
import json
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import torch
from quality import made, rule

from livetrain.cluster import launch
from livetrain.cluster.days import moved, newest_day
from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Days, WarmStart
from livetrain.trainers.runtime.process import threads
from livetrain.trainers.runtime.versions import versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--train", type=int, nargs="+", default=[1, 3], help="days that a night learns from")
    parser.add_argument("--first", default="2022-04-25", help="first day of the data")
    parser.add_argument("--workers", type=int, default=0, help="Ray workers; 0 trains inside this process")
    parser.add_argument("--runs", type=Path, default=Path("runs/nightly"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/nightly.md"))
    given = parser.parse_args()
    torch.set_num_threads(threads())
    lines = [line for count in given.train for line in nights(count, given)]
    head = (
        "| days learned from | nights | task | cold | warm | warm - cold, mean ± deviation over nights | warm ahead |"
    )
    text = f"""# Nights with and without a warm start: {given.recipe.stem}

{made(versions(), given)}

Test AUC, the mean over nights. The first night has none before it and is left out.
"""
    given.out.write_text("\n".join([text, head, rule(head), *lines, ""]))
    print(given.out.read_text())


def nights(count: int, given: argparse.Namespace) -> list[str]:
    """Train all nights of windows of `count` days; return the table's lines."""
    first = date.fromisoformat(given.first)
    train, valid, test = (str(first + timedelta(days=n)) for n in (count - 1, count, count + 1))
    days = Days(train=f"{first}..{train}", valid=f"{valid}..{valid}", test=f"{test}..{test}")
    recipe = load_recipe(given.recipe, [f"cluster.workers={given.workers}"])
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"days": days})})
    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for kind, results in found.items():
        day, before = date.fromisoformat(test), None
        while str(day) <= newest_day(recipe):
            night = moved(recipe.model_copy(update={"name": f"{given.recipe.stem}-{count}-{kind}"}), str(day))
            if kind == "warm" and before is not None:
                start = night.train.model_copy(update={"warm_start": WarmStart(run=str(before))})
                night = night.model_copy(update={"train": start})
            before = given.runs.resolve() / night.name
            if not (before / "result.json").exists():
                launch.train(night, given.runs)
            results.append(json.loads((before / "result.json").read_text()))
            day += timedelta(days=1)
    out = []
    for task in recipe.tasks:
        cold, warm = (np.array([r[f"test.{task}.auc"] for r in found[kind][1:]]) for kind in found)
        gain = warm - cold
        cells = [count, len(gain), task, f"{cold.mean():.4f}", f"{warm.mean():.4f}"]
        cells += [f"{gain.mean():+.4f} ± {gain.std(ddof=1):.4f}", f"{(gain > 0).sum()} of {len(gain)}"]
        out.append(f"| {' | '.join(map(str, cells))} |")
    return out


if __name__ == "__main__":
    main()
