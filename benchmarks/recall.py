"""Finding the video that a user clicks among all: two towers beside popularity, item-CF and matrix factorisation.

    livetrain data kuairand --raw DIR --out data/kuairand
    pip install implicit==0.7.3
    python benchmarks/recall.py --seeds 1 2 3

Every clicked row of 05-06..05-08 asks for its video among all videos of these days. The baselines learn from the clicks
of 04-25..05-05 and from the histories that the rows of these days carry; a recipe learns from the days that it names
for train and picks its checkpoint by those for valid. The baselines' settings are those with the best recall@100 on
05-05 after learning from the days before it. Item-CF and matrix factorisation are those of the library implicit.
"""

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from implicit.als import AlternatingLeastSquares
from implicit.nearest_neighbours import CosineRecommender
from quality import add_training, made, rule, spread, trained
from quality_kuairand import TEST, TRAIN, read
from scipy import sparse

from trainers.export import versions
from trainers.retrieval import AT

HEAD = f"| method | seeds | {' | '.join(f'recall@{k}' for k in AT)} | {' | '.join(f'NDCG@{k}' for k in AT)} |"
FACTORS, ALPHAS, NEIGHBOURS = (16, 64), (1.0, 5.0, 20.0), (50, 200, 1000)
Scores = Callable[[np.ndarray, np.ndarray], np.ndarray]  # users (n,), items (N,) -> (n, N), the more the better
Method = Callable[[pa.Table], Scores]  # learns from rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, nargs="?", default=Path("configs/recipes/dssm_kuairand.yaml"))
    parser.add_argument("--data", type=Path, default=Path("data/kuairand"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/recall.md"))
    add_training(parser)
    given = parser.parse_args()
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    before, valid, test = (read(given.data, days) for days in (TRAIN[:-1], TRAIN[-1:], TEST))
    lines = []
    for methods in baselines():
        name = max(methods, key=lambda name: measured(methods[name](before), valid)["recall_100"])
        lines.append(line(name, [measured(methods[name](pa.concat_tables([before, valid])), test)]))
        print(lines[-1], flush=True)
    for name, runs, change in (("", "recall", []), (", no log q", "recall-no-log-q", ["model.log_q=false"])):
        of = argparse.Namespace(**{**vars(given), "runs": given.runs / runs, "set": [*given.set, *change]})
        paths = [trained(given.recipe, seed, of)[1] for seed in given.seeds]
        results = [json.loads((path / "result.json").read_text()) for path in paths]
        lines.append(line(f"{given.recipe.stem}{name}", [of_click(result) for result in results]))
        print(lines[-1], flush=True)
    given.out.write_text("\n".join([intro(before, valid, test, given), HEAD, rule(HEAD), *lines, ""]))
    print(f"written to {given.out}")


def baselines() -> list[dict[str, Method]]:
    """Return the methods by name; of each dict the best counts."""
    return [
        {"most clicked": popular},
        {"most clicked on the last day": lambda rows: popular(of_last_day(rows))},
        {f"item-CF, {k} neighbours": partial(item_cf, neighbours=k) for k in NEIGHBOURS},
        {
            f"matrix factorisation, {factors} factors, alpha {alpha:g}": partial(
                factorised, factors=factors, alpha=alpha
            )
            for factors in FACTORS
            for alpha in ALPHAS
        },
    ]


def of_last_day(rows: pa.Table) -> pa.Table:
    day_ms = 86_400_000
    last = pc.max(pc.divide(rows["timestamp"], day_ms)).as_py()
    return rows.filter(pc.equal(pc.divide(rows["timestamp"], day_ms), last))


def popular(rows: pa.Table) -> Scores:
    clicked = rows.filter(pc.equal(rows["click"], 1))["video"].to_numpy()
    known, counts = np.unique(clicked, return_counts=True)

    def scores(users: np.ndarray, items: np.ndarray) -> np.ndarray:
        place = np.searchsorted(known, items).clip(0, len(known) - 1)
        return np.broadcast_to(np.where(known[place] == items, counts[place], 0), (len(users), len(items)))

    return scores


class Clicks:
    """Who clicked what, as a sparse matrix: clicked rows, and the events of the histories that rows carry."""

    def __init__(self, rows: pa.Table) -> None:
        clicked = rows.filter(pc.equal(rows["click"], 1))
        lists = pc.list_value_length(rows["video_id"]).fill_null(0).to_numpy()
        users = np.concatenate([clicked["user"].to_numpy(), np.repeat(rows["user"].to_numpy(), lists)])
        items = np.concatenate([clicked["video"].to_numpy(), pc.list_flatten(rows["video_id"]).to_numpy()])
        self.users, self.items = np.unique(users), np.unique(items)
        pair = np.searchsorted(self.users, users), np.searchsorted(self.items, items)
        self.matrix = sparse.csr_matrix((np.ones(len(users), np.float32), pair), (len(self.users), len(self.items)))
        self.matrix.data[:] = 1.0

    def among(self, users: np.ndarray, items: np.ndarray, score: Callable[[np.ndarray, np.ndarray], np.ndarray]):
        """Return (n, N) of what `score` says of the known rows and columns; the rest has the lowest of them."""
        row, column = np.searchsorted(self.users, users), np.searchsorted(self.items, items)
        row, column = row.clip(0, len(self.users) - 1), column.clip(0, len(self.items) - 1)
        out = score(row, column)
        out[:, self.items[column] != items] = out.min()
        out[self.users[row] != users] = out.min()
        return out


def item_cf(rows: pa.Table, neighbours: int) -> Scores:
    clicks = Clicks(rows)
    model = CosineRecommender(K=neighbours + 1)  # the item itself takes a place
    model.fit(clicks.matrix, show_progress=False)
    similar = model.similarity.tolil()
    similar.setdiag(0)
    similar = similar.tocsr()
    return lambda users, items: clicks.among(
        users, items, lambda row, column: (clicks.matrix[row] @ similar[:, column]).toarray()
    )


def factorised(rows: pa.Table, factors: int, alpha: float) -> Scores:
    clicks = Clicks(rows)
    model = AlternatingLeastSquares(factors, alpha=alpha, random_state=1, num_threads=1)
    model.fit(clicks.matrix, show_progress=False)
    return lambda users, items: clicks.among(
        users, items, lambda row, column: model.user_factors[row] @ model.item_factors[column].T
    )


def measured(scores: Scores, asked: pa.Table) -> dict[str, float]:
    """Return recall and NDCG of the clicked rows of some days among the videos of these days; ties count against."""
    items = np.unique(asked["video"].to_numpy())
    clicked = asked.filter(pc.equal(asked["click"], 1))
    users, wanted = clicked["user"].to_numpy(), np.searchsorted(items, clicked["video"].to_numpy())
    places = []
    for start in range(0, len(users), 1024):
        part = scores(users[start : start + 1024], items)
        own = np.take_along_axis(part, wanted[start : start + 1024, None], 1)
        places.append((part >= own).sum(1))
    place = np.concatenate(places)
    gain = 1 / np.log2(1 + place)
    return {f"recall_{k}": float((place <= k).mean()) for k in AT} | {
        f"ndcg_{k}": float((gain * (place <= k)).mean()) for k in AT
    }


def of_click(result: dict[str, float]) -> dict[str, float]:
    return {f"{metric}_{k}": result[f"test.click.{metric}_{k}"] for metric in ("recall", "ndcg") for k in AT}


def line(name: str, found: list[dict[str, float]]) -> str:
    """Return a line of the table from the figures of each seed."""
    cells = [spread(np.array([one[f"{metric}_{k}"] for one in found])) for metric in ("recall", "ndcg") for k in AT]
    return f"| {' | '.join([name, str(len(found)), *cells])} |"


def intro(before: pa.Table, valid: pa.Table, test: pa.Table, given: argparse.Namespace) -> str:
    """Return what stands above the table."""
    clicks = pc.sum(test["click"]).as_py()
    return f"""# Recall on KuaiRand-Pure: two towers, popularity, item-CF, matrix factorisation

{made(versions() | {"implicit": version("implicit")}, given)}

{len(before) + len(valid):,} rows of 04-25..05-05 to learn from; {clicks:,} clicked rows of 05-06..05-08 ask for their
video among the {pc.count_distinct(test["video"]).as_py():,} of these days. Mean ± deviation over seeds.
"""


if __name__ == "__main__":
    main()
