"""Boosted trees: their arrays, their columns, and runs of them."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import OneHotEncoder

from livetrain.cluster import launch
from livetrain.configs.errors import BadInput
from livetrain.modules.fitted import fitted
from livetrain.modules.serving.loading import load
from livetrain.modules.trees.columns import Column
from livetrain.modules.trees.trees import Trees, forest
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.export.fitted import learned, state_in
from livetrain.trainers.export.prediction import predictor, score, weights_of
from livetrain.trainers.export.rows import golden_inputs
from livetrain.trainers.fitted.rows import passes
from livetrain.trainers.fitted.run import check_start
from livetrain.trainers.runtime import run_folder, runlog
from livetrain.trainers.trees import boost, encode
from livetrain.trainers.trees.gbdt_lr import regression
from tests.trainers.trees.days import DAYS, ROWS, launched, recipe, written


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("trees"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    return launched(recipe(data), tmp_path_factory.mktemp("runs"), "gbdt")


LR_TASKS = {"click": {"label": "click"}, "like": {"label": "like", "unknown": True, "negatives_kept": 0.5}}


@pytest.fixture(scope="module")
def lr(data, tmp_path_factory) -> Path:
    settled = recipe(data, {"kind": "gbdt_lr", "penalties": [3.0]}, tasks=LR_TASKS)
    return launched(settled, tmp_path_factory.mktemp("runs"), "lr")


def matrix(settled: Any, split: str, folder: Path) -> tuple[np.ndarray, Any]:
    """Return a split's numbers as a run's model sees them, and its rows."""
    columns = encode.columns_of(settled, state_in(run_folder.checkpoint(folder, 1)))
    parts = list(passes(Source.open(settled, split), settled)())
    return np.concatenate([columns(*rows.inputs).numpy() for rows in parts]), parts


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), missing=st.sampled_from([0.0, 0.3]), leaves=st.integers(2, 20))
def test_a_forest_as_arrays_says_what_lightgbm_says(seed, missing, leaves):
    draw = np.random.default_rng(seed)
    numbers = draw.normal(size=(300, 4)).astype(np.float32)
    numbers[:, 1] = numbers[:, 1].round(1)  # values that fall on thresholds
    numbers[:, 3] = draw.integers(0, 12, 300)
    numbers[draw.random(numbers.shape) < missing] = np.nan
    labels = (np.nan_to_num(numbers[:, 0]) + np.isin(numbers[:, 3], [1, 5, 7]) + draw.normal(size=300) > 0.5) * 1.0
    wanted = {"objective": "binary", "num_leaves": leaves, "min_data_in_leaf": 3, "verbosity": -1, "num_threads": 1}
    wanted |= {"min_data_per_group": 5, "cat_smooth": 1, "max_cat_to_onehot": int(draw.integers(1, 8))}
    booster = lightgbm.train(wanted, lightgbm.Dataset(numbers, labels, categorical_feature=[3]), 12)
    columns = [Column("a", 0), Column("b", 0), Column("c", 0), Column("d", 12)]
    found = forest(booster.dump_model()["tree_info"], columns)
    asked = draw.normal(size=(200, 4)).astype(np.float32)
    asked[:, 1] = asked[:, 1].round(1)
    asked[:, 3] = draw.integers(0, 12, 200)
    asked[draw.random(asked.shape) < 0.2] = np.nan
    scored = torch.jit.script(Trees(found, columns))(torch.from_numpy(asked)).numpy()
    np.testing.assert_allclose(scored, booster.predict(asked, raw_score=True), rtol=0, atol=1e-9)
    places = booster.predict(asked, pred_leaf=True).reshape(len(asked), -1)
    first = np.cumsum(found.counts()) - found.counts()
    by_leaf = found.value[found.leaves][first + places].sum(1)
    np.testing.assert_allclose(by_leaf, booster.predict(asked, raw_score=True), rtol=0, atol=1e-9)


def test_a_tree_of_one_leaf_is_a_tree():
    booster = lightgbm.train(
        {"objective": "regression", "verbosity": -1}, lightgbm.Dataset(np.zeros((60, 1)), np.full(60, 2.5)), 2
    )
    found = forest(booster.dump_model()["tree_info"], [Column("a", 0)])
    scored = Trees(found, [Column("a", 0)])(torch.zeros(3, 1))
    np.testing.assert_allclose(scored.numpy(), booster.predict(np.zeros((3, 1))))
    assert Trees(found, [Column("a", 0)])(torch.zeros(0, 1)).shape == (0,)


def test_a_run_ends_as_every_run_does(run):
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "result.json", "report.png", "checkpoints", "export"} <= names
    assert not [name for name in names if name.startswith(".fit-")]
    result = json.loads((run / "result.json").read_text())
    assert result["test.click.auc"] > 0.68
    assert result["test.like.auc"] > 0.55
    assert result["test.seconds.xauc"] > 0.9
    assert result["test.click.gauc"] > 0.6
    assert result["fitted"]["trees"] > 20
    assert launch.evaluate(run, "test", "best")["test.click.auc"] == pytest.approx(result["test.click.auc"])


def test_an_exported_file_scores_as_lightgbm_does(data, run):
    settled = recipe(data)
    numbers, parts = matrix(settled, "test", run)
    state = state_in(run_folder.checkpoint(run, 1))
    scored = load(run / "export")
    for task, kind in (("click", torch.sigmoid), ("like", torch.sigmoid), ("seconds", torch.expm1)):
        booster = lightgbm.Booster(model_str=bytes(state[f"lightgbm.{task}"]).decode())
        wanted = kind(torch.from_numpy(booster.predict(numbers, raw_score=True)))
        found = torch.cat([scored(*rows.inputs)[task] for rows in parts])
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6)
    golden = json.loads((run / "export" / "golden.json").read_text())
    for task, scores in scored(*golden_inputs(golden)).items():
        torch.testing.assert_close(scores, torch.tensor(golden["scores"][task]))


def test_a_table_of_rows_is_predicted(data, run):
    table = pq.read_table(data / f"date={DAYS['test'][0]}")
    found = score(predictor(weights_of(run)), table)
    exported = score(predictor(weights_of(run, run / "export")), table)
    assert found.column("click_score").to_pylist() == pytest.approx(exported.column("click_score").to_pylist())
    with pytest.raises(BadInput, match="has no towers"):
        weights_of(run, vectors="item")


def test_candidates_of_one_user_are_ranked(run):
    scored = load(run / "export")
    ids = {"item": torch.tensor([3, 5, 9]), "city": torch.tensor([1]), "history": torch.tensor([5, 5])}
    dense = {"number": torch.tensor([0.3]), "part": torch.tensor([0.3])}
    once = scored.rank(ids, {"item": torch.ones(3), "city": torch.ones(1), "history": torch.tensor([2])}, dense)
    repeated = scored(
        {"item": ids["item"], "city": torch.ones(3).long(), "history": torch.full((6,), 5)},
        {"history": torch.full((3,), 2)},
        {name: numbers.expand(3) for name, numbers in dense.items()},
    )
    for task, scores in repeated.items():
        torch.testing.assert_close(once[task], scores)


def test_no_row_sees_a_label_of_its_own_day_or_later(data, run):
    """Statistics by hand: of item, which has too many ids for a category."""
    settled = recipe(data)
    columns, rows, _ = encode.encode(
        settled,
        passes(Source.open(settled, "train"), settled),
        passes(Source.open(settled, "valid"), settled),
        run,
        encode.categories_of(settled, passes(Source.open(settled, "train"), settled), 64, None),
        prior=20.0,
    )
    names = [column.name for column in columns.columns]
    assert [column.name for column in columns.columns if column.categories] == ["city", "both"]
    seen: list[dict[str, Any]] = []
    for day, name in enumerate(DAYS["train"]):
        table = pq.read_table(data / f"date={name}").to_pylist()
        clicks = [row["click"] for row in seen]
        likes = [row["like"] for row in seen if row["like"] is not None]
        for at in range(0, ROWS, 37):
            own = rows.numbers[day * ROWS + at]
            same = [row for row in seen if row["item"] == table[at]["item"]]
            liked = [row["like"] for row in same if row["like"] is not None]
            assert own[names.index("item.share")] == pytest.approx(len(same) / max(len(seen), 1))
            if not same:
                assert np.isnan(own[names.index("item.click")])
                continue
            mean = (sum(row["click"] for row in same) + 20 * np.mean(clicks)) / (len(same) + 20)
            assert own[names.index("item.click")] == pytest.approx(mean, rel=1e-5)
            mean = (sum(liked) + 20 * np.mean(likes)) / (len(liked) + 20)
            assert own[names.index("item.like")] == pytest.approx(mean, rel=1e-5)
        for at in range(0, ROWS, 53):
            own, past = rows.numbers[day * ROWS + at], table[at]["history"][-4:]
            assert own[names.index("history.length")] == len(past)
            times = past.count(table[at]["item"])
            assert own[names.index("history.times of item")] == times
            place = own[names.index("history.place of item")]
            assert np.isnan(place) if not times else place == past[::-1].index(table[at]["item"])
        seen += table


def test_the_regression_on_leaves_is_scikit_learns(data, lr):
    settled = recipe(data, {"kind": "gbdt_lr", "penalties": [3.0]}, tasks=LR_TASKS)
    draw = np.random.default_rng(0)
    counts = np.array([4, 7, 3])
    leaves = np.stack([draw.integers(0, count, 500) for count in counts])
    labels = (draw.random(500) < 0.2 + 0.1 * leaves[0]).astype(np.float64)
    weights = draw.random(500)
    found, bias = regression(leaves, counts, labels, weights, 3.0)
    encoded = OneHotEncoder(categories=[range(count) for count in counts]).fit_transform(leaves.T)
    wanted = LogisticRegression(C=1 / 3, tol=1e-10, max_iter=1000).fit(encoded, labels, weights)
    np.testing.assert_allclose(encoded @ found + bias, wanted.decision_function(encoded), atol=1e-4)
    # The run's own pipeline, of its trees: their leaves in the last day's rows, one-hot, and scikit-learn's regression.
    state = state_in(run_folder.checkpoint(lr, 1))
    model = fitted(settled)
    trees = model.module(state).trees
    numbers, parts = matrix(settled, "test", lr)
    scored = torch.cat([learned(settled, run_folder.checkpoint(lr, 1))(*rows.inputs)["click"] for rows in parts])
    torch.testing.assert_close(scored.double(), torch.sigmoid(trees[0](torch.from_numpy(numbers))), atol=1e-6, rtol=0)


def test_gbdt_lr_is_the_pipeline_of_leaves_and_regression(data, tmp_path):
    """The whole kind beside LightGBM's pred_leaf, OneHotEncoder and LogisticRegression, on the same matrix."""
    settled = recipe(data, {"kind": "gbdt_lr", "penalties": [3.0], "later": 0.34}, tasks={"click": {"label": "click"}})
    boosted: list[Any] = []
    grow = boost.Grower.grow

    def kept(self, *given):
        boosted.append((self, grow(self, *given)))
        return boosted[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boost.Grower, "grow", kept)
        train, valid = (passes(Source.open(settled, split), settled) for split in ("train", "valid"))
        model = fitted(settled)
        state = model.fit(train, valid, tmp_path)
    ((grower, booster),) = boosted
    assert grower._rows == 2 * ROWS  # the last day is the regression's
    best = booster.best_iteration
    later, held_out = (
        booster.predict(np.array(part), pred_leaf=True, num_iteration=best)
        for part in (grower._train.numbers[2 * ROWS :], grower._valid.numbers)
    )
    encoder = OneHotEncoder(categories=[range(count) for count in _counts(booster, best)])
    wanted = LogisticRegression(C=1 / 3, tol=1e-10, max_iter=3000)
    wanted.fit(encoder.fit_transform(later), grower._train.labels[2 * ROWS :, 0])
    scored = model.module(state).trees[0](torch.from_numpy(np.array(grower._valid.numbers)))
    np.testing.assert_allclose(scored.numpy(), wanted.decision_function(encoder.transform(held_out)), atol=2e-3)


