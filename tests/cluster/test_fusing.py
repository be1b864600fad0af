"""The weights of a fused score: searched, exported, and searched anew without training."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from livetrain.cluster import fusing, launch
from livetrain.configs.errors import BadInput
from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe
from livetrain.modules.fusion import Fused
from livetrain.modules.metrics import binary
from livetrain.modules.serving.loading import load
from livetrain.trainers.evaluate.fused import Predicted, beside, compared, lines
from livetrain.trainers.export import fusion
from livetrain.trainers.export.fused_rows import predicted
from livetrain.trainers.export.prediction import predictor, score, weights_of
from livetrain.trainers.export.rows import golden_inputs
from livetrain.trainers.runtime import run_folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Rows whose click and like depend on two features each, in other ways."""
    folder = tmp_path_factory.mktemp("fusing")
    for seed, split in enumerate(("train", "valid", "test")):
        draw = np.random.default_rng(seed)
        one, two = draw.normal(size=(2, 900)).astype(np.float32)
        click, like = (draw.random(900) < 1 / (1 + np.exp(-logit)) for logit in (one - 0.3, two - one - 1))
        table = {"user": draw.integers(0, 90, 900), "one": one, "two": two}
        table |= {"click": click.astype(np.int8), "like": like.astype(np.int8)}
        (folder / split).mkdir()
        pq.write_table(pa.table(table), folder / split / "part-0.parquet", row_group_size=300)
    return folder


def recipe(folder: Path, **changes) -> Recipe:
    return load_recipe(
        {
            "name": "fused",
            "data": {"path": str(folder), "batch_size": 180, "shards": 12},
            "features": {"one": {"type": "dense"}, "two": {"type": "dense"}},
            "model": {"kind": "gbdt", "trees": 20, "leaves": 4},
            "tasks": {"click": {"label": "click"}, "like": {"label": "like"}},
            "fusion": {"score": "click ** a * like ** b", "weights": {"a": [0, 3], "b": [0, 3]}, "trials": 9},
            "evaluate": {"group_by": "user"},
            "cluster": {"workers": 0, "device": "cpu"},
            "export": {"parity_rows": 200},
            **changes,
        }
    )


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    launch.train(recipe(data), runs)
    return runs / "fused"


def test_training_ends_with_weights_that_no_other_point_beats(run, data):
    found = json.loads((run / "fusion.json").read_text())
    assert len(found["tried"]) == 9
    assert {*found["weights"]} == {"a", "b"}
    assert all(0 <= value <= 3 for value in found["weights"].values())
    points = [[one["metrics"]["click"], one["metrics"]["like"]] for one in found["tried"]]
    front = [one for one in points if not any(a >= one[0] and b >= one[1] and [a, b] != one for a, b in points)]
    assert sorted([one["metrics"]["click"], one["metrics"]["like"]] for one in found["front"]) == sorted(front)
    own = {task: found["valid"][task][task]["gauc"] for task in ("click", "like")}
    best = max(front, key=lambda one: one[0] / own["click"] + one[1] / own["like"])
    chosen = next(one for one in found["tried"] if one["weights"] == found["weights"])
    assert [chosen["metrics"]["click"], chosen["metrics"]["like"]] == best
    # The figures by another way: of the file's predictions, from the definition of GAUC.
    scored = load(run / "export")
    table = pq.read_table(data / "test").to_pydict()
    inputs = {name: torch.tensor(table[name], dtype=torch.float32) for name in ("one", "two")}
    fused = scored({}, {}, inputs)["fused"].numpy()
    user, like = np.array(table["user"]), np.array(table["like"])
    sums = total = 0.0
    for group in np.unique(user):
        own_rows = user == group
        if 0 < like[own_rows].sum() < own_rows.sum():
            sums += own_rows.sum() * binary.auc(like[own_rows], fused[own_rows])
            total += own_rows.sum()
    assert found["test"]["fused"]["like"]["gauc"] == pytest.approx(
        sums / total, abs=2e-3
    )  # rows of equal leaves tie but for rounding
    assert {*found["test"]} == {"fused", "product", "click", "like"}


