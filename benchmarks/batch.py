"""What larger batches cost in quality, and which rates make up for it: recipes at 1 to 32 times their batch, by rule.

    python benchmarks/batch.py --seeds 1 2 3
    python benchmarks/batch.py --only-table

A rule says by which power of the batch's factor each learning rate is multiplied, and whether the tables' weight decay
is divided by the factor: a row's part of a mean over s times the rows is 1/s of what it was, and decay would outweigh
it. Every rule but "fixed" rises linearly over the first tenth of the steps. All runs of a recipe read the same rows
once, MOST of them, and are evaluated at their end.

Each finished run is a line of --kept, and a run that has one is not trained again, so the command can be stopped at any
time and goes on; runs come by factor. The table shows validation; the test split's figures are printed for the stock
batch, for fixed rates and for the rule that is best on validation, and no other.
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from quality import made, rule, spread

from livetrain.configs.load import load_recipe, override
from livetrain.configs.schema import Recipe
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.statistics import Statistics, scan
from livetrain.trainers.runtime import ranks
from livetrain.trainers.runtime.versions import versions
from livetrain.trainers.train import schedule
from livetrain.trainers.train.feed import Feed
from livetrain.trainers.train.loop import Job, Trainer

RECIPES = [Path(f"configs/recipes/{name}.yaml") for name in ("dnn_kuairand", "dnn_ml1m")]
FACTORS = (1, 2, 4, 8, 16, 32)
FIRST = (32, 8, 1, 4, 16, 2)  # the same, in the order in which they are measured
MOST = 7 * 32 * 1536  # rows that a run learns from
WARMUP = 0.1  # share of the steps
SPLITS = ("valid", "test")
INTRO = """# Larger batches, and rates for them

{made}

Each recipe, without its histories, learns once from its training split, or from {most:,} random rows of it, in batches
of 1 to 32 times the stock batch. "Rule": by which power of the factor s the learning rates are multiplied; all but
"fixed" rise over the first tenth of the steps. Mean ± deviation over seeds. Rules are compared on validation; of the
test split stand only fixed rates and the rule that is best there.
"""


class Rule(NamedTuple):
    """By which power of the batch's factor rates are multiplied, and whether the tables' decay is divided by it."""

    name: str
    tables: float
    dense: float
    decay: bool = False


FIXED = Rule("fixed", 0, 0)
RULES = (
    FIXED,
    Rule("sqrt", 0.5, 0.5),
    Rule("linear", 1, 1),
    Rule("linear tables, sqrt dense part", 1, 0.5),
    Rule("sqrt, decay / s", 0.5, 0.5, decay=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", type=Path, nargs="*", default=RECIPES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rules", nargs="+", choices=[one.name for one in RULES], default=[one.name for one in RULES])
    parser.add_argument("--kept", type=Path, default=Path("runs/batch.jsonl"), help="a line per finished run")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/batch.md"))
    parser.add_argument("--only-table", action="store_true", help="of the runs that are there")
    given = parser.parse_args()
    given.workers = 0  # as `made` tells it
    torch.set_num_threads(1)
    kept = read(given.kept)
    if not given.only_table:
        for key, recipe in planned(given):
            if key not in kept:
                kept[key] = trained(recipe)
                given.kept.parent.mkdir(parents=True, exist_ok=True)
                with given.kept.open("a") as file:
                    file.write(json.dumps({"key": key, **kept[key]}) + "\n")
                print(key, f"{kept[key]['seconds']:.0f} s", flush=True)
    given.out.write_text(document(kept, given))
    print(f"written to {given.out}")


def read(path: Path) -> dict[tuple, dict[str, Any]]:
    """Return what each finished run found, by recipe, factor, rule and seed."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {tuple(found.pop("key")): found for found in map(json.loads, lines)}


def planned(given: argparse.Namespace) -> Iterator[tuple[tuple, Recipe]]:
    """Give every run's key and recipe: the factors in an order in which a table of the first ones tells most."""
    for times, path, seed in itertools.product(FIRST, given.recipes, given.seeds):
        for one in RULES if times > 1 else (FIXED,):
            if one.name in given.rules:
                recipe = without_histories(load_recipe(path, train={"seed": seed}, cluster={"workers": 0}))
                yield (path.stem, times, one.name, seed), scaled(recipe, times, one)


def without_histories(recipe: Recipe) -> Recipe:
    """Return a recipe without its sequences, which takes a tenth of the time."""
    lists = {name: None for name, feature in recipe.features.items() if feature.form == "sequence"}
    return load_recipe(recipe, features=lists, cluster={"device": "cpu"})


def scaled(recipe: Recipe, times: int, by: Rule) -> Recipe:
    """Return a recipe with so many times the batch and the rates that a rule gives it."""
    optimizers, batch = recipe.optimizers, recipe.data.batch_size * times
    values = {
        "data.batch_size": batch,
        "optimizers.sparse.lr": optimizers.sparse.lr * times**by.tables,
        "optimizers.dense.lr": optimizers.dense.lr * times**by.dense,
    }
    if by.decay:
        values["optimizers.sparse.weight_decay"] = optimizers.sparse.weight_decay / times
    if by != FIXED:
        values["optimizers.schedule.warmup_steps"] = math.ceil(WARMUP * rows(recipe) / batch)
    return override(recipe, values)


