"""The store in C++ fills what `Features` of Python does, of every feature, at every moment."""

import dataclasses
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from livetrain.configs.schema import Recipe
from livetrain.trainers.data.sources.events.plan import columns_of
from livetrain.trainers.data.store.kv import open_store
from livetrain.trainers.online.features import Features
from tests.serve.built import ROOT, SERVE, program
from tests.trainers.online import worlds
from tests.trainers.online.test_store import redis_server  # noqa: F401


@pytest.fixture(scope="module")
def driver() -> Path:
    for header, package in (("lmdb.h", "liblmdb-dev"), ("hiredis/hiredis.h", "libhiredis-dev")):
        if not Path("/usr/include", header).exists():
            pytest.skip(f"needs {header} (apt install {package})")
    sources = [ROOT / "tests/serve/store_driver.cpp", SERVE / "store.cpp", SERVE / "store_place.cpp"]
    return program("store_driver", sources, ["-DLIVETRAIN_LMDB", "-DLIVETRAIN_REDIS", "-llmdb", "-lhiredis"])


def everything() -> Recipe:
    """Return a recipe with a feature of every column that a store knows."""
    features: dict = {}
    for name, how in columns_of(worlds.EVERYTHING).items():
        if how["is"] in ("user", "item", "author", "hour", "weekday", "ids"):
            features[name] = {"type": "id", "table": "any"}
        elif how["is"] == "time":
            features["at"] = {"type": "hour", "table": "any", "column": name, "unit": "ms"}
        elif how["is"] == "bags":
            features[name] = {"type": "bag", "table": "any"}
        elif how["is"] == "vectors":
            if name != "user_weights":
                features[name] = {"type": "vector", "width": 2 if name == "streamer_vector" else 128}
        elif how["is"].startswith("list "):
            features[name] = {"type": "sequence", "table": "any", "max_length": 50}
        else:
            features[name] = {"type": "dense"}
    features["old"] = {"type": "age", "column": "user_age", "unit": "ms"}
    features["of"] = {"type": "age", "column": "streamer_age", "until": "live_name_id", "unit": "s"}
    features["mixed"] = {"type": "age", "column": "user_age", "until": "streamer_age", "unit": "us"}
    features["weighed"] = {"type": "bag", "table": "any", "column": "user_topics", "weights": "user_weights"}
    return Recipe.model_validate(
        {
            "name": "everything",
            "data": {"path": "data", "batch_size": 8, "shards": 2},
            "features": features,
            "tables": {"any": {"rows": 32, "dim": 4, "hash": "modulo"}},
            "model": {"kind": "lr"},
            "tasks": {"click": {"label": "click"}},
        }
    )


def signature(recipe: Recipe) -> dict:
    """Return what signature.json says of features, as `trainers/export/signature.py` writes it."""
    return {
        "features": {
            name: f.signature([0.0] * 128, [1.0] * 128)
            | {"columns": [*recipe.reads(name)]}
            | ({"beside": carried[1]} if (carried := recipe.beside(name)) else {})
            | ({"column_unit": f.time_unit} if f.time_unit else {})
            for name, f in recipe.features.items()
        }
    }


def asked_of(samples, draw) -> list[dict]:
    """Return requests: each exposure's own candidate beside others, at its time and at times around."""
    requests = []
    for row in samples.to_pylist():
        rooms = [row["room"], *draw.choice([1, 2, 3, 4, 5, 99], 3).tolist()]
        streamers = [row["streamer"], *draw.choice([100, 101, 102, 999], 3).tolist()]
        for ms in (row["timestamp"], row["timestamp"] + int(draw.integers(1, 400_000))):
            ids = {"user": [row["user"]], "room": rooms, "streamer": streamers}
            requests.append({"ms": ms, "ids": ids})
    return [*requests, {"ms": requests[-1]["ms"], "ids": {"user": [777], "room": [1], "streamer": [101]}}]


