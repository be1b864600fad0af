"""Requests for items that wait are answered together, each as it would be by itself."""

import json
import threading
from typing import Any

import numpy as np
import pytest

from livetrain.cluster import launch
from livetrain.trainers.export import publish
from livetrain.trainers.export.export import export
from livetrain.trainers.recall.build import Asked, build
from livetrain.trainers.recall.origin import origin
from tests import samples
from tests.serve.client import client
from tests.serve.conftest import CHANGES
from tests.serve.live import Running, running
from tests.serve.test_server import config
from tests.serve.test_swaps import many

pytestmark = pytest.mark.slow
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def people(count: int) -> list[dict[str, Any]]:
    """Return users with lists of other lengths each, some without one or without a number."""
    rng = np.random.default_rng(1)
    made = []
    for user in range(count):
        lists = {name: rng.integers(1, 6, user % 7).tolist() for name in ("history", "rating")}
        made.append({"user": user if user % 5 else None, **lists, "rate": float(rng.normal()) if user % 3 else None})
    return made


def at_once(server: Running, bodies: list[dict[str, Any]], path: str = "/retrieve") -> list[tuple[int, dict[str, Any]]]:
    """Ask all at once, behind a request that keeps the only thread busy; return the answers in their order."""
    found: dict[int, tuple[int, dict[str, Any]]] = {}

    def ask(number: int) -> None:
        status, text = server.get(path, bodies[number])
        found[number] = status, json.loads(text)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(bodies))]
    busy = threading.Thread(target=client.Client(server.url, 60.0).infer, args=("din", many(10_000)))
    for each in (busy, *threads):
        each.start()
    for each in (busy, *threads):
        each.join()
    return [found[number] for number in range(len(bodies))]


def joined(server: Running) -> int:
    """Return how many requests were answered with others before them in one go."""
    name = 'livetrain_joined_requests_{}{{model="towers"}}'
    return int(server.metric(name.format("sum")) - server.metric(name.format("count")))


def same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """See that an answer is another's, but for how its numbers were rounded."""
    np.testing.assert_allclose(found["scores"]["score"], wanted["scores"]["score"], **CLOSE)
    place = dict(zip(wanted["items"], wanted["scores"]["score"], strict=True))
    last = min(place.values())
    of = [place.get(item, last) for item in found["items"]]  # of equally good ones another may be the last
    np.testing.assert_allclose(found["scores"]["score"], of, **CLOSE)


def test_each_gets_the_answer_that_it_gets_alone(program, published, tmp_path):
    bodies: list[dict[str, Any]] = [{"user": each} for each in people(40)]
    with running(program, config(published) | {"threads": 1, "queue": 100, "deadline_ms": 60_000}, tmp_path) as server:
        alone = [json.loads(server.get("/retrieve", {**body, "top": 50})[1]) for body in bodies]
        assert joined(server) == 0
        for number, body in enumerate(bodies):
            body |= {"top": 1 + number % 9, "exclude": alone[number]["items"][: number % 3]}
        before = [json.loads(server.get("/retrieve", body)[1]) for body in bodies]
        assert [len(each["items"]) for each in before] == [body["top"] for body in bodies]
        server.get("/v2/models/towers/air", {"off": alone[0]["items"][10:20]})
        gone = [json.loads(server.get("/retrieve", body)[1]) for body in bodies]
        assert [each["items"] for each in gone] != [each["items"] for each in before]
        for wanted, air in ((gone, {"on": alone[0]["items"][10:20]}), (before, {})):
            so_far = joined(server)
            for (status, found), expected, body in zip(at_once(server, bodies), wanted, bodies, strict=True):
                assert status == 200, found
                assert not set(found["items"]) & set(body["exclude"])
                same(found, expected)
            assert joined(server) > so_far + 10
            server.get("/v2/models/towers/air", air)
        assert server.metric('livetrain_joined_requests_bucket{model="towers",le="16"}') == server.metric(
            'livetrain_joined_requests_count{model="towers"}'
        )