def test_the_file_has_one_score_more(run, data):
    signature = json.loads((run / "export" / "signature.json").read_text())
    assert signature["fusion"]["weights"] == fusion.found_in(run)["weights"]
    golden = json.loads((run / "export" / "golden.json").read_text())
    scored = load(run / "export")
    found = scored(*golden_inputs(golden))
    assert {*found} == {"click", "like", "fused"}
    weights = fusion.found_in(run)["weights"]
    wanted = found["click"].double() ** weights["a"] * found["like"].double() ** weights["b"]
    torch.testing.assert_close(found["fused"].double(), wanted, rtol=1e-6, atol=0)
    ranked = scored.rank(*golden_inputs(golden))
    torch.testing.assert_close(ranked["fused"], found["fused"])
    table = pq.read_table(data / "test")
    for source in ("best", run / "export"):
        made = score(predictor(weights_of(run, source)), table)
        assert made.column_names[-3:] == ["click_score", "like_score", "fused_score"]


def test_weights_are_searched_anew_without_training(run, monkeypatch):
    """On one point: the search itself is above."""
    before = (run / "result.json").read_bytes()
    point = {"weights": {"a": 1.0, "b": 0.0}, "metrics": {"click": 0.6, "like": 0.5}}
    monkeypatch.setattr(fusing, "_tried", lambda settled, rows: [point])
    said: list[str] = []
    found = fusing.fuse(run, say=said.append)
    assert fusion.found_in(run)["weights"] == found["weights"] == {"a": 1.0, "b": 0.0}
    rows = predicted(run, "valid")
    settled = recipe(Path("."))
    assert found["valid"]["fused"] == found["valid"]["click"]
    assert said[-4].startswith("  fused")
    fused = Fused(settled.fusion, ["click", "like"], found["weights"])(rows.predictions)
    torch.testing.assert_close(fused, rows.predictions["click"])
    assert (run / "result.json").read_bytes() == before


def test_a_run_that_was_trained_without_a_formula_is_not_fused_behind_its_back(data, tmp_path):
    launch.train(recipe(data, fusion=None, export={"after_training": False}), tmp_path)
    with pytest.raises(BadInput, match="fusion: .*fused was trained without it; put the section into its config.yaml"):
        launch.train(recipe(data, export={"after_training": False}), tmp_path)
    assert not (tmp_path / "fused" / fusion.NAME).exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"score": "click + like"}, "its weights are of another formula than the recipe's fusion.score"),
        ({"weights": {"a": 1.0}}, "its weights are of another formula than the recipe's fusion.score"),
        ({"weights": None}, "is damaged; `livetrain fuse"),
        (None, "is damaged; `livetrain fuse"),
    ],
)
def test_weights_of_another_formula_score_nothing(tmp_path, changed, message):
    made = recipe(Path("."))
    written = {"score": made.fusion.score, "weights": {name: 1.0 for name in made.fusion.weights}}
    (tmp_path / fusion.NAME).write_text(json.dumps(written))
    assert fusion.weights_in(tmp_path, made) == written["weights"]
    (tmp_path / fusion.NAME).write_text("{" if changed is None else json.dumps(written | changed))
    with pytest.raises(BadInput, match=message):
        fusion.weights_in(tmp_path, made)


def test_a_score_that_is_no_number_is_refused(run, monkeypatch):
    point = {"weights": {"a": 1.0, "b": 0.0}, "metrics": {"click": -1.0, "like": -1.0}}
    monkeypatch.setattr(fusing, "_tried", lambda settled, rows: [point])
    with pytest.raises(BadInput, match="gauc is undefined at every point that was tried"):
        fusing.fuse(run)


@pytest.mark.parametrize("score", ["0 * click * like", "click ** 0 + 0 * like", "min(1, 2 + click + like)"])
def test_a_score_that_is_the_same_of_all_rows_is_refused(run, score):
    rows = predicted(run, "valid")
    settled = recipe(Path("."), fusion={"score": score})
    assert fusing._metrics(settled, rows, {}) == {"click": -1.0, "like": -1.0}
    settled = recipe(Path("."), fusion={"score": "click * like"})
    assert min(fusing._metrics(settled, rows, {}).values()) > 0.4