@pytest.fixture
def _weights(monkeypatch):
    """Let what is known of users have a weight of each of their topics, of some users."""
    known = worlds.EVERYTHING.attributes["user"]
    weights = "CASE id WHEN 1 THEN [0.5, NULL] WHEN 2 THEN NULL WHEN 3 THEN []::DOUBLE[] END"
    select = f"SELECT *, {weights} AS user_weights FROM ({known.select})"
    more = dataclasses.replace(known, vectors=("user_weights",), select=select)
    attributes = worlds.EVERYTHING.attributes | {"user": more}
    monkeypatch.setattr(worlds, "EVERYTHING", dataclasses.replace(worlds.EVERYTHING, attributes=attributes))


@pytest.mark.usefixtures("_weights")
@pytest.mark.parametrize("streamed", [True, False])
def test_features_are_those_of_python(driver, tmp_path, streamed):
    """Of a night and a stream, and of a night alone."""
    days = worlds.prepared(tmp_path, 11)
    store = open_store(str(tmp_path / "store"), create=True)
    worlds.filled(store, days[-2])
    if streamed:
        worlds.told(store, worlds.EVERYTHING, tmp_path / "raw", days[-1], tmp_path / "work")
    recipe = everything()
    assert len(recipe.features) > 100
    (tmp_path / "signature.json").write_text(json.dumps(signature(recipe)))
    requests = asked_of(worlds.samples(days[-1]), np.random.default_rng(0))
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    command = [str(driver), str(tmp_path / "store"), str(tmp_path / "signature.json")]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(requests) > 50
    features = Features(store, recipe)
    for request, own in zip(requests, found, strict=True):
        told = request["ids"]
        candidates = {name: told[name] for name in ("room", "streamer")}
        ids, lengths, dense = features.row(told["user"][0], candidates, request["ms"])
        assert set(own["filled"]) == set(recipe.features) - set(told)
        for name in ids:
            assert own["ids"][name] == ids[name].tolist(), name
            assert own["lengths"][name] == lengths[name].tolist(), name
        assert own["dense"].keys() == dense.keys()
        for name in dense:
            values = np.array(own["dense"][name], np.float32)  # None is NaN
            np.testing.assert_allclose(values, dense[name].ravel().numpy(), rtol=1e-6, err_msg=name)


@pytest.mark.slow
def test_what_a_request_brings_stays_and_without_an_author_nothing_is_said_of_it(driver, tmp_path):
    days = worlds.prepared(tmp_path, 11)
    store = open_store(str(tmp_path / "store"), create=True)
    worlds.filled(store, days[-2])
    (tmp_path / "signature.json").write_text(json.dumps(signature(everything())))
    request = {"ms": 1_748_275_200_000, "ids": {"user": [1], "room": [1, 2], "live_streamer": [5, 6, 7], "hour": [3]}}
    command = [str(driver), str(tmp_path / "store"), str(tmp_path / "signature.json")]
    done = subprocess.run(command, input=json.dumps(request) + "\n", capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["ids"]["live_streamer"] == [5, 6, 7]
    assert found["ids"]["hour"] == [3]
    assert not {"live_streamer", "hour", "streamer_count", "user_streamer_ago", "streamer_vector"} & {*found["filled"]}
    assert {"user_count", "room_viewers", "user_room_count", "live_gap"} <= {*found["filled"]}


@pytest.mark.slow
def test_a_store_that_is_away_says_so(driver, tmp_path, redis_server):  # noqa: F811
    start, kill = redis_server
    days = worlds.prepared(tmp_path, 11)
    place = start()
    (tmp_path / "signature.json").write_text(json.dumps(signature(everything())))
    command = [str(driver), place, str(tmp_path / "signature.json")]
    request = json.dumps({"ms": 1_748_275_200_000, "ids": {"user": [1], "room": [1], "streamer": [101]}}) + "\n"
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:

        def ask() -> dict:
            running.stdin.write(request)
            running.stdin.flush()
            return json.loads(running.stdout.readline())

        assert "it was never filled" in ask()["down"]
        store = open_store(place)
        worlds.filled(store, days[-2])
        whole = ask()
        assert len(whole["filled"]) > 100
        kill()
        assert "does not answer" in ask()["down"]
        start()
        assert "it was never filled" in ask()["down"]
        worlds.filled(store, days[-2])
        assert ask() == whole
        running.stdin.close()
    done = subprocess.run([str(driver), str(tmp_path / "none"), command[2]], capture_output=True, text=True, check=True)
    assert "there is none in" in json.loads(done.stdout)["error"]
