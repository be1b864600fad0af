"""Finding items: what is measured, and that ranks only share the work of it and of learning it."""

import json
import math
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from livetrain.cluster import launch
from livetrain.configs.errors import BadInput
from livetrain.configs.load import dump_recipe
from livetrain.configs.schema import CANDIDATES, SEEN
from livetrain.modules.batch import Batch
from livetrain.modules.model import Model
from livetrain.modules.network import Network
from livetrain.modules.tables.hashing import mix
from livetrain.trainers.evaluate import retrieval
from livetrain.trainers.evaluate.draws import Draws, paired
from livetrain.trainers.evaluate.intervals import Bootstrap
from livetrain.trainers.evaluate.retrieval import AT, Retrieval
from livetrain.trainers.evaluate.selection import check_select, selectable
from livetrain.trainers.export.export import export
from livetrain.trainers.export.rows import golden_inputs
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train import preflight
from tests import samples, twins
from tests.trainers.train import test_loop as loop
from tests.trainers.train import test_sharding as sharding

BAG = {"type": "bag", "table": "movie", "column": "history", "weights": "rating"}
MODEL = {"kind": "dssm", "key": "movie", "item": [], "units": [16], "width": 8}
TASKS = {"click": {"label": "label", "kind": "retrieval"}}


class _Towers(nn.Module):
    """Hands out prepared vectors, batch by batch."""

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return user, item


class _Network(Network):
    key = "movie"

    def __init__(self) -> None:
        super().__init__()
        self.towers = _Towers()


