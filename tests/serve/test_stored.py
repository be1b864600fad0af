"""A server that asks a feature store: what it logs, replayed, gives the same features and scores; then skew and why."""

import json

import numpy as np
import pytest
import torch

from livetrain.cli import main as cli
from livetrain.cluster import launch
from livetrain.trainers.data.store.kv import open_store
from livetrain.trainers.export import publish
from livetrain.trainers.online import request_log
from livetrain.trainers.online.features import Features
from tests.serve.live import running
from tests.trainers.online import worlds
from tests.trainers.online.test_store import redis_server  # noqa: F401

pytestmark = pytest.mark.slow
ASKED = {
    "candidates": {"room": [1, 2, 3, 99], "streamer": [101, 102, 100, None]},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Prepared days, a published model, and its recipe."""
    folder = tmp_path_factory.mktemp("world")
    days = worlds.prepared(folder, 3)
    made = worlds.recipe(folder / "out")
    launch.train(made, folder / "runs")
    publish.publish(folder / "runs/online/export", str(folder / "models"), "2026-11-30", 5)
    return folder, days, made


def logged(server, folder):
    """Stop a server, and return its log."""
    assert server.end() == 0
    return request_log.read(str(folder))


def test_a_logged_request_replayed_gives_the_same_features_and_scores(program, world, tmp_path, capsys):
    folder, days, made = world
    store = open_store(str(tmp_path / "store"), create=True)
    worlds.filled(store, days[-1])
    worlds.told(store, worlds.EVERYTHING, folder / "raw", days[-1], tmp_path / "work")
    config = {"models": {"din": {"published": str(folder / "models")}}, "rank": {"model": "din", "by": "click"}}
    config |= {"store": {"place": str(tmp_path / "store")}, "log": {"path": str(tmp_path / "log"), "share": 1}}
    asked = [{"user": {"user": user}, "candidates": ASKED["candidates"]} for user in (1, 2, 3, 4, 777)]
    with running(program, config, tmp_path) as server:
        answers = []
        for each in asked:
            status, text = server.get("/rank", each)
            assert status == 200, text
            answers.append(json.loads(text))
        table = logged(server, tmp_path / "log")
    model = torch.jit.load(folder / "runs/online/export/model.pt")
    features = Features(store, made)
    for row in range(len(table)):
        one = table.slice(row, 1)
        answer = next(each for each in answers if each["request_id"] == one["request_id"][0].as_py())
        given = request_log.RequestLog(one, made, "log").inputs()
        user = given[0]["user"].item()
        again = features.row(user, ASKED["candidates"], one["time"][0].as_py())
        for had, wanted in zip(given, again, strict=True):
            assert had.keys() == wanted.keys()
            for name in had:
                np.testing.assert_allclose(had[name].numpy(), wanted[name].numpy(), rtol=1e-6, err_msg=name)
        scores = model.rank(*again)
        for task in ("click", "like"):
            np.testing.assert_allclose(answer["scores"][task], scores[task].numpy(), atol=1e-6)
            np.testing.assert_allclose(one[f"scores.{task}"][0].as_py(), scores[task].numpy(), atol=1e-6)
        assert set(one["stored"][0].as_py()) == set(made.features) - {"user", "room", "streamer"}
    assert {table["user"][row].as_py() for row in range(len(table))} == {1, 2, 3, 4, 777}
    command = ["explain", str(tmp_path / "log"), "--request", answers[0]["request_id"], "--run", str(folder / "models")]
    assert not cli.app([*command, "--runs", str(folder / "runs"), "--json"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert told["request"]["largest difference from the logged scores"] < 1e-5
    assert [row["place"] for row in sorted(told["candidates"], key=lambda row: row["place"])] == [1, 2, 3, 4]
    best = answers[0]["order"][0]
    assert told["candidate"]["item"] == ASKED["candidates"]["room"][best]


def test_without_its_store_a_server_refuses_what_lacks_features_and_answers_what_has_all(
    program,
    world,
    tmp_path,
    redis_server,  # noqa: F811
):
    folder, days, made = world
    start, kill = redis_server
    place = start()
    store = open_store(place)
    worlds.filled(store, days[-1])
    config = {"models": {"din": {"published": str(folder / "models")}}, "store": {"place": place}}
    config["rank"] = {"model": "din", "by": "click"}
    whole = {"user": {"user": 1}, "candidates": dict(ASKED["candidates"])}
    for name, feature in made.features.items():
        if name in ("user", "room", "streamer"):
            continue
        number = [0.0] * 128 if name == "title_vector" else [] if feature.lists else 1
        mine = name in ("lived", "topics", "hour", "user_seen_count")
        whole["user" if mine else "candidates"][name] = number if mine else [number] * 4
    few = {"user": {"user": 1}, "candidates": ASKED["candidates"]}
    with running(program, config, tmp_path) as server:
        assert server.get("/rank", few)[0] == 200
        kill()
        status, text = server.get("/rank", few)
        assert status == 503
        assert "does not answer; ask again, or send all features" in text
        status, text = server.get("/rank", whole)
        assert status == 200, text
        assert server.metric("livetrain_store_away_total") == 1
        start()
        status, text = server.get("/rank", few)
        assert (status, "it was never filled" in text) == (503, True), text
        worlds.filled(store, days[-1])
        assert server.get("/rank", few)[0] == 200


def test_a_request_without_an_id_that_the_store_goes_by_is_told_which(program, world, tmp_path):
    folder, days, _ = world
    worlds.filled(open_store(str(tmp_path / "store"), create=True), days[-1])
    config = {"models": {"din": {"published": str(folder / "models")}}, "rank": {"model": "din", "by": "click"}}
    config["store"] = {"place": str(tmp_path / "store")}
    with running(program, config, tmp_path) as server:
        for column in ("user", "room", "streamer"):
            asked = {"user": {"user": 1}, "candidates": dict(ASKED["candidates"])}
            asked["user" if column == "user" else "candidates"].pop(column)
            status, text = server.get("/rank", asked)
            assert status == 400
            assert f"fills in what depends on '{column}' only where a request has it" in text, text
        status, text = server.get("/rank", {"user": {"user": 1}, "candidates": {**ASKED["candidates"], "hour": "x"}})
        assert "fills in" not in text


def test_a_model_that_reads_no_items_id_gets_what_the_store_knows_of_the_item(program, world, tmp_path):
    folder, days, made = world
    store = open_store(str(tmp_path / "store"), create=True)
    worlds.filled(store, days[-1])
    kept = {
        part: {name: each for name, each in made.model_dump()[part].items() if name != "room"}
        for part in ("features", "tables")
    }
    few = worlds.recipe(folder / "out", name="few", **kept)
    launch.train(few, tmp_path / "runs")
    publish.publish(tmp_path / "runs/few/export", str(tmp_path / "models"), "2026-11-30", 5)
    config = {"models": {"din": {"published": str(tmp_path / "models")}}, "rank": {"model": "din", "by": "click"}}
    config |= {"store": {"place": str(tmp_path / "store")}, "log": {"path": str(tmp_path / "log"), "share": 1}}
    with running(program, config, tmp_path) as server:
        status, text = server.get("/rank", {"user": {"user": 1}, "candidates": ASKED["candidates"]})
        assert status == 200, text
        lacking = {"user": {"user": 1}, "candidates": {"streamer": ASKED["candidates"]["streamer"]}}
        status, refused = server.get("/rank", lacking)
        assert status == 400
        assert "fills in what depends on 'room' only where a request has it" in refused
        table = logged(server, tmp_path / "log")
    given = request_log.RequestLog(table.slice(0, 1), few, "log").inputs()
    again = Features(store, few).row(1, ASKED["candidates"], table["time"][0].as_py())
    for had, wanted in zip(given, again, strict=True):
        assert had.keys() == wanted.keys()
        for name in had:
            np.testing.assert_allclose(had[name].numpy(), wanted[name].numpy(), rtol=1e-6, err_msg=name)
    scores = torch.jit.load(tmp_path / "runs/few/export/model.pt").rank(*again)
    for task in ("click", "like"):
        np.testing.assert_allclose(json.loads(text)["scores"][task], scores[task].numpy(), atol=1e-6)
