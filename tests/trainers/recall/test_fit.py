"""Runs of models that are fitted: the folder, the figures, the file that scores, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import livetrain
from livetrain.cluster import launch
from livetrain.configs.errors import BadInput
from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe
from livetrain.modules.fitted import fitted
from livetrain.modules.models.registry import network
from livetrain.modules.recall.fitted import Lists, Rows
from livetrain.modules.recall.inverted import Inverted
from livetrain.modules.serving.loading import load
from livetrain.trainers.export.export import export
from livetrain.trainers.export.rows import golden_inputs
from livetrain.trainers.observe.report.summary import table_lines
from livetrain.trainers.recall.item_cf import ItemCF
from livetrain.trainers.runtime import runlog
from tests.cases import often
from tests.trainers.data.parquet import corrupt

USERS, ITEMS = 90, 36


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A row per user and split; a user has items of one of three kinds, of a third of them each."""
    folder, drawn = tmp_path_factory.mktemp("fitted"), np.random.default_rng(0)
    had = [drawn.permutation(ITEMS // 3)[:8] * 3 + user % 3 for user in range(USERS)]
    for split, place in {"train": 5, "valid": 6, "test": 7}.items():
        (folder / split).mkdir()
        table = {
            "user": np.arange(USERS),
            "item": [f"i{items[place]}" for items in had],
            "history": [[f"i{item}" for item in items[:place]] for items in had],
            "time": np.arange(USERS) * 60 + 3600 * place,
            "city": [None if user % 10 == 0 else "abc"[user % 3] for user in range(USERS)],
            "label": (np.arange(USERS) % 9 > 0).astype(np.int8),
        }
        pq.write_table(pa.table(table), folder / split / "part-0.parquet", row_group_size=32)
    pq.write_table(pa.table({"item": [f"i{item}" for item in range(ITEMS)]}), folder / "items.parquet")
    return folder


def recipe(source: Path, **changes: Any) -> dict[str, Any]:
    model = {"kind": "item_cf", "key": "item", "history": "history", "pair_step": 0.9, "history_step": 0.8}
    return {
        "name": "cf",
        "data": {"path": str(source), "batch_size": 24, "shards": 12},
        "features": {
            "item": {"type": "id"},
            "history": {"type": "sequence", "max_length": 6},
            "city": {"type": "id"},
        },
        "model": model,
        "tasks": {"click": {"label": "label", "kind": "retrieval"}},
        "evaluate": {"catalogue": str(source / "items.parquet"), "seen": "history", "bootstrap": 20},
        "cluster": {"workers": 0, "device": "cpu"},
        "export": {"parity_rows": 64},
        **changes,
    }


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return launch_here(data, folder)


def launch_here(source: Path, runs: Path, **changes: Any) -> Path:
    return runs / launch.train(load_recipe(recipe(source, **changes)), runs)["name"]


def ranks(data: Path, split: str) -> np.ndarray:
    """Return the rank of each positive row's item, by loops over the training split's users."""
    users = pq.read_table(data / "train").to_pylist()
    number: dict[str, int] = {}
    together: dict[tuple[str, str], float] = {}
    for row in users:
        items = [*row["history"], row["item"]]
        for i, one in enumerate(items if row["label"] else []):
            number[one] = number.get(one, 0) + 1
            for j, other in enumerate(items):
                if i != j:
                    weight = 0.9 ** (abs(i - j) - 1) / np.log(1 + len(items))
                    together[one, other] = together.get((one, other), 0.0) + weight
    found = []
    for row in (row for row in pq.read_table(data / split).to_pylist() if row["label"]):
        scores = dict.fromkeys((f"i{item}" for item in range(ITEMS)), 0.0)
        for newer, one in enumerate(reversed(row["history"][-6:])):
            for other in scores:
                similar = together.get((one, other), 0.0) / np.sqrt(number.get(one, 1) * number.get(other, 1))
                scores[other] += 0.8**newer * similar
        own = scores.pop(row["item"])
        others = np.array([score for item, score in scores.items() if item not in row["history"]])
        found.append(1 + (others > own + 1e-9).sum() + (np.abs(others - own) <= 1e-9).sum() / 2)
    return np.array(found)


def test_a_run_ends_as_every_run_does(run, data):
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "result.json", "report.png", "checkpoints", "export"} <= names
    result = json.loads((run / "result.json").read_text())
    for split in ("valid", "test"):
        places = ranks(data, split)
        assert result[f"{split}.click.recall_10"] == pytest.approx((places <= 10).mean())
        gains = np.where(places <= 10, 1 / np.log2(1 + places), 0).mean()
        assert result[f"{split}.click.ndcg_10"] == pytest.approx(gains, rel=1e-6)
        assert (result[f"{split}.click.items"], result[f"{split}.click.queries"]) == (ITEMS, len(places))
    assert result["test.click.recall_10"] > 0.7  # of a third of the items
    assert result["test.click.recall_10_low"] <= result["test.click.recall_10"] <= result["test.click.recall_10_high"]
    assert (result["step"], result["best_step"], result["fitted"]["items"]) == (1, 1, ITEMS)
    assert table_lines(result) == []  # what `livetrain train` says at its end of tables, lists and rows left out
    found, own = launch.evaluate(run, "valid", "best"), [key for key in result if key.startswith("valid.")]
    assert {key: found[key] for key in own} == {key: pytest.approx(result[key], nan_ok=True) for key in own}
    listed = livetrain.runs(run.parent)
    assert listed.loc[listed.run == "cf", ["state", "model", "step"]].to_numpy().tolist() == [
        ["exported", "item_cf", 1]
    ]


EXPORTS = {"int8, mapped": ("int8", "mapped"), "whole": ("none", "inside"), "float16": ("float16", "inside")}


@pytest.mark.parametrize(("quantize", "tables"), often(EXPORTS, ["int8, mapped"]))
def test_its_export_scores_like_the_run(run, data, tmp_path, quantize, tables):
    shutil.copytree(run, tmp_path / "cf")
    config = tmp_path / "cf/config.yaml"
    config.write_text(config.read_text().replace("tables: auto", f"tables: {tables}"))
    signature = export(tmp_path / "cf", out=tmp_path / "out", quantize=quantize)
    assert ("stored" in signature) == (tables == "mapped")
    assert signature["parity"]["rows"] == 64
    assert (signature["parity"]["largest_difference"] == 0) == (quantize == "none")
    scored, golden = load(tmp_path / "out"), json.loads((tmp_path / "out/golden.json").read_text())
    scores = scored(*golden_inputs(golden))["click"]
    torch.testing.assert_close(scores, torch.tensor(golden["scores"]["click"]))
    assert scores.max() > 0  # rows that are drawn have items that the table knows
    rows = pq.read_table(data / "test")
    own, theirs = (livetrain.Run(run).predict(rows, at)["click_score"].to_numpy() for at in ("best", tmp_path / "out"))
    np.testing.assert_allclose(own, theirs, atol=0.01)
    assert len(np.unique(own)) > 20


def test_rows_get_their_best_items(run, data, tmp_path):
    livetrain.predict(run, data / "test", tmp_path / "near", neighbours=(3, str(data / "items.parquet"), "item"))
    found = pq.read_table(tmp_path / "near/part-00000.parquet").to_pylist()
    one = {row["user"]: row for row in found}[5]
    assert len(one["neighbours"]) == 3
    assert {int(item[1:]) % 3 for item in one["neighbours"]} == {5 % 3}
    assert one["neighbour_scores"] == sorted(one["neighbour_scores"], reverse=True)
    model = livetrain.Run(run).model()
    asked = pq.read_table(data / "test").filter(pa.compute.equal(pq.read_table(data / "test")["user"], 5))
    history = asked.set_column(1, "item", asked["history"].combine_chunks().flatten().slice(0, 1))
    assert model.items.numel() == ITEMS
    assert livetrain.Run(run).predict(history)["click_score"][0].as_py() >= 0
    with pytest.raises(BadInput, match="--vectors: a model that is fitted has none"):
        livetrain.predict(run, data / "test", tmp_path / "vectors", vectors="user")


def test_a_killed_run_goes_on_with_what_was_fitted(run, tmp_path, monkeypatch, data):
    shutil.copytree(run, tmp_path / "cf")
    result = json.loads((tmp_path / "cf/result.json").read_text())
    (tmp_path / "cf/result.json").unlink()
    monkeypatch.setattr(launch, "_show", lambda *arguments: None)
    monkeypatch.setattr(ItemCF, "fit", lambda *arguments: pytest.fail("fitted again"))
    again = launch.train(load_recipe(recipe(data, export={"after_training": False, "parity_rows": 64})), tmp_path)
    same = [key for key in result if key.startswith(("valid.", "test."))]
    assert {key: again[key] for key in same} == {key: pytest.approx(result[key], nan_ok=True) for key in same}


def test_a_damaged_fit_is_named(run, tmp_path):
    shutil.copytree(run, tmp_path / "cf")
    with (tmp_path / "cf/checkpoints/step-00000001/users.npy").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BadInput, match=r"users.npy is damaged"):
        launch.evaluate(tmp_path / "cf", "test", "best")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cluster": {"workers": 2}}, "cluster.workers: 'item_cf' is fitted by one process"),
        ({"train": {"epochs": 2}}, "train.epochs: 'item_cf' is fitted and not trained by steps"),
        ({"tasks": {"click": {"label": "label"}}}, "tasks: 'item_cf' finds items for one task of kind retrieval"),
        ({"train": {"warm_start": "RUN"}}, "is fitted anew from its days and begins with nothing"),
        (
            {"model": {"kind": "din", "attention": [{"query": ["item"], "events": ["history"]}]}},
            "features.item.table is missing",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(data, run, tmp_path, changes, said):
    if changes.get("train", {}).get("warm_start"):
        changes = {"train": {"warm_start": str(run)}}
    with pytest.raises(BadInput, match=said):
        launch_here(data, tmp_path, **changes)
    assert not list(tmp_path.glob("*/checkpoints"))


KINDS = {
    "item_cf": {"kind": "item_cf", "history": "history"},
    "ease": {"kind": "ease", "history": "history"},
    "popular": {"kind": "popular", "by": ["city"]},
    "tags": {"kind": "tags", "tags": {"city": "history"}},
    "latest": {"kind": "latest", "time": "time"},
}


@pytest.mark.parametrize(
    ("kind", "lacking"),
    [*((kind, "positive") for kind in KINDS), ("ease", "item"), ("ease", "readable"), ("item_cf", "readable")],
)
def test_a_split_that_teaches_nothing_is_refused(data, tmp_path, monkeypatch, kind, lacking):
    monkeypatch.setattr(launch, "_show", lambda *arguments: None)
    shutil.copytree(data, tmp_path / "data")
    path = tmp_path / "data/train/part-0.parquet"
    table = pq.read_table(path).slice(0, 64)
    if lacking == "positive":
        table = table.set_column(5, "label", pa.array(np.zeros(64, np.int8)))
    elif lacking == "item":
        table = table.set_column(1, "item", pa.array([None] * 64, pa.string()))
    pq.write_table(table, path, row_group_size=32)
    if lacking == "readable":
        corrupt(path, 0, "item")
        corrupt(path, 1, "item")
    changes = {"model": {"key": "item", **KINDS[kind]}, "evaluate": {}, "export": {"after_training": False}}
    section = recipe(tmp_path / "data")["data"] | {"on_corrupt": "skip"}
    with pytest.raises(BadInput, match="data.path: the training split has no positive rows of task 'click' with an"):
        launch_here(tmp_path / "data", tmp_path / "runs", data=section, **changes)
    assert not list(tmp_path.glob("runs/*/checkpoints"))


def test_what_needs_a_network_says_that_there_is_none():
    with pytest.raises(BadInput, match="'item_cf' is fitted and not trained by steps, so it has no network"):
        network("item_cf")


def test_a_night_goes_on_from_the_last_one(data, tmp_path, monkeypatch):
    """Of item CF over days: what a fit of the new days alone adds to the run before is the fit of all of them.

    The days are local ones: midnight in UTC falls within each of them.
    """
    monkeypatch.setattr(launch, "_show", lambda *arguments: None)
    changes = {
        "features": {"item": {"type": "id"}, "history": {"type": "sequence", "max_length": 6}},
        "model": {"kind": "item_cf", "key": "item", "history": "history", "user": "user", "time": "time"},
        "evaluate": {},
        "export": {"after_training": False},
    }
    days = tmp_path / "days"
    for number, split in enumerate(("train", "valid", "test", "test")):
        table = pq.read_table(data / split)
        moved = table.set_column(3, "time", pa.array(table["time"].to_numpy() + 86_400 * number - 22_500))
        (days / f"date=2022-05-0{number + 1}").mkdir(parents=True)
        pq.write_table(moved, days / f"date=2022-05-0{number + 1}" / "part-0.parquet")

    def of(trained: str, name: str, **more: Any) -> Path:
        named = {"train": trained, "valid": "2022-05-03..2022-05-03", "test": "2022-05-04..2022-05-04"}
        section = {"path": str(days), "days": named, "batch_size": 24, "shards": 12}
        return launch_here(data, tmp_path, **(changes | {"data": section, "name": name} | more))

    first = of("2022-05-01..2022-05-01", "first")
    second = of("2022-05-01..2022-05-02", "second", train={"warm_start": str(first)})
    whole = of("2022-05-01..2022-05-02", "whole")
    assert any("begins with" in line.get("text", "") for line in runlog.read(second))
    for path in sorted((whole / "checkpoints/step-00000001").glob("*.npy")):
        np.testing.assert_array_equal(np.load(path), np.load(second / "checkpoints/step-00000001" / path.name))
    model = changes["model"] | {"neighbours": 7}
    with pytest.raises(BadInput, match="train.warm_start: .*model.neighbours=100, but the recipe says 7"):
        of("2022-05-01..2022-05-02", "other", train={"warm_start": str(first)}, model=model)


def sliced(kind: str, rows: list[Rows], **changes: Any) -> dict[tuple[int, int], float]:
    section = {"kind": kind, "key": "item", "by": ["city"], "time": "time", **changes}
    features = {"item": {"type": "id"}, "city": {"type": "id"}}
    made = fitted(load_recipe(recipe(Path("nowhere"), features=features, model=section, evaluate={})))
    assert made is not None
    table = made.table(made.fit(iter(rows)))
    keys = np.repeat(table.keys, np.diff(table.offsets))
    found = dict(zip(zip(keys.tolist(), table.items[table.places].tolist(), strict=True), table.scores, strict=True))
    return found | {(key, -1): rest for key, rest in zip(table.keys.tolist(), table.rest, strict=True)}


def few(*rows: tuple[int, int | None, float, int]) -> Rows:
    """Return rows of item, city, time and label."""
    cities = [[] if city is None else [city] for _, city, *_ in rows]
    ids = {
        "item": Lists(np.array([item for item, *_ in rows]), np.ones(len(rows), np.int64)),
        "city": Lists(np.array([c for city in cities for c in city], np.int64), np.array([len(c) for c in cities])),
    }
    columns = {"time": np.array([time for *_, time, _ in rows], float)}
    return Rows(0, np.array([label for *_, label in rows]) > 0, ids, columns)


def test_popular_counts_the_last_hours_by_slice():
    old, new = few((1, 7, 0.0, 1), (1, 7, 10.0, 1)), few((2, 7, 7300.0, 1), (3, None, 7400.0, 1), (4, 7, 7500.0, 0))
    found = sliced("popular", [old, new], prior=2)
    (city,) = {key for key, _ in found} - {0}
    wanted = {(0, 1): 2 / 6, (0, 2): 1 / 6, (0, 3): 1 / 6, (city, 1): 2 / 5, (city, 2): 1 / 5}
    assert found == pytest.approx(wanted | {(0, -1): 2 / 6, (city, -1): 2 / 5})
    late = sliced("popular", [old, new], prior=2, hours=2)
    assert {key for key in late if key[1] > 0} == {(0, 2), (0, 3), (city, 2)}
    assert sliced("popular", [new, old], prior=2, hours=2) == late  # whatever the order of the files


def test_latest_is_by_when_an_item_was_first_there():
    found = sliced("latest", [few((1, 7, 0.0, 0), (2, 7, 3600.0, 1)), few((1, 8, 7200.0, 1))])
    city, other = sorted({key for key, _ in found} - {0}, key=lambda key: (key, 2) not in found)
    scores = {key: score for key, score in found.items() if key[1] > 0}
    assert scores == pytest.approx({(0, 1): 1 / 3, (0, 2): 1 / 2, (city, 1): 1 / 3, (city, 2): 1 / 2, (other, 1): 1.0})


def test_latest_tells_slices_apart_as_long_as_float32_can():
    """The largest slice counts 1e-7 per slice before it: of five features that is still a number, of six it is 0."""
    names = ["a", "b", "c", "d", "e", "f"]

    def asked(by: list[str]) -> Recipe:
        features = {name: {"type": "id"} for name in ["item", *names]}
        model = {"kind": "latest", "key": "item", "time": "time", "by": by}
        return load_recipe(recipe(Path("nowhere"), features=features, model=model, evaluate={}))

    with pytest.raises(BadInput, match="model.by has 6 entries, wanted at most 5"):
        asked(names)
    made = asked(names[:5])
    model, one = fitted(made), np.ones(2, np.int64)
    assert model is not None
    ids = {name: Lists(np.array([1, 2]), one) for name in ["item", *names]}  # nothing in common but the largest slice
    table = model.table(model.fit(iter([Rows(0, one > 0, ids, {"time": np.zeros(2)})])))
    given = {name: torch.ones(1, dtype=torch.int64) for name in names[:5]}
    scores = Inverted(model, made, table).eval()({**given, "item": torch.tensor([2])}, given, {})["click"]
    assert 0 < scores[0] < 1e-30


@pytest.mark.parametrize("kind", ["popular", "latest"])
def test_a_slice_is_not_that_of_the_wanted_item(kind):
    with pytest.raises(BadInput, match=r"model.by.1: 'item' reads the column 'item', which tells which item is wanted"):
        sliced(kind, [], by=["city", "item"])


@pytest.mark.slow
def test_popular_lists_are_measured_and_exported(data, tmp_path):
    run = launch_here(data, tmp_path, model={"kind": "popular", "key": "item", "by": ["city"], "prior": 5})
    result = json.loads((run / "result.json").read_text())
    assert 0.5 < result["test.click.recall_10"] < 1
    scored = load(run / "export")
    hashed = livetrain.Run(run).model().items
    items, _ = scored.top(
        {"city": torch.zeros(0, dtype=torch.int64), "history": torch.zeros(0, dtype=torch.int64)},
        {"city": torch.tensor([0]), "history": torch.tensor([0])},
        {},
        5,
    )
    assert torch.isin(items, hashed).all()


def test_a_kind_of_ones_own_is_one_file(data, tmp_path, monkeypatch):
    """The example of the guide: items that followed directly upon the newest one, against a count by hand."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "examples"))
    monkeypatch.setattr(launch, "_show", lambda *arguments: None)
    model = {"kind": "following", "key": "item", "history": "history"}
    run = launch_here(data, tmp_path, model=model, plugins=["my_package.fitted"], name="own")
    rows = pq.read_table(data / "train").to_pylist()
    pairs = [(row["history"][-1], row["item"]) for row in rows if row["label"]]
    asked = pq.read_table(data / "test")
    scores = livetrain.Run(run).predict(asked, run / "export")["click_score"].to_numpy()
    wanted = [pairs.count((row["history"][-1], row["item"])) for row in asked.to_pylist()]
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    assert max(wanted) > 0
    assert load_recipe(run / "config.yaml").model.history == "history"