def test_weights_are_those_of_the_checkpoint_that_they_were_searched_on(run, tmp_path):
    settled, path = recipe(Path(".")), run_folder.find_checkpoint(run, "best")
    assert fusion.fused_of(run, settled, path) is not None
    found = fusion.found_in(run)
    (tmp_path / fusion.NAME).write_text(json.dumps(found | {"step": found["step"] + 1}))
    with pytest.raises(BadInput, match="weights of the fused score were searched on the predictions of step "):
        fusion.fused_of(tmp_path, settled, path)
    settled = recipe(Path("."), fusion={"score": "click * like"})  # without weights any checkpoint will do
    (tmp_path / fusion.NAME).write_text(json.dumps(found | {"score": "click * like", "weights": {}, "step": 77}))
    assert fusion.fused_of(tmp_path, settled, path) is not None


def test_a_network_has_a_fused_score_too(data, tmp_path):
    """Without weights there is nothing to search."""
    changes = {"model": {"kind": "shared_bottom", "shared_units": [8], "tower_units": [4]}, "name": "net"}
    settled = recipe(data, fusion={"score": "click * like"}, **changes)
    launch.train(settled, tmp_path)
    found = json.loads((tmp_path / "net" / "fusion.json").read_text())
    assert found["test"]["fused"] == found["test"]["product"]
    assert launch.complete(settled, tmp_path / "net")
    golden = json.loads((tmp_path / "net" / "export" / "golden.json").read_text())
    assert golden["scores"]["fused"] == pytest.approx(
        (np.array(golden["scores"]["click"]) * np.array(golden["scores"]["like"])).tolist(), rel=1e-5
    )


@pytest.mark.slow  # starts Ray
def test_ray_tune_tries_the_points_too(run, data):
    settled = recipe(data, cluster={"workers": 1, "device": "cpu"})
    rows = predicted(run, "valid")
    tried = fusing._tried(settled, rows)
    assert len(tried) == 9
    for one in tried:
        assert one["metrics"] == pytest.approx(fusing._metrics(settled, rows, one["weights"]))
        assert all(0 <= value <= 3 for value in one["weights"].values())


def test_without_optuna_points_are_drawn_at_random(run, data, monkeypatch):
    monkeypatch.setattr(fusing, "find_spec", lambda name: None)
    tried = fusing._tried(recipe(data), predicted(run, "valid"))
    assert len({one["weights"]["a"] for one in tried}) == 9


def test_what_is_compared_is_each_task_and_their_product(data):
    settled = recipe(data)
    draw = np.random.default_rng(0)
    scores = {task: torch.from_numpy(draw.random(300).astype(np.float32)) for task in ("click", "like")}
    labels = (draw.random((300, 2)) < 0.4).astype(np.float32)
    labels[::7, 1] = np.nan
    rows = Predicted(scores, labels, draw.integers(0, 20, 300), 1.0)
    torch.testing.assert_close(beside(rows, settled)["product"].float(), scores["click"] * scores["like"])
    found = compared(rows, settled, {"a": 1.0, "b": 1.0})
    assert found["fused"] == found["product"] != found["click"]
    assert {*found["click"]["like"]} >= {"gauc", "uauc", "list_ndcg_10"}
    assert lines(found, "gauc")[0].split() == ["gauc", "click", "like"]


def test_other_days_judge_only_after_those_of_training(data):
    days = {"train": "2026-01-01..2026-01-03", "valid": "2026-01-04..2026-01-04", "test": "2026-01-05..2026-01-05"}
    settled = recipe(data, data={"path": str(data), "days": days})
    assert fusing.judged_on(settled, "2026-01-05..2026-01-06").of("valid") == ["2026-01-05", "2026-01-06"]
    for wrong in ("2026-01-02..2026-01-04", "tomorrow"):
        with pytest.raises(BadInput, match="--valid: "):
            fusing.judged_on(settled, wrong)
    with pytest.raises(BadInput, match="has no data.days"):
        fusing.judged_on(recipe(data), "2026-01-05..2026-01-06")
