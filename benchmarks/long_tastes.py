"""What a cut of long histories costs in quality: attention to the newest events against a search in all of them.

    OMP_NUM_THREADS=1 python benchmarks/long_tastes.py --seeds 1 2 3

A world whose old events tell as much as its new ones. A user likes each of TOPICS topics with a chance of its own,
drawn from Beta(.5, 1) once for good, and was shown EVENTS items, whose topics come from one long-tailed distribution (a
share of rank ** -.7 each); the history holds the topic of each and whether it was clicked. Then come CANDIDATES more
from the same distribution, clicked with the same chances: the rows. No user of one split is in another, and all topics
are liked alike, so that all there is to learn is what the user did with the candidate's topic before: .8 events in the
mean among the newest 50, and 152 among 10,000.

So the best score is known for every cut: of n earlier events with the topic, k of them clicked, the chance is
(.5 + k) / (1.5 + n). Way = (AUC - .5) / (that of all EVENTS - .5).
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from quality import add_training, made, measure, rule, spread

from livetrain.configs.trees import dump_tree
from livetrain.modules.metrics import binary
from livetrain.trainers.data.write import layout
from livetrain.trainers.runtime.process import threads
from livetrain.trainers.runtime.versions import versions

TOPICS, EVENTS, CANDIDATES = 200, 10_000, 20
CUTS = (50, 200, 1000, EVENTS)
LIKES, DISLIKES = 0.5, 1.0  # of the Beta distribution
USERS = {"train": 3000, "valid": 300, "test": 1000}
SEARCH = [{"query": ["topic"], "events": ["past"], "side": ["clicked"]}]
TWIN = {"kind": "twin", "search": SEARCH, "heads": 2, "head_width": 16, "tower_units": [64]}
DIN = {"kind": "din", "attention": SEARCH, "attention_units": [32], "units": [64]}
CASES: dict[str, tuple[int, dict[str, Any], int]] = {  # newest events that are read, the model, epochs
    "din-50": (50, DIN, 3),
    "din-200": (200, DIN, 3),
    "din-1000": (1000, DIN, 3),
    "twin-all-of-200": (200, TWIN | {"nearest": 200}, 3),
    "twin-all-of-1000": (1000, TWIN | {"nearest": 1000}, 3),
    "twin-50-of-1000": (1000, TWIN | {"nearest": 50}, 3),
    "twin-50-of-10000": (10_000, TWIN | {"nearest": 50}, 1),
    "twin-500-of-10000": (10_000, TWIN | {"nearest": 500}, 1),
}
HEAD = "| scored by | events read | seeds | test AUC | error, users | way |"


def write(out: Path) -> None:
    """Write the splits as requests, one per user, and the best scores of the test rows by cut."""
    draw = np.random.default_rng(0)
    share = np.arange(1, TOPICS + 1) ** -0.7
    share /= share.sum()
    layout.begin(out)
    first, best = 0, {}
    for split, users in USERS.items():
        (out / split).mkdir()
        chance = draw.beta(LIKES, DISLIKES, (users, TOPICS))
        past = draw.choice(TOPICS, (users, EVENTS), p=share).astype(np.int16)
        clicked = (draw.random(past.shape) < np.take_along_axis(chance, past, 1)).astype(np.int16)
        topic = draw.choice(TOPICS, (users, CANDIDATES), p=share).astype(np.int16)
        click = (draw.random(topic.shape) < np.take_along_axis(chance, topic, 1)).astype(np.int8)
        columns = {"user": pa.array(np.arange(first, first + users))} | {
            name: layout.lists(np.arange(0, values.size + 1, values.shape[1]), values.ravel(), pa.array(values[0]).type)
            for name, values in {"past": past, "clicked": clicked, "topic": topic, "click": click}.items()
        }
        pq.write_table(pa.table(columns), out / split / "part.parquet", row_group_size=100, compression="zstd")
        first += users
        if split == "test":
            for newest in CUTS:
                n, k = counts(past[:, -newest:], clicked[:, -newest:], topic)
                best[str(newest)] = (LIKES + k) / (LIKES + DISLIKES + n)
            np.savez(out / "best.npz", click=click, **best)
    layout.finish(out, {"dataset": "long tastes"})


def counts(past: np.ndarray, clicked: np.ndarray, topic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how many of the events (users, T) have each candidate's topic (users, C), and how many were clicked."""
    shown = [np.bincount(row, minlength=TOPICS) for row in past]
    liked = [np.bincount(row, own, minlength=TOPICS) for row, own in zip(past, clicked, strict=True)]
    return np.take_along_axis(np.array(shown), topic, 1), np.take_along_axis(np.array(liked), topic, 1)


def recipe(name: str, data: Path) -> dict[str, Any]:
    """Return the recipe of a case."""
    length, model, epochs = CASES[name]
    table = {"hash": "modulo", "dim": 16, "init_std": 0.3}  # of .01, attention begins so even that it learns slowly
    return {
        "data": {"path": str(data), "layout": "request", "candidates": CANDIDATES, "batch_size": 4}
        | {"shards": 4, "shuffle_window": 300},
        "features": {
            "topic": {"type": "id", "table": "topic"},
            "past": {"type": "sequence", "table": "topic", "max_length": length},
            "clicked": {"type": "sequence", "table": "clicked", "max_length": length},
        },
        "tables": {"topic": {"rows": TOPICS, **table}, "clicked": {"rows": 2, **table}},
        "model": model,
        "tasks": {"click": {"label": "click"}},
        "optimizers": {
            "sparse": {"kind": "rowwise_adagrad", "lr": 0.05},
            "dense": {"kind": "adam", "lr": 3e-3},
            "schedule": {"decay": "linear"},
        },
        "train": {"epochs": epochs, "evaluate_every": 0.5},
        "evaluate": {"group_by": "user"},
        "export": {"after_training": False},
    }


def case(name: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Return what `measure` does of a case."""
    path = given.runs / "recipes" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump_tree(recipe(name, given.data)))
    return measure(path, seed, given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--data", type=Path, default=Path("data/long-tastes"), help="written if it is not there")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/long_tastes.md"))
    add_training(parser)
    given = parser.parse_args()
    torch.set_num_threads(threads())
    if layout.finished(given.data) is None:
        write(given.data)
    best = np.load(given.data / "best.npz")
    most = binary.auc(best["click"].ravel(), best[str(EVENTS)].ravel())
    lines = []

    def line(name: str, events: int, auc: np.ndarray, error: str) -> None:
        way = f"{(auc.mean() - 0.5) / (most - 0.5):.1%}"
        lines.append(f"| {name} | {events:,} | {len(auc)} | {spread(auc)} | {error} | {way} |")
        print(lines[-1], flush=True)

    for newest in CUTS:
        labels, scores = best["click"].ravel(), best[str(newest)].ravel()
        users = np.repeat(np.arange(USERS["test"]), CANDIDATES)
        auc, error = binary.auc(labels, scores), binary.bootstrap(labels, scores, users)[0]
        line("the best there is", newest, np.array([auc]), f"{error:.4f}")
    for name in given.cases:
        found = [case(name, seed, given) for seed in given.seeds]
        auc = np.array([each["test.click.auc"] for each in found])
        error = np.mean([each["test.click.error_groups"] for each in found])
        line(name, CASES[name][0], auc, f"{error:.4f}")
    intro = f"# What a cut of long histories costs in quality\n\n{made(versions(), given)}\n"
    given.out.write_text("\n".join([intro, HEAD, rule(HEAD), *lines, ""]))


if __name__ == "__main__":
    main()