def _counts(booster: Any, best: int) -> list[int]:
    return [tree["num_leaves"] for tree in booster.dump_model(num_iteration=best)["tree_info"]]


def test_negatives_that_were_kept_shift_the_probability(data, lr):
    state = state_in(run_folder.checkpoint(lr, 1))
    plain = recipe(data, {"kind": "gbdt_lr", "penalties": [3.0]}, tasks=LR_TASKS)
    train, valid = (passes(Source.open(plain, split), plain) for split in ("train", "valid"))
    whole = recipe(
        data,
        {"kind": "gbdt_lr", "penalties": [3.0]},
        tasks={**LR_TASKS, "like": {**LR_TASKS["like"], "negatives_kept": 1.0}},
    )
    again = fitted(whole).fit(train, valid, lr)
    assert state["bias.like"] - again["bias.like"] == pytest.approx(np.log(0.5))
    np.testing.assert_allclose(state["value.like"], again["value.like"])


@pytest.mark.parametrize("like", [0, None], ids=["one class", "nothing known"])
@pytest.mark.parametrize("kind", ["gbdt", "gbdt_lr"])
def test_a_validation_day_that_judges_nothing_stops_no_trees(data, tmp_path, kind, like):
    """An AUC of one class is a constant, by which the first tree would be the best."""
    shutil.copytree(data, tmp_path / "data")
    for day in DAYS["valid"]:
        file = tmp_path / "data" / f"date={day}" / "part-0.parquet"
        table = pq.ParquetFile(file).read()
        column = pa.array([like] * len(table), pa.int8())
        pq.write_table(table.set_column(table.column_names.index("like"), "like", column), file)
    changes = {"export": {"after_training": False}} | ({"tasks": LR_TASKS} if kind == "gbdt_lr" else {})
    folder = launched(recipe(tmp_path / "data", {"kind": kind}, **changes), tmp_path / "runs", kind)
    told = " ".join(line["text"] for line in runlog.read(folder) if "text" in line)
    trees = {task: int(count) for task, count in re.findall(r"(\w+): ([\d,]+) trees", told)}
    assert trees["like"] == 40  # all that were asked for
    assert trees["click"] <= 40


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"tasks": {"click": {"label": "click", "kind": "pairwise"}}},
            "tasks.click.kind: 'gbdt' learns tasks of kind binary and regression",
        ),
        ({"model": {"kind": "gbdt_lr"}, "tasks": {"s": {"label": "seconds", "kind": "regression"}}}, "tasks.s.kind"),
        ({"cluster": {"workers": 2}}, "cluster.workers: 'gbdt' is fitted by one process"),
        ({"train": {"epochs": 3}}, "train.epochs: 'gbdt' is fitted and not trained by steps"),
        ({"train": {"warm_start": "runs/other"}}, "begins with nothing"),
    ],
)
def test_what_trees_cannot_do_is_refused_in_a_sentence(data, tmp_path, changes, sentence):
    def checked() -> None:
        settled = recipe(data, **changes)
        fitted(settled)
        check_start(settled, tmp_path)

    with pytest.raises(BadInput, match=sentence):
        checked()