def test_what_one_has_wrong_is_its_own(program, published, tmp_path):
    bodies: list[dict[str, Any]] = [{"user": each, "top": 5} for each in people(30)]
    bodies[3] = {"user": {"user": 1}}
    bodies[7]["user"] = bodies[7]["user"] | {"rate": "much"}
    bodies[11] = {"rows": {name: [value] * 2 for name, value in bodies[12]["user"].items()}}  # two users
    said = {3: "is missing", 7: "'rate' must be a float32 number", 11: "is of one user"}
    with running(program, config(published) | {"threads": 1, "queue": 100, "deadline_ms": 60_000}, tmp_path) as server:
        alone = [json.loads(server.get("/retrieve", body)[1]) for body in bodies]
        found = at_once(server, bodies)
        for number, (status, answer) in enumerate(found):
            if number in said:
                assert (status, said[number] in answer["error"]) == (400, True), answer
            else:
                assert status == 200, answer
                same(answer, alone[number])


def test_who_waits_too_long_is_refused_and_nobody_else(program, published, tmp_path):
    bodies = [{"user": each, "top": 5} for each in people(40)]
    with running(program, config(published) | {"threads": 1, "queue": 100, "deadline_ms": 1}, tmp_path) as server:
        alone = []
        for body in bodies:
            while (answer := server.get("/retrieve", body))[0] != 200:
                pass
            alone.append(json.loads(answer[1]))
        late = 0
        for _ in range(5):
            for (status, found), wanted in zip(at_once(server, bodies), alone, strict=True):
                if status == 200:
                    same(found, wanted)
                else:
                    late += 1
                    assert (status, "before the deadline" in found["error"]) == (503, True)
        assert late
        assert server.metric('livetrain_requests_total{model="retrieve",code="503"}') >= late


def test_other_towers_take_over_between_two_batches(program, published, tmp_path):
    """Two trainings take turns: an answer is one of them, items and scores, and says which."""
    data = published.folder / "data"
    launch.train(
        samples.recipe(data, name="other", train__epochs=1, train__seed=2, **CHANGES["towers"]),
        published.folder / "runs",
    )
    export(published.folder / "runs/other")
    bodies = [{"user": each, "top": 5} for each in people(12)]
    where, index = published.where("towers"), str(published.folder / "indexes/towers")
    wanted: dict[str, list[dict[str, Any]]] = {}
    asked = config(published) | {"threads": 2, "queue": 200, "deadline_ms": 60_000}
    with running(program, asked, tmp_path) as server:

        def learned() -> None:
            answers = [json.loads(server.get("/retrieve", body)[1]) for body in bodies]
            wanted[answers[0]["model"]["version"]] = answers

        learned()
        found: list[list[tuple[int, dict[str, Any]]]] = []
        ends = threading.Event()

        def load() -> None:
            while not ends.is_set():
                found.append(at_once(server, bodies))

        asking = threading.Thread(target=load)
        asking.start()
        for number, run in enumerate(["other", "towers", "other"]):
            version = f"2026-12-0{number + 1}"
            publish.publish(published.folder / "runs" / run / "export", where, version, 5)
            build(origin(where, published.folder / "runs"), index, Asked("exact", least=0.1), print)
            server.wait("towers", version=version)
            learned()
        ends.set()
        asking.join()
        assert joined(server) > 0
    assert {answer["model"]["version"] for each in found for _, answer in each} >= {"2026-11-30", "2026-12-02"}
    first, second = (wanted[version][1]["scores"]["score"] for version in ("2026-11-30", "2026-12-01"))
    assert not np.allclose(first, second, atol=1e-3)
    for each in found:
        for number, (status, answer) in enumerate(each):
            assert status == 200, answer
            same(answer, wanted[answer["model"]["version"]][number])
