"""How far models get, on simulated live streams, on the way from a coin's AUC to that of the true probabilities.

    livetrain data simulate --users 20k --days 14 --seed 7 --out data/simulation
    livetrain data kuailive --raw data/simulation/kuailive --out data/simulated
    python benchmarks/quality_simulated.py --seeds 1 2 3

way = (AUC - .5) / (oracle's AUC - .5), on the same rows and labels. The second table tells what no column reveals from
what is left to learn: how well the truth itself ranks without one of its parts, and how much a part, given to the
trained DIN beside its own score, still adds.
"""

import argparse
import json
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import torch
from latents import PARTS, Truth
from quality import add_training, made, rule, scores, spread, trained
from sklearn.ensemble import HistGradientBoostingClassifier

from livetrain.configs.load import load_recipe
from livetrain.modules.metrics import binary
from livetrain.trainers.data.read.files import split_files
from livetrain.trainers.runtime.process import threads
from livetrain.trainers.runtime.versions import versions

TASKS = ("click", "effective_view", "like", "comment", "gift")
HEAD = "| model | task | seeds | test AUC | way to the oracle | oracle's AUC | test GAUC | positives | best steps |"
PRIOR = 20.0  # rows of the overall rate that a streamer's rate counts besides its own
RECIPES = [
    Path(f"configs/recipes/{name}.yaml")
    for name in ("lr_simulated", "dnn_simulated", "din_simulated", "din_simulated_pairs")
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", type=Path, nargs="*", default=RECIPES)
    parser.add_argument(
        "--world", type=Path, default=Path("data/simulation"), help="what `livetrain data simulate` wrote"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quality_simulated.md"))
    add_training(parser)
    given = parser.parse_args()
    torch.set_num_threads(threads())
    recipe = load_recipe(given.recipes[-1], given.set)
    rows = {split: read(recipe, split) for split in ("train", "valid", "test")}
    truth = {split: Truth(given.world, rows[split]) for split in ("valid", "test")}
    lines = [popularity(rows, truth["test"], task) for task in TASKS]
    lines.append(counts(recipe, rows, truth["test"], given.seeds))
    for path in given.recipes:
        runs = [trained(path, seed, given) for seed in given.seeds]
        results = [json.loads((run / "result.json").read_text()) for _, run in runs]
        lines += [recipe_line(path.stem, task, results, rows["test"], truth["test"]) for task in TASKS]
        print("\n".join(lines), flush=True)
    lines.sort(key=lambda line: TASKS.index(line.split("|")[2].strip()))
    told = apart(*runs[0], truth)
    text = [intro(rows, given), HEAD, rule(HEAD), *lines, "", *told, ""]
    given.out.write_text("\n".join(text))
    print("\n".join(told), f"\nwritten to {given.out}")


def read(recipe, split: str) -> pa.Table:
    """Return the scalar columns of a split's rows, in the order in which a reader numbers them."""
    _, _, paths = split_files(recipe, split)
    tables = [pa.parquet.read_table(path, partitioning=None) for path in paths]
    return pa.concat_tables([t.select([f.name for f in t.schema if not pa.types.is_list(f.type)]) for t in tables])


def popularity(rows: dict[str, pa.Table], truth: Truth, task: str) -> str:
    """Return the line of the streamer's rate in the training days, drawn towards the overall rate."""
    known = rows["train"][task].is_valid().to_numpy()
    label = rows["train"][task].fill_null(0).to_numpy()[known]
    streamers, place = np.unique(rows["train"]["streamer"].to_numpy()[known], return_inverse=True)
    rate = (np.bincount(place, label) + PRIOR * label.mean()) / (np.bincount(place) + PRIOR)
    asked = rows["test"]["streamer"].to_numpy()
    found = np.searchsorted(streamers, asked).clip(0, len(streamers) - 1)
    score = np.where(streamers[found] == asked, rate[found], label.mean())
    return scored("streamer's rate before the test days", task, [score], rows["test"], truth)


def counts(recipe, rows: dict[str, pa.Table], truth: Truth, seeds: list[int]) -> str:
    """Return the line of boosted trees on what was counted before each row: a user's exposures and clicks, in all, on
    the room's topic and of its streamer, and the streamer's rate. What a model may infer, without embeddings."""
    files = [path for split in ("train", "valid", "test") for path in split_files(recipe, split)[2]]
    whole = pa.concat_tables([rows[split] for split in ("train", "valid", "test")])
    keys = {"user": "user", "topic": "user, live_content_category", "pair": "user, streamer"}
    past = ", ".join(
        f"{figure} OVER (PARTITION BY {key} ORDER BY timestamp RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"
        f" AS {name}_{figure[0]}"
        for name, key in keys.items()
        for figure in ("count(*)", "sum(click)")
    )
    sources = ", ".join(f"'{path}'" for path in files)
    found = duckdb.sql(
        f"SELECT {past}, user, room, timestamp FROM read_parquet([{sources}], hive_partitioning = false)"
        " ORDER BY timestamp, user, room"
    ).to_arrow_table()
    order = np.lexsort((whole["room"].to_numpy(), whole["user"].to_numpy(), whole["timestamp"].to_numpy()))
    columns = [found[name].to_numpy().astype(float) for name in found.column_names if name[-2:] in ("_c", "_s")]
    inputs = np.empty((len(whole), len(columns) + 3))
    inputs[order, : len(columns)] = np.column_stack(columns)
    for place, name in enumerate(("streamer_click_rate", "room_age", "room_viewers")):
        inputs[:, len(columns) + place] = whole[name].to_numpy()
    first, last = len(rows["train"]), len(whole) - len(rows["test"])
    label = whole["click"].to_numpy()
    found = []
    for seed in seeds:
        trees = HistGradientBoostingClassifier(random_state=seed).fit(inputs[:first], label[:first])
        found.append(trees.predict_proba(inputs[last:])[:, 1])
    return scored("boosted trees on counts by user, topic and streamer", "click", found, rows["test"], truth)


def scored(name: str, task: str, found: list[np.ndarray], test: pa.Table, truth: Truth) -> str:
    """Return a baseline's line of the table; one score per seed."""
    known = test[task].is_valid().to_numpy()
    label, users = test[task].fill_null(0).to_numpy()[known], test["user"].to_numpy()[known]
    aucs = np.array([binary.auc(label, score[known]) for score in found])
    gaucs = np.array([binary.gauc(label, score[known], users) for score in found])
    return line(name, task, aucs, gaucs, test, truth, "-")


def recipe_line(name: str, task: str, results: list[dict], test: pa.Table, truth: Truth) -> str:
    """Return a recipe's line of the table."""
    aucs, gaucs = (np.array([result[f"test.{task}.{figure}"] for result in results]) for figure in ("auc", "gauc"))
    steps = ", ".join(f"{result['best_step']:,.0f}" for result in results)
    return line(name, task, aucs, gaucs, test, truth, steps)


def line(name: str, task: str, aucs: np.ndarray, gaucs: np.ndarray, test: pa.Table, truth: Truth, steps: str) -> str:
    """Return a line of the table."""
    known = test[task].is_valid().to_numpy()
    label = test[task].fill_null(0).to_numpy()[known]
    best = binary.auc(label, truth.chance(task)[known])
    way = f"**{100 * ((aucs - 0.5) / (best - 0.5)).mean():.1f} %**"
    cells = [name, task, len(aucs), spread(aucs), way, f"{best:.4f}", spread(gaucs), f"{label.sum():,.0f}", steps]
    return f"| {' | '.join(map(str, cells))} |"


def apart(recipe, run: Path, truth: dict[str, Truth]) -> list[str]:
    """Return the second part: click's truth without each of its parts, and what each part adds to DIN's score."""
    known = {split: scores(recipe, run, split)["click"] for split in ("valid", "test")}
    label, whole = known["test"].labels, truth["test"].logit
    best = binary.auc(label, whole)

    def way(score: np.ndarray) -> str:
        auc = binary.auc(label, score)
        return f"{auc:.4f} ({100 * (auc - 0.5) / (best - 0.5):.1f} %)"

    def added(names: list[str]) -> str:
        given = {
            split: np.column_stack([known[split].logits, *(truth[split].parts[name] for name in names)])
            for split in known
        }
        trees = HistGradientBoostingClassifier(random_state=0, max_iter=60).fit(given["valid"], known["valid"].labels)
        return way(trees.predict_proba(given["test"])[:, 1])

    head = "| part of the true logit | its deviation | truth without it | it alone | DIN's score and it |"
    lines = [f"## Click, {run.name}: what no column reveals, and what is left to learn", "", head, rule(head)]
    for name, words in PARTS.items():
        part = truth["test"].parts[name]
        cells = [words, f"{part.std():.2f}", way(whole - part), way(part), added([name])]
        lines.append(f"| {' | '.join(cells)} |")
    rest = [name for name in PARTS if name != "burst"]
    seen = whole - truth["test"].parts["burst"]
    lines.append(f"| all but the bursts | {seen.std():.2f} | {way(whole - seen)} | {way(seen)} | {added(rest)} |")
    lines += ["", f"DIN's score alone: {way(known['test'].logits)}; refitted by the same trees: {added([])}."]
    return lines


def intro(rows: dict[str, pa.Table], given: argparse.Namespace) -> str:
    """Return what stands above the tables."""
    return f"""# Simulated live streams: how far on the way to the truth

Data: `livetrain data simulate --users 20k --days 14 --seed 7 --out data/simulation`, then
`livetrain data kuailive --raw data/simulation/kuailive --out data/simulated`.
{made(versions(), given)}

{len(rows["train"]):,} rows to learn from, {len(rows["valid"]):,} to pick the checkpoint by, {len(rows["test"]):,} of
the last two days to be measured on. way = (AUC - .5) / (oracle's AUC - .5); the oracle is the true probability of the
same rows. Mean ± deviation over seeds.
"""


if __name__ == "__main__":
    main()