def split(size: int = 300, seed: int = 0) -> tuple[list[Batch], list[tuple[torch.Tensor, torch.Tensor]]]:
    """Batches of a split, with padding and rows without an item, and the vectors of their rows.

    Vectors are small whole numbers: many scores are equal, and the order of sums does not matter.
    """
    made_for = twins.recipe(tasks=TASKS, model=MODEL)
    generator = torch.Generator().manual_seed(seed)
    batches = twins.batches(made_for, size // 48, seed)
    out = []
    for batch in batches:
        ids = batch.ids["movie"]
        ids.values().copy_(torch.randint(0, 25, ids.values().shape, generator=generator) - 12)
        out.append([torch.randint(-2, 3, (48, 4), generator=generator).float() for _ in range(2)])
    return batches, out


def measured(batches: list[Batch], vectors: list, listed: int = 0, **changes) -> dict[str, float]:
    """What this rank's part of each batch gives, with those of the others; the last batches list the catalogue."""
    network = _Network()
    recipe = twins.recipe(tasks=TASKS, model=MODEL, **changes)
    found = Retrieval(network, recipe, Bootstrap(recipe.evaluate.bootstrap, recipe.train.seed))
    rank, world = ranks.rank(), ranks.world()
    with found.watching():
        for number, (batch, pair) in enumerate(zip(batches, vectors, strict=True)):
            network.towers(*(part.chunk(world)[rank] for part in pair))
            found.add(twins.part(batch, rank, world), listed=number >= len(batches) - listed)
    return found.compute()


def by_hand(batches: list[Batch], vectors: list, queries: int = 2**16, draws: int = 0) -> dict[str, float]:
    """What is to be found; with draws, also the intervals of groups that `grouped` makes."""
    rows = []  # (row number, key, positive, user, item)
    for batch, (user, item) in zip(batches, vectors, strict=True):
        for b, ids in enumerate(batch.ids["movie"].to_dense()):
            if batch.weights[b] > 0 and len(ids):
                rows.append(
                    (int(batch.rows[b]), int(ids[0]), batch.labels[b, 0] == 1, user[b].numpy(), item[b].numpy())
                )
    newest = {key: item for _, key, _, _, item in sorted(rows, key=lambda row: row[0])}
    asked = [row for row in rows if row[2]]
    asked = sorted(asked, key=lambda row: int(mix(torch.tensor(row[0] + 1))))[:queries]
    places = np.array([place_of(user, key, newest) for _, key, _, user, _ in asked])
    out = {"click.items": len(newest), "click.queries": len(asked), "click.unlisted": 0}
    groups = np.array([row[0] % GROUPS for row in asked])
    for k in AT:
        for metric, each in (
            ("recall", places <= k),
            ("ndcg", [1 / math.log2(1 + place) if place <= k else 0 for place in places]),
        ):
            out[f"click.{metric}_{k}"] = np.mean(each)
            if draws:
                times = [Bootstrap(draws, 1).times(np.arange(GROUPS), draw)[groups] for draw in range(draws)]
                ends = np.percentile([np.average(each, weights=often) for often in times], [2.5, 97.5])
                out |= dict(zip((f"click.{metric}_{k}_low", f"click.{metric}_{k}_high"), ends, strict=True))
    return out


def place_of(user: np.ndarray, key: int, vectors: dict[int, np.ndarray]) -> float:
    """1, the items with better scores, and half of the others with the same."""
    own, others = user @ vectors[key], [user @ vector for other, vector in vectors.items() if other != key]
    return 1 + sum(score > own for score in others) + sum(score == own for score in others) / 2


GROUPS = 17


@pytest.mark.slow
def test_intervals_are_of_groups_on_one_rank_and_two(two_ranks):
    batches, vectors = split(1200)
    for batch in batches:
        batch.groups = batch.rows % GROUPS
    wanted = by_hand(batches, vectors, draws=40)
    assert wanted["click.ndcg_10_low"] < wanted["click.ndcg_10"] < wanted["click.ndcg_10_high"]
    changes = {"evaluate__bootstrap": 40}
    found = measured(batches, vectors, **changes)
    assert found == pytest.approx(wanted)
    for other in two_ranks.run(drawing, batches, vectors, changes):
        assert other == found


def drawing(batches: list[Batch], vectors: list, changes: dict) -> dict[str, float]:
    return measured(batches, vectors, **changes)


@pytest.mark.parametrize("queries", [2**16, 7])
def test_equals_a_search_by_hand_on_one_rank_and_two(two_ranks, monkeypatch, queries):
    batches, vectors = split()
    wanted = by_hand(batches, vectors, queries)
    assert 0 < wanted["click.recall_10"] < 1 == wanted["click.recall_50"]
    monkeypatch.setattr(retrieval, "QUERIES", queries)
    assert measured(batches, vectors) == pytest.approx(wanted)
    for found in two_ranks.run(with_queries, queries, batches, vectors):
        assert found == pytest.approx(wanted)


def by_hand_listed(batches: list[Batch], vectors: list, listed: int, asides: set[str]) -> dict[str, float]:
    """The same where the last batches are the catalogue, and lists of a row say what counts in it, or does not."""
    rows, newest = [], {}
    for number, (batch, (user, item)) in enumerate(zip(batches, vectors, strict=True)):
        lists = {name: batch.asides[name].to_dense() for name in asides}
        for b, ids in enumerate(batch.ids["movie"].to_dense()):
            if not (batch.weights[b] > 0 and len(ids)):
                continue
            if number >= len(batches) - listed:
                newest[int(ids[0])] = max(newest.get(int(ids[0]), (-1, None)), (int(batch.rows[b]), item[b].numpy()))
            elif batch.labels[b, 0] == 1:
                rows.append((int(ids[0]), {name: {*own[b].tolist()} for name, own in lists.items()}, user[b].numpy()))
    places = []
    for key, own, user in rows:
        if key not in newest:
            places.append(math.inf)
            continue
        count = own.get(CANDIDATES, {*newest}) - own.get(SEEN, set()) | {key}
        places.append(place_of(user, key, {other: v for other, (_, v) in newest.items() if other in count}))
    out = {"click.items": len(newest), "click.queries": len(places), "click.unlisted": places.count(math.inf)}
    for k in AT:
        out[f"click.recall_{k}"] = np.mean([place <= k for place in places])
        out[f"click.ndcg_{k}"] = np.mean([1 / math.log2(1 + place) if place <= k else 0 for place in places])
    return out


@pytest.mark.parametrize("asides", [{SEEN}, {CANDIDATES}, {SEEN, CANDIDATES}], ids="_".join)
def test_lists_of_what_counts_equal_a_search_by_hand_on_one_rank_and_two(two_ranks, asides):
    """Each row has two lists of its own, longer than its history may be."""
    batches, vectors = split(720)
    draw = np.random.default_rng(0)
    for batch in batches:
        lengths = draw.integers(0, 24, (len(asides), 48))
        values = torch.from_numpy(draw.integers(-12, 13, lengths.sum()))
        batch.asides = KeyedJaggedTensor(sorted(asides), values, lengths=torch.from_numpy(lengths.ravel()))
    for batch in batches[-2:]:  # lists some of the items, some of them twice
        ids = batch.ids["movie"].values()
        ids.copy_(ids.clamp(max=6))
    listed = {"evaluate__catalogue": "items.parquet"}
    changes = listed | {f"evaluate__{name[1:-1]}": "history" for name in asides}
    wanted = by_hand_listed(batches, vectors, 2, asides)
    assert 0 < wanted["click.unlisted"] < wanted["click.queries"]
    assert wanted["click.items"] < 20
    found = measured(batches, vectors, 2, **changes)
    assert found == pytest.approx(wanted)
    assert found["click.recall_10"] > measured(batches, vectors, 2, **listed)["click.recall_10"]
    for found in two_ranks.run(listing, batches, vectors, changes):
        assert found == pytest.approx(wanted)


def listing(batches: list[Batch], vectors: list, changes: dict) -> dict[str, float]:
    return measured(batches, vectors, 2, **changes)


def with_queries(queries: int, batches: list[Batch], vectors: list) -> dict[str, float]:
    before, retrieval.QUERIES = retrieval.QUERIES, queries
    try:
        return measured(batches, vectors)
    finally:
        retrieval.QUERIES = before


def test_rows_are_merged_on_the_way(monkeypatch):
    batches, vectors = split(960)
    wanted = measured(batches, vectors)
    monkeypatch.setattr(retrieval, "_PENDING", 100)
    monkeypatch.setattr(retrieval, "_CELLS", 64)  # a few rows are ranked at a time
    assert measured(batches, vectors) == wanted == pytest.approx(by_hand(batches, vectors))


def test_a_model_that_tells_nothing_apart_finds_nothing():
    batches, vectors = split(1200)
    for value in (1.0, math.nan):
        same = [(torch.full_like(user, value), torch.full_like(item, value)) for user, item in vectors]
        assert measured(batches, same)["click.recall_10"] == 0


def test_without_positives_nothing_is_defined():
    batches, vectors = split(48)
    batches[0].labels.zero_()
    found = measured(batches, vectors)
    assert found["click.queries"] == 0
    assert found["click.items"] > 0
    assert math.isnan(found["click.recall_10"])


CASES = {
    "rows and tables, row-wise Adagrad": {},
    "SGD, column-wise": {"optimizers__sparse__kind": "sgd", "tables__movie__sharding": "column_wise"},
    "weights of rows, unknown labels, no correction": {
        "tasks__click__sample_weight": "worth",
        "tasks__click__unknown": True,
        "model__log_q": False,
    },
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_sharded_equals_plain(two_ranks, changes):
    made_for = twins.recipe(**{"tasks": json.loads(json.dumps(TASKS)), "model": dict(MODEL), **changes})
    with ranks.alone(cuda=False):
        sharding.compare(sharding.train_sharded(made_for), made_for, 5e-6)
    first, second = two_ranks.run(sharding.train_sharded, made_for)
    sharding.compare(first, made_for, 5e-6)
    assert all(torch.equal(first["dense"][k], second["dense"][k]) for k in first["dense"])


def changes(**more) -> dict:
    tasks = {"click": dict(TASKS["click"])}
    return {"model": MODEL, "tasks": tasks, "optimizers__dense__lr": 0.01, **more}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return samples.write(tmp_path_factory.mktemp("samples"), rows=1000)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    """A finished run."""
    runs = tmp_path_factory.mktemp("runs")
    launch.train(samples.recipe(data, **changes(train__checkpoint_every=5)), runs)
    return runs / "small"


def test_the_best_checkpoint_is_the_one_that_finds_most(run):
    result = json.loads((run / "result.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    recalls = [line["click.recall_100"] for line in lines if line.get("split") == "valid"]
    assert len(recalls) == 4
    assert result["valid.click.recall_100"] == max(recalls)
    assert {"auc", "gauc", "uauc", "positives"} < {key.split(".")[-1] for key in result if key.startswith("test.click")}
    assert "test.click.log_loss" not in result


@pytest.mark.slow
def test_killed_and_resumed_is_bitwise_the_run_that_was_not(data, tmp_path):
    """The frequencies of items go on where they were."""
    whole = loop.train(loop.job(data, tmp_path / "whole", **changes(train__checkpoint_every=5)))
    resumed = loop.job(data, tmp_path / "resumed", **changes(train__checkpoint_every=5))
    loop.train(resumed, kill_at=8)
    assert loop.same(whole, loop.train(resumed))
    assert int(whole["dense"]["network.rarity.batches"]) > 0


def test_two_ranks_measure_what_one_does(two_ranks, data, tmp_path):
    made = changes(optimizers__sparse__kind="sgd", optimizers__dense__kind="sgd", train__epochs=1)
    one = loop.train(loop.job(data, tmp_path / "one", **made))["result"]
    two = two_ranks.run(loop.train, loop.job(data, tmp_path / "two", **made))[0]["result"]
    keys = [key for key in one if key.startswith(("valid.", "test."))]
    assert any(key.endswith("ndcg_10") for key in keys)
    assert {key: two[key] for key in keys} == pytest.approx({key: one[key] for key in keys}, abs=2e-3)


def test_a_run_measures_among_the_items_of_a_file(run, data, tmp_path):
    """A file of all items of the split gives what the split does, and one of fewer leaves some out."""
    table = pq.read_table(data / "test")
    movies = pc.unique(table.column("movie").combine_chunks().drop_null())
    whole = {"evaluate__catalogue": str(tmp_path / "items.parquet")}
    pq.write_table(
        pa.table({"movie": pa.concat_arrays([movies, movies[:9]]), "more": range(len(movies) + 9)}), *whole.values()
    )
    found = retrieved(run, tmp_path, data, **whole)
    assert found["test.click.items"] == len(movies)
    alone = retrieved(run, tmp_path, data)
    names = [name for name in found if name.rpartition(".")[2].startswith(("recall_", "ndcg_"))]
    assert len(names) == 6
    assert {name: found[name] for name in names} == pytest.approx({name: alone[name] for name in names}, abs=1e-6)
    pq.write_table(pa.table({"movie": movies[:20]}), tmp_path / "items.parquet")
    found = retrieved(run, tmp_path, data, **whole)
    assert found["test.click.items"] == 20
    assert 0 < found["test.click.unlisted"] < found["test.click.queries"]


@pytest.mark.slow
def test_a_catalogue_of_strings_weighted_bags_and_vectors_finds_what_the_split_does(tmp_path):
    data, draw = samples.write(tmp_path / "data", rows=400), np.random.default_rng(0)
    of_items = {}
    for split in ("train", "valid", "test"):
        file = data / split / "part-0.parquet"
        table = pq.read_table(file)
        movies = [str(k % 40) for k in range(len(table))]
        for movie in movies:
            words = [f"t{k}" for k in draw.integers(0, 9, draw.integers(0, 4))]
            weights, picture = draw.normal(size=len(words)).tolist(), draw.normal(size=2).tolist()
            of_items.setdefault(movie, (words, weights, picture if movie != "3" else None))
        columns = zip(*(of_items[movie] for movie in movies), strict=True)
        table = table.set_column(1, "movie", pa.array(movies, pa.large_string()))
        for name, column, kind in zip(("tags", "tag_weights", "picture"), columns, KINDS, strict=True):
            table = table.append_column(name, pa.array(column, kind))
        pq.write_table(table, file, row_group_size=128)
    order = draw.permutation(list(of_items)).tolist()
    columns = zip(*(of_items[movie] for movie in order), strict=True)
    items = {n: pa.array(c, k) for n, c, k in zip(("tags", "tag_weights", "picture"), columns, KINDS, strict=True)}
    pq.write_table(pa.table({"movie": pa.array(order).dictionary_encode(), **items}), tmp_path / "items.parquet")
    more = {
        "features__tags": {"type": "bag", "table": "movie", "weights": "tag_weights"},
        "features__picture": {"type": "vector", "width": 2, "normalise": True, "projection": 3},
        "model": MODEL | {"item": ["tags", "picture"]},
        "train__epochs": 1,
        "evaluate__bootstrap": 20,
    }
    found = []
    for number, catalogue in enumerate(({}, {"evaluate__catalogue": str(tmp_path / "items.parquet")})):
        launch.train(samples.recipe(data, **changes(**more, **catalogue)), tmp_path / f"runs{number}")
        found.append(json.loads((tmp_path / f"runs{number}/small/result.json").read_text()))
    names = [name for name in found[0] if "recall_" in name or "ndcg_" in name or name.endswith(".items")]
    assert found[0]["test.click.items"] == 40
    assert {name: found[1][name] for name in names} == pytest.approx({name: found[0][name] for name in names}, abs=1e-6)
    one, other = (Draws.read(tmp_path / f"runs{number}/small") for number in (0, 1))
    assert np.ptp(one.values["click.recall_10"]) > 0
    assert paired(one, other, "click.recall_10") == pytest.approx((0, 0), abs=1e-6)


KINDS = (pa.list_(pa.string()), pa.list_(pa.float32()), pa.list_(pa.float32(), 2))  # of tags, weights and pictures


def retrieved(run: Path, folder: Path, data: Path, **more) -> dict[str, float]:
    """What an evaluation of a run's copy measures, under a changed recipe."""
    copy = folder / "copy" / "small"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    (copy / "config.yaml").write_text(dump_recipe(samples.recipe(data, **changes(train__checkpoint_every=5, **more))))
    return launch.evaluate(copy, "test", "best")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"evaluate__catalogue": "{}/items.parquet"}, "evaluate.catalogue, features.movie: .*has no column 'movie'"),
        ({"evaluate__catalogue": "{}/nowhere"}, "evaluate.catalogue: there is nothing at .*nowhere"),
        ({"evaluate__catalogue": "{}/texts.parquet"}, "features.movie: .* holds strings in .*texts.parquet and in"),
        (
            {"evaluate__catalogue": "{}/bags.parquet", "model": MODEL | {"item": ["liked"]}, "features__liked": BAG},
            "bags.parquet, row group 0, features.liked.weights: row 1 has 1 weights and 2 ids",
        ),
        ({"evaluate__seen": "histroy"}, "evaluate.seen: .* has no column 'histroy'.*history"),
        (
            {"evaluate__candidates": "rate", "evaluate__catalogue": "{}/bags.parquet"},
            "evaluate.candidates: column 'rate' .* must be list<int64>",
        ),
        ({"evaluate__seen": "history", "model": samples.recipe("x").model.model_dump(), "tasks__click__kind": "binary"},
         "evaluate.seen: is for models that find items, and 'din' has no towers"),
    ],
)  # fmt: skip
def test_a_catalogue_that_cannot_be_used_is_refused(data, tmp_path, more, why):
    pq.write_table(pa.table({"film": [1, 2]}), tmp_path / "items.parquet")
    bags = {"history": [[1], [2, 3]], "rating": [[1.0], [2.0]]}
    pq.write_table(pa.table({"movie": ["a", "b"], **bags}), tmp_path / "texts.parquet")
    pq.write_table(pa.table({"movie": [1, 2], **bags}), tmp_path / "bags.parquet")
    more = {key: value.format(tmp_path) if isinstance(value, str) else value for key, value in more.items()}
    with pytest.raises(BadInput, match=why):
        preflight.check(samples.recipe(data, **changes(**more)), lambda text: None)


