"""DIN and DNN on KuaiRand-Pure beside what needs no embeddings: an item's past rate, and boosted trees.

    livetrain data kuairand --raw DIR --out data/kuairand
    python benchmarks/quality_kuairand.py --seeds 1 2 3

All are measured on 05-06..05-08. The baselines learn from 04-25..05-05; a recipe learns from the days that it names for
train and picks its checkpoint by those for valid, so 05-05 is not learned from. No figure of the test days is used to
choose anything.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from quality import add_training, made, measure, rule, spread
from sklearn.ensemble import HistGradientBoostingClassifier

from livetrain.modules.metrics import binary
from livetrain.trainers.runtime.process import threads
from livetrain.trainers.runtime.versions import versions

TASKS = ("click", "long_view")
TRAIN = [f"2022-04-{day}" for day in range(25, 31)] + [f"2022-05-0{day}" for day in range(1, 6)]
TEST = [f"2022-05-0{day}" for day in range(6, 9)]
# The columns of the published baseline: scene, time, length, tenure, tag, and the user's running count and rate.
COLUMNS = ("tab", "hour", "duration", "register_days", "tag", "user_seen_count")
RATES = tuple(
    f"{who}_{rate}" for who in ("video", "author", "user") for rate in ("count", "click_rate", "long_view_rate")
)
RECIPES = [Path(f"configs/recipes/{name}.yaml") for name in ("dnn_kuairand", "din_kuairand", "din_kuairand_pairs")]
PRIOR = 20.0  # rows of the overall rate that an item's rate counts besides its own
HEAD = "| model | task | seeds | test AUC | test GAUC | error, rows | error, users | valid AUC | best steps |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", type=Path, nargs="*", default=RECIPES)
    parser.add_argument("--data", type=Path, default=Path("data/kuairand"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quality_kuairand.md"))
    add_training(parser)
    given = parser.parse_args()
    torch.set_num_threads(threads())
    train, test = read(given.data, TRAIN), read(given.data, TEST)
    lines = [line for task in TASKS for line in baselines(train, test, task, given.seeds)]
    for path in given.recipes:
        results = [measure(path, seed, given) for seed in given.seeds]
        lines += [recipe_line(path.stem, task, results) for task in TASKS]
        print("\n".join(lines), flush=True)
    lines.sort(key=lambda line: TASKS.index(line.split("|")[2].strip()))
    given.out.write_text("\n".join([intro(train, test, given), HEAD, rule(HEAD), *lines, ""]))
    print(f"written to {given.out}")


def read(data: Path, days: list[str]) -> pa.Table:
    """Return the rows of some days."""
    files = [path for day in days for path in sorted((data / f"date={day}").glob("*.parquet"))]
    return pa.concat_tables([pq.read_table(path, partitioning=None) for path in files])


def baselines(train: pa.Table, test: pa.Table, task: str, seeds: list[int]) -> list[str]:
    """Return the lines of the item's rate, of the published boosted trees, and of those given all past rates."""
    rate = item_rate(train, test, task)
    lines = [line("item's rate before the test days", task, test, [rate])]
    for name, more in (("boosted trees", ()), ("boosted trees, with past rates of item and author", RATES)):
        columns = (*COLUMNS, f"user_seen_{task}_rate", *more)
        given, asked = (matrix(part, columns, train) for part in (train, test))
        found = []
        for seed in seeds:
            trees = HistGradientBoostingClassifier(random_state=seed).fit(given, train[task].to_numpy())
            found.append(trees.predict_proba(asked)[:, 1])
        lines.append(line(name, task, test, found))
    return lines


def item_rate(train: pa.Table, test: pa.Table, task: str) -> np.ndarray:
    """Return (n,) the rate of each test row's video in the training days, drawn towards the overall rate."""
    items, place = np.unique(train["video"].to_numpy(), return_inverse=True)
    label = train[task].to_numpy()
    rate = (np.bincount(place, label) + PRIOR * label.mean()) / (np.bincount(place) + PRIOR)
    asked = test["video"].to_numpy()
    found = np.searchsorted(items, asked).clip(0, len(items) - 1)
    return np.where(items[found] == asked, rate[found], label.mean())


def matrix(part: pa.Table, columns: tuple[str, ...], train: pa.Table) -> np.ndarray:
    """Return (n, columns) numbers; a tag becomes its place among the training days' tags, missing where it is new."""
    tags = np.unique(train["tag"].drop_null().to_numpy())
    out = []
    for name in columns:
        values = part[name].to_numpy().astype(np.float64)
        if name == "tag":
            exact = part[name].fill_null(0).to_numpy()
            place = np.searchsorted(tags, exact).clip(0, len(tags) - 1)
            values = np.where(part[name].is_valid().to_numpy() & (tags[place] == exact), place, np.nan)
        out.append(values)
    return np.column_stack(out)


def line(name: str, task: str, test: pa.Table, scores: list[np.ndarray]) -> str:
    """Return a baseline's line of the table; one score per seed."""
    label, users = test[task].to_numpy(), test["user"].to_numpy()
    aucs, gaucs = (
        np.array([figure(s) for s in scores])
        for figure in (lambda s: binary.auc(label, s), lambda s: binary.gauc(label, s, users))
    )
    errors = [binary.bootstrap(label, scores[0], groups)[0] for groups in (None, users)]
    cells = [name, task, len(scores), f"**{spread(aucs)}**", spread(gaucs), *(f"{e:.4f}" for e in errors), "-", "-"]
    return f"| {' | '.join(map(str, cells))} |"


def recipe_line(name: str, task: str, results: list[dict]) -> str:
    """Return a recipe's line of the table."""

    def of(key: str) -> np.ndarray:
        return np.array([result[key] for result in results])

    cells = [
        name,
        task,
        len(results),
        f"**{spread(of(f'test.{task}.auc'))}**",
        spread(of(f"test.{task}.gauc")),
        *(f"{of(f'test.{task}.{error}').mean():.4f}" for error in ("error_rows", "error_groups")),
        spread(of(f"valid.{task}.auc")),
        ", ".join(f"{step:,.0f}" for step in of("best_step")),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def intro(train: pa.Table, test: pa.Table, given: argparse.Namespace) -> str:
    """Return what stands above the table."""
    return f"""# KuaiRand-Pure: DIN over a DNN, boosted trees and the item's rate

{made(versions(), given)}

{len(train):,} rows of 04-25..05-05 to learn from, {len(test):,} of 05-06..05-08 to be measured on. Mean ± deviation
over seeds; "error": bootstrap deviation of the test AUC over rows and over whole users. Boosted trees: scikit-learn's
HistGradientBoostingClassifier on scene, hour, duration, register days, tag, and the user's running count and rate;
published for the same rows and columns: click .730, long_view .728, and the item's rate alone .663 and .672.
"""


if __name__ == "__main__":
    main()