def rows(recipe: Recipe) -> int:
    """Return how many rows a run learns from: a random part of the training split, if that has more."""
    return min(MOST, opened(recipe)[0]["train"].rows)


def trained(recipe: Recipe) -> dict[str, Any]:
    """Train for one pass, and return the metrics with the processor time that it took."""
    started, cpu = time.process_time(), torch.device("cpu")
    with ranks.alone(cuda=False):
        trainer = Trainer(Job(recipe, Path("unused"), *opened(recipe)), cpu)
        sharded, steps = trainer.sharded, math.ceil(rows(recipe) / recipe.data.batch_size)
        sharded.module.train()
        with closing(trainer.reader.batches(0)) as batches:
            feed = Feed(batches, steps, trainer.reader)
            for step in range(steps):
                sharded.set_rates(schedule.factor(step, steps, recipe))
                ranks.seed_step(recipe.train.seed, step)
                sharded.pipeline.progress(feed)
        found = {f"{split}.{key}": value for split in SPLITS for key, value in trainer.evaluate(split, 0)[0].items()}
    figures = {key: value for key, value in found.items() if key.endswith((".auc", ".log_loss"))}
    return figures | {"steps": steps, "batch": recipe.data.batch_size, "seconds": time.process_time() - started}


def opened(recipe: Recipe) -> tuple[dict[str, Source], Statistics]:
    """Return the splits of a recipe's data, and the training split's statistics: looked at once for all runs."""
    path = recipe.data.path
    if path not in _opened:
        sources = {split: Source.open(recipe, split) for split in ("train", *SPLITS)}
        _opened[path] = sources, scan(sources["train"], recipe)
    return _opened[path]


_opened: dict[str, tuple[dict[str, Source], Statistics]] = {}


def document(kept: dict[tuple, dict[str, Any]], given: argparse.Namespace) -> str:
    """Return the Markdown file."""
    parts = [part for path in given.recipes for part in section(path.stem, kept)]
    return "\n".join([INTRO.format(made=made(versions(), given), most=MOST), *parts, ""])


Found = dict[tuple[int, str], list[dict[str, Any]]]  # the runs of a recipe by factor and rule


def section(name: str, kept: dict[tuple, dict[str, Any]]) -> list[str]:
    """Return a recipe's heading and tables: validation by rule and factor, and what the test split says of the best."""
    found: Found = {(times, one.name): [] for times in FACTORS for one in RULES}
    for (recipe, times, by, _), figures in sorted(kept.items()):
        if recipe == name:
            found[times, by].append(figures)
    known = [key.split(".")[1] for runs in found.values() for run in runs for key in run if key.startswith("valid.")]
    tasks, rules = sorted(set(known)), [one for one in RULES if any(found[times, one.name] for times in FACTORS[1:])]
    best = max(rules, key=lambda one: np.mean([overall(found, one, "valid", task, rules) for task in tasks]))
    compared = dict.fromkeys((FIXED, best))
    return [
        f"## {name}",
        *table("valid", tasks, found, rules, rules),
        *table("test", tasks, found, compared, rules),
        "",
    ]


def whole(found: Found, rules: list[Rule]) -> list[int]:
    """Return the larger factors at which every rule has run with every seed: those that rules are compared by."""
    seeds = max(len(runs) for runs in found.values())
    return [times for times in FACTORS[1:] if all(len(found[times, one.name]) == seeds for one in rules)]


def overall(found: Found, one: Rule, split: str, task: str, rules: list[Rule]) -> float:
    """Return a rule's AUC, mean over the factors by which rules are compared."""
    means = [np.mean([run[f"{split}.{task}.auc"] for run in found[times, one.name]]) for times in whole(found, rules)]
    return float(np.mean(means))


def table(split: str, tasks: list[str], found: Found, shown: Iterable[Rule], rules: list[Rule]) -> list[str]:
    """Return the lines of a split's table: steps, then each task's AUC by rule."""
    stock = {times: found[times, FIXED.name] for times in FACTORS}
    batches = [f"x {times}: {runs[0]['batch']:,} rows" if runs else f"x {times}" for times, runs in stock.items()]
    steps = [f"{runs[0]['steps']:,}" if runs else "" for runs in stock.values()]
    mean = f"mean of x {', '.join(map(str, whole(found, rules)))}"
    lines = [[f"{split} AUC", "rule", *batches, mean], ["steps", "", *steps, ""]]
    for task, one in itertools.product(tasks, shown):
        runs = [found[times, one.name if times > 1 else FIXED.name] for times in FACTORS]
        cells = [spread(np.array([run[f"{split}.{task}.auc"] for run in each])) if each else "" for each in runs]
        lines.append([task, one.name, *cells, f"{overall(found, one, split, task, rules):.4f}"])
    head, *rest = [f"| {' | '.join(line)} |" for line in lines]
    return ["", head, rule(head), *rest]


if __name__ == "__main__":
    main()