@pytest.mark.parametrize("quantize", ["none", "float16"])
@pytest.mark.slow
def test_the_towers_files_make_the_scores(run, tmp_path, monkeypatch, capsys, quantize):
    found = export(run, out=tmp_path / "export", quantize=quantize)
    assert found["towers"]["item"] == ["movie"]
    assert found["towers"]["user"] == ["user", "history", "rating", "rate"]
    golden = json.loads((tmp_path / "export/golden.json").read_text())
    user, item = (torch.jit.load(str(tmp_path / f"export/{side}.pt")) for side in ("user", "item"))
    ids, lengths, dense = golden_inputs(golden)
    own = ({"movie": ids["movie"]}, {"movie": lengths["movie"]}, {})  # a catalogue knows no users
    vectors = user(ids, lengths, dense), item(*own)
    assert all(torch.allclose(vector.norm(dim=1), torch.ones(len(vector))) for vector in vectors)
    assert (vectors[0] * vectors[1]).sum(1).tolist() == pytest.approx(golden["scores"]["click"], abs=1e-5)
    with pytest.raises(torch.jit.Error, match="the feature 'user' is missing"):
        user(*own)
    monkeypatch.setattr(sys, "argv", ["nearest.py", str(tmp_path / "export")])
    runpy.run_path(str(Path(__file__).parents[3] / "examples/nearest.py"))
    nearest = (vectors[0] @ vectors[1].T).topk(3).indices[0].tolist()
    assert f"nearest to the user of row 0: the items of rows {nearest}\n" in capsys.readouterr().out
    (tmp_path / "export/item.pt").unlink()
    with pytest.raises(SystemExit, match="item.pt is missing; give the export of a run whose model.kind is dssm"):
        runpy.run_path(str(Path(__file__).parents[3] / "examples/nearest.py"))


