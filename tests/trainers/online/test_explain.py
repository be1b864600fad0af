"""What a feature adds: the known terms of a model that adds, and a rest where features work together."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from livetrain.cli import main as cli
from livetrain.configs.errors import BadInput
from livetrain.trainers.export.prediction import Predictor, weights_of
from livetrain.trainers.online import request_log
from livetrain.trainers.online.explain import explain
from livetrain.trainers.online.page import page
from livetrain.trainers.runtime import run_folder
from tests.trainers.online import logged
from tests.trainers.online.test_skew import MINE, NOW, recipe, samples

WEIGHTS = {"price": 0.3, "age": -1e-6, "title": 0.5, "user": 0.2, "room": 0.01, "seen": 0.04}


def summed(name: str, ids, lengths, dense) -> torch.Tensor:
    """Return (B,) what a feature has of a number: itself, the sum of its places, or of its ids."""
    if name in dense:
        return torch.nan_to_num(dense[name].double()).reshape(len(dense[name]), -1).sum(1)
    row = torch.repeat_interleave(torch.arange(len(lengths[name])), lengths[name])
    return torch.zeros(len(lengths[name]), dtype=torch.float64).index_add_(0, row, ids[name].double())


def linear(ids, lengths, dense):
    """A model whose log-odds are a sum of terms."""
    value = sum(weight * summed(name, ids, lengths, dense) for name, weight in WEIGHTS.items()) - 2
    return {"click": torch.sigmoid(value)}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    table = logged.write(folder, samples(), list(range(NOW, NOW + 120)), recipe(folder), MINE)
    return recipe(folder), table


def test_parts_of_a_linear_model_are_its_terms(log):
    made, table = log
    found = explain(table.slice(4, 1), table, made, linear, background=200).candidate
    click = found["tasks"]["click"]
    every, one = request_log.RequestLog(table, made, "log"), request_log.RequestLog(table.slice(4, 1), made, "log")
    drawn = np.sort(np.random.default_rng(1).choice(360, 200, replace=False))
    for name, weight in WEIGHTS.items():
        of = [
            summed(
                name,
                *[{name: torch.tensor(given.values)}, {name: torch.tensor(given.counts)}, {}]
                if given.counts is not None
                else [{}, {}, {name: torch.tensor(given.values)}],
            ).numpy()
            for given in (every.by_candidate(name).take(drawn), one.by_candidate(name).take(np.array([1])))
        ]
        assert click["parts"][name] == pytest.approx(weight * (of[1][0] - of[0].mean()), abs=1e-6)
    assert [click["parts"][name] for name in ("kind", "tags", "hour")] == pytest.approx([0] * 3, abs=1e-9)
    assert click["rest"] == pytest.approx(0, abs=1e-6)
    assert click["value"] == pytest.approx(click["base"] + sum(click["parts"].values()) + click["rest"])
    assert click["scale"] == "log-odds"
    assert found["item"] == 5  # order is [1, 0]: the second candidate has the first place


def test_what_features_do_together_is_the_rest(log):
    made, table = log

    def together(ids, lengths, dense):
        return {"click": torch.sigmoid(torch.nan_to_num(dense["price"]) * dense["title"][:, 0])}

    click = explain(table.slice(4, 1), table, made, together).candidate["tasks"]["click"]
    assert abs(click["rest"]) > 1e-3
    assert click["value"] == pytest.approx(click["base"] + sum(click["parts"].values()) + click["rest"])
    assert {name for name, part in click["parts"].items() if abs(part) > 1e-6} == {"price", "title"}


def test_without_a_background_a_feature_is_missing(log):
    made, table = log
    found = explain(table.slice(4, 1), table, made, linear, candidate=4, background=0).candidate
    click, price = found["tasks"]["click"], found["features"]["price"]
    assert found["background"] == "missing values"
    assert found["item"] == 4
    assert click["parts"]["price"] == pytest.approx(0.3 * price, abs=1e-6)
    assert click["base"] == pytest.approx(-2, abs=1e-6)
    assert click["rest"] == pytest.approx(0, abs=1e-6)


def test_what_lies_beside_ids_is_given_and_changes_with_them(log):
    made, table = log

    def weighed(ids, lengths, dense):
        row = torch.repeat_interleave(torch.arange(len(lengths["tags"])), lengths["tags"])
        sums = torch.zeros(len(lengths["tags"]), dtype=torch.float64).index_add_(0, row, dense["tags"].double())
        return {"click": torch.sigmoid(sums / 10)}

    found = explain(table.slice(4, 1), table, made, weighed, candidate=5, background=200).candidate
    assert found["features"]["tags"] == {"ids": [1, 2], "weights": [0.625, 1.5]}
    every = [sum(weights) for row in table["tags.weights"].to_pylist() for weights in row]
    drawn = np.sort(np.random.default_rng(1).choice(360, 200, replace=False))
    wanted = (0.625 + 1.5 - np.array(every)[drawn].mean()) / 10
    assert found["tasks"]["click"]["parts"]["tags"] == pytest.approx(wanted, abs=1e-6)
    assert explain(table.slice(4, 1), table, made, weighed, background=0).candidate["features"]["tags"]["ids"] == [1, 2]
    given = request_log.RequestLog(table.slice(4, 1), made, "log").inputs()
    assert given[2]["tags"].tolist() == [0.5, 1.5, 0.625, 1.5, 0.75, 1.5]


def test_candidates_have_their_channels_scores_and_places(log):
    made, table = log
    found = explain(table.slice(4, 1), table, made, linear)
    assert found.candidates == [
        {"place": 2, "item": 4, "channel": "hot", "prerank": 0.5},
        {"place": 1, "item": 5, "channel": "towers", "prerank": 0.6},
        {"place": None, "item": 6, "channel": "hot", "prerank": 0.1},
    ]
    assert found.request["user"]["seen"] == table["seen"][4].as_py()
    assert found.request["stored"] == ["rate"]
    made_page = page({"request": found.request, "candidates": found.candidates, "candidate": found.candidate})
    assert made_page.startswith("<!doctype html>")
    assert "<td>towers</td>" in made_page


def test_of_a_candidate_that_comes_twice_the_one_that_was_shown_is_explained(log):
    made, table = log
    one = table.slice(4, 1)
    one = one.set_column(one.schema.get_field_index("room"), "room", pa.array([[5, 5, 5]], one["room"].type))
    found = explain(one, table, made, linear, candidate=5)
    assert (found.candidate["place"], found.candidate["channel"]) == (1, "towers")
    own = request_log.RequestLog(one, made, "log").by_candidate("price").values
    assert found.candidate["features"]["price"] == pytest.approx(own[1])
    assert own[0] != own[1]
    shown = page({"request": found.request, "candidates": found.candidates, "candidate": found.candidate})
    assert '<tr class=chosen><td class="name">1</td><td>5</td><td>towers</td>' in shown
    third = found.candidate | found.candidates[2]
    shown = page({"request": found.request, "candidates": found.candidates, "candidate": third})
    assert '<tr class=chosen><td class="name"></td><td>5</td><td>hot</td>' in shown


def test_what_cannot_be_explained_is_named(log):
    made, table = log
    with pytest.raises(BadInput, match="--candidate 99: is none of the request's 3; as 4 is"):
        explain(table.slice(4, 1), table, made, linear, candidate=99)
    with pytest.raises(BadInput, match="--item user: is no id feature of the candidates; name one of room, kind"):
        explain(table.slice(4, 1), table, made, linear, item="user")


def test_the_command_explains_a_run_and_sees_another_version(small_run, tmp_path, capsys):
    made = run_folder.recipe_of(small_run)
    rows = pa.concat_tables(
        pq.read_table(path) for path in sorted((small_run.parents[1] / "data/test").glob("*.parquet"))
    ).slice(0, 40)
    table = logged.write(tmp_path / "log", rows, list(range(40)), made, ["user", "history", "rating"])
    predictor = Predictor(weights_of(small_run))
    own = request_log.RequestLog(table.slice(7, 1), made, "log")
    with torch.inference_mode():
        scores = predictor.model.rank(*own.inputs())["click"].tolist()
    every = [scores if n == 7 else None for n in range(40)]
    table = table.append_column("scores.click", pa.array(every, pa.list_(pa.float32())))
    pq.write_table(table, tmp_path / "log/date=2026-11-29/120000-host-0.parquet")
    command = ["explain", str(tmp_path / "log"), "--request", "r7", "--run", str(small_run)]
    assert not cli.app([*command, "--json", "--out", str(tmp_path / "page.html")], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["request"]["largest difference from the logged scores"] < 1e-6
    assert [row["score click"] for row in found["candidates"]] == pytest.approx(scores)
    assert found["candidate"]["tasks"]["click"]["score"] == pytest.approx(scores[1], abs=1e-6)
    assert found["candidate"]["features"]["history + rating"] == [table[n][7].as_py() for n in ("history", "rating")]
    assert "r7" in (tmp_path / "page.html").read_text()
    assert not cli.app(command, standalone_mode=False)
    assert "another version" not in capsys.readouterr().out
    wrong = [[each + 0.1 for each in scores] if n == 7 else None for n in range(40)]
    at = table.schema.get_field_index("scores.click")
    table = table.set_column(at, "scores.click", pa.array(wrong, pa.list_(pa.float32())))
    pq.write_table(table, tmp_path / "log/date=2026-11-29/120000-host-0.parquet")
    assert not cli.app(command, standalone_mode=False)
    assert "the logged scores differ by up to 0.1: another version answered" in capsys.readouterr().out
    other = table.slice(0, 1).set_column(0, "request_id", pa.array(["another"]))
    pq.write_table(other, tmp_path / "log/date=2026-11-29/110000-host-0.parquet")
    assert request_log.holding(str(tmp_path / "log"), "another").endswith("110000-host-0.parquet")
    assert request_log.holding(str(tmp_path / "log"), "r7").endswith("120000-host-0.parquet")
    with pytest.raises(BadInput, match="has no request 'r99'"):
        cli.app(["explain", str(tmp_path / "log"), "--request", "r99", "--run", str(small_run)], standalone_mode=False)
    pq.write_table(table.drop_columns("request_id"), tmp_path / "log/date=2026-11-29/120000-host-0.parquet")
    with pytest.raises(BadInput, match="-host-0.parquet: has no column 'request_id', so it is no log of requests"):
        cli.app(command, standalone_mode=False)


def test_a_fused_score_is_told_with_its_formula_and_what_features_add_to_it(small_run, tmp_path, capsys):
    run = tmp_path / "runs/fused"
    shutil.copytree(small_run, run, symlinks=True)
    content = yaml.safe_load((run / "config.yaml").read_text())
    content |= {"fusion": {"score": "click ** a", "weights": {"a": [0, 2]}}}
    content["evaluate"] = content.get("evaluate", {}) | {"group_by": "user"}
    (run / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    found = weights_of(run)
    step = run_folder.content(found.folder)["step"]
    (run / "fusion.json").write_text(json.dumps({"score": "click ** a", "weights": {"a": 0.5}, "step": step}))
    made = run_folder.recipe_of(run)
    rows = pa.concat_tables(
        pq.read_table(path) for path in sorted((small_run.parents[1] / "data/test").glob("*.parquet"))
    ).slice(0, 40)
    logged.write(tmp_path / "log", rows, list(range(40)), made, ["user", "history", "rating"])
    command = ["explain", str(tmp_path / "log"), "--request", "r7", "--run", str(run)]
    assert not cli.app([*command, "--json"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert told["request"]["fusion"] == {"score": "click ** a", "weights": {"a": 0.5}}
    fused, click = (told["candidate"]["tasks"][name] for name in ("fused", "click"))
    assert fused["score"] == pytest.approx(click["score"] ** 0.5, abs=1e-6)
    assert fused["parts"].keys() == click["parts"].keys()
    assert fused["value"] == pytest.approx(fused["base"] + sum(fused["parts"].values()) + fused["rest"])
    assert not cli.app(command, standalone_mode=False)
    assert "fused = click ** a, a 0.5" in capsys.readouterr().out
