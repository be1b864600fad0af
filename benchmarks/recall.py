"""Finding the video that a user clicks among all: two towers beside popularity, item-CF and matrix factorisation.

    livetrain data kuairand --raw DIR --out data/kuairand
    pip install implicit==0.7.3
    python benchmarks/recall.py --seeds 1 2 3

Every clicked row of 05-06..05-08 asks for its video among all videos of these days. The baselines learn from the clicks
of 04-25..05-05 and from the histories that the rows of these days carry; a recipe learns from the days that it names
for train and picks its checkpoint by those for valid. It sees what a user watched up to the asked row, and so does
item-CF "of the row's own history". The baselines' settings are those with the best recall@100 on
05-05 after learning from the days before it. Item-CF and matrix factorisation are those of the library implicit.
"""

import argparse
import json
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

from livetrain.modules.tasks.retrieval import AT
from livetrain.trainers.runtime.process import threads
from livetrain.trainers.runtime.versions import versions

HEAD = f"| method | seeds | {' | '.join(f'recall@{k}' for k in AT)} | {' | '.join(f'NDCG@{k}' for k in AT)} |"
FACTORS, ALPHAS, NEIGHBOURS = (16, 64), (1.0, 5.0, 20.0), (50, 200, 1000)
Scores = Callable[[pa.Table, np.ndarray], np.ndarray]  # n asked rows, items (N,) -> (n, N), the more the better
Method = Callable[[pa.Table], Scores]  # learns from rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, nargs="?", default=Path("configs/recipes/dssm_kuairand.yaml"))
    parser.add_argument("--data", type=Path, default=Path("data/kuairand"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/recall.md"))
    add_training(parser)
    given = parser.parse_args()
    torch.set_num_threads(threads())
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
        {f"item-CF, {k} neighbours": partial(item_cf, neighbours=k, fresh=False) for k in NEIGHBOURS},
        {
            f"item-CF of the row's own history, {k} neighbours": partial(item_cf, neighbours=k, fresh=True)
            for k in NEIGHBOURS
        },
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

    def scores(asked: pa.Table, items: np.ndarray) -> np.ndarray:
        place = np.searchsorted(known, items).clip(0, len(known) - 1)
        return np.broadcast_to(np.where(known[place] == items, counts[place], 0), (len(asked), len(items)))

    return scores


class Clicks:
    """Who clicked what, as a sparse matrix: clicked rows, and the events of the histories that rows carry."""

    def __init__(self, rows: pa.Table) -> None:
        clicked = rows.filter(pc.equal(rows["click"], 1))
        owner, seen = histories(rows)
        users = np.concatenate([clicked["user"].to_numpy(), rows["user"].to_numpy()[owner]])
        items = np.concatenate([clicked["video"].to_numpy(), seen])
        self.users, self.items = np.unique(users), np.unique(items)
        place = np.searchsorted(self.users, users), np.searchsorted(self.items, items)
        self.matrix = ones(place, (len(self.users), len(self.items)))

    def history(self, asked: pa.Table) -> sparse.csr_matrix:
        """Return the same for asked rows, of the known items in the history that each carries: (n, N)."""
        owner, seen = histories(asked)
        place = np.searchsorted(self.items, seen).clip(0, len(self.items) - 1)
        known = self.items[place] == seen
        return ones((owner[known], place[known]), (len(asked), len(self.items)))

    def of_users(self, asked: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Return the places of the asked rows' users, and which of them are known: (n,) both."""
        place = np.searchsorted(self.users, asked["user"].to_numpy()).clip(0, len(self.users) - 1)
        return place, self.users[place] == asked["user"].to_numpy()

    def among(self, items: np.ndarray, score: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Return (n, N) scores of items, from `score` of the places of the known ones; the others come last."""
        place = np.searchsorted(self.items, items).clip(0, len(self.items) - 1)
        out = score(place)
        out[:, self.items[place] != items] = out.min()
        return out


def histories(rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the row and the video of every event of the rows' histories."""
    lengths = pc.list_value_length(rows["video_id"]).fill_null(0).to_numpy()
    return np.repeat(np.arange(len(rows)), lengths), pc.list_flatten(rows["video_id"]).to_numpy()


def ones(place: tuple[np.ndarray, np.ndarray], shape: tuple[int, int]) -> sparse.csr_matrix:
    """Return a matrix of 1 at the places, however often they come."""
    matrix = sparse.csr_matrix((np.ones(len(place[0]), np.float32), place), shape)
    matrix.data[:] = 1.0
    return matrix


def item_cf(rows: pa.Table, neighbours: int, fresh: bool) -> Scores:
    """Return scores by the similarity to what a user has seen: while learning, or up to the asked row if `fresh`."""
    clicks = Clicks(rows)
    model = CosineRecommender(K=neighbours + 1)  # the item itself takes a place
    model.fit(clicks.matrix, show_progress=False)
    similar = model.similarity.tolil()
    similar.setdiag(0)
    similar = similar.tocsr()

    def scores(asked: pa.Table, items: np.ndarray) -> np.ndarray:
        place, known = clicks.of_users(asked)
        seen = clicks.history(asked) if fresh else sparse.diags(known.astype(np.float32)) @ clicks.matrix[place]
        return clicks.among(items, lambda column: (seen @ similar[:, column]).toarray())

    return scores


def factorised(rows: pa.Table, factors: int, alpha: float) -> Scores:
    clicks = Clicks(rows)
    model = AlternatingLeastSquares(factors, alpha=alpha, random_state=1, num_threads=1)
    model.fit(clicks.matrix, show_progress=False)

    def scores(asked: pa.Table, items: np.ndarray) -> np.ndarray:
        place, known = clicks.of_users(asked)
        users = model.user_factors[place] * known[:, None]
        return clicks.among(items, lambda column: users @ model.item_factors[column].T)

    return scores


def measured(scores: Scores, asked: pa.Table) -> dict[str, float]:
    """Return recall and NDCG of the clicked rows of some days among the videos of these days; ties count against."""
    items = np.unique(asked["video"].to_numpy())
    clicked = asked.filter(pc.equal(asked["click"], 1))
    wanted = np.searchsorted(items, clicked["video"].to_numpy())
    places = []
    for start in range(0, len(clicked), 1024):
        part = scores(clicked.slice(start, 1024), items)
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