def test_a_file_whose_towers_disagree_is_not_exported(run, tmp_path, monkeypatch):
    from livetrain.modules.serving import scorer

    encode = scorer.Encoder.__init__

    def wrong(self, *arguments) -> None:
        encode(self, *arguments)
        self.normalise.mean = self.normalise.mean + 1

    monkeypatch.setattr(scorer.Encoder, "__init__", wrong)
    with pytest.raises(BadInput, match="the towers' product differs from the file's score by .*; nothing was exported"):
        export(run, out=tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_kind_and_model_belong_together():
    with pytest.raises(
        BadInput, match=r"tasks.click.kind: retrieval needs a model with two towers, and 'din' has none"
    ):
        Model(twins.recipe(tasks=TASKS))
    with pytest.raises(
        BadInput, match=r"tasks.click.kind: 'dssm' finds items and predicts no probability; use kind: r"
    ):
        Model(twins.recipe(model=MODEL))


def test_a_run_can_be_chosen_by_what_it_finds():
    made_for = twins.recipe(tasks=TASKS, model=MODEL)
    assert made_for.select() == "click.recall_100"
    assert {"click.recall_10", "click.ndcg_50", "click.auc"} < set(selectable(made_for))
    with pytest.raises(BadInput, match="train.select: no run of this recipe has a metric 'click.log_loss'"):
        check_select(twins.recipe(tasks=TASKS, model=MODEL, train__select="click.log_loss"))
