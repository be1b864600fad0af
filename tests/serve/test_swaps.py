"""Versions and deltas come while requests do: none is lost, none is scored by anything that was not published whole."""

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from livetrain.trainers.export import publish
from livetrain.trainers.export.deltas import publish_delta, publish_next
from livetrain.trainers.export.rows import golden_inputs
from livetrain.trainers.export.served import Served
from livetrain.trainers.recall.build import Asked, build
from livetrain.trainers.recall.origin import origin
from livetrain.trainers.runtime import manifest
from tests import samples
from tests.serve.client import client
from tests.serve.live import running
from tests.serve.test_server import golden, tensors
from tests.trainers.export.test_deltas import line

pytestmark = pytest.mark.slow


class Load:
    """Threads that ask all the time.

    Attributes:
        answers: of each that came: which state it says it is of, and its scores' bytes.
        errors: what came in the place of an answer.
    """

    def __init__(self, url: str, model: str, given: dict, threads: int = 3) -> None:
        self.answers: list[tuple[tuple[int, int], bytes]] = []
        self.errors: list[Exception] = []
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(url, model, given)) for _ in range(threads)]

    def __enter__(self) -> "Load":
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for each in self._threads:
            each.join()

    def _ask(self, url: str, model: str, given: dict) -> None:
        ask = client.Client(url, 60.0)
        while not self._ends.is_set():
            try:
                found = ask.infer(model, given, rows=True)
                self.answers.append(((found.fence, found.delta), found.scores["click"].tobytes()))
            except client.ServerError as error:
                self.errors.append(error)


def config(where: str, **more: object) -> dict:
    return {"models": {"din": {"published": where}}, "queue": 100, "deadline_ms": 60_000, **more}


@pytest.mark.parametrize("changes", [{}, {"export__tables": "mapped", "export__quantize": "int8"}], ids=["", "mapped"])
def test_twenty_versions_and_deltas_lose_no_request(program, tmp_path, changes):
    where, wanted = str(tmp_path / "models"), dict[tuple[int, int], bytes]()
    data = samples.write(tmp_path / "data", 400)
    with line(tmp_path / "run", samples.recipe(data, export__tolerance_int8=1.0, **changes)) as training:

        def published(number: int) -> None:
            """Publish a base now and then, and deltas between."""
            training.go(1).save()
            publish_next(training.run, where, f"v{number // 5}", 3, most=4 if number % 5 else 0, share=1e9)

        published(0)
        inputs = golden_inputs(Served(where).golden)

        def learned() -> None:
            served = Served(where)
            key = (served.pointer["fence"], served.number)
            wanted[key] = served.score(*inputs)["click"].detach().numpy().tobytes()

        learned()
        with running(program, config(where), tmp_path) as server:
            with Load(server.url, "din", tensors(inputs)) as load:
                for number in range(1, 21):
                    published(number)
                    learned()
                    fence, delta = max(wanted)
                    server.wait("din", fence=fence, delta=delta)
                    while load.answers[-1][0] != (fence, delta) and not load.errors:
                        threading.Event().wait(0.01)
            assert not load.errors
            assert {state for state, _ in load.answers} == wanted.keys()
            assert all(scores == wanted[state] for state, scores in load.answers)
            assert server.metric('livetrain_swaps_total{model="din"}') in (19, 20)  # the last is counted a moment later
            assert server.metric('livetrain_failed_loads_total{model="din"}') == 0
            assert 0 <= server.health()["models"]["din"]["age_s"] < 600


def test_a_base_is_not_served_before_the_deltas_that_are_listed(program, tmp_path):
    """What a server first sees of a new base may have deltas already: without them it is older than what it serves."""
    where, data = str(tmp_path / "models"), samples.write(tmp_path / "data", 400)
    pointer = Path(where, "current.json")
    with line(tmp_path / "run", samples.recipe(data)) as training:

        def published(most: int) -> dict:
            training.go(1).save()
            return publish_next(training.run, where, "a", 3, most=most, share=1e9)

        published(0)
        published(1)
        held, inputs = pointer.read_text(), golden_inputs(Served(where).golden)
        published(0)
        for _ in range(4):
            last = published(9)
        new, damaged = pointer.read_text(), Path(where, last["deltas"][2]["folder"], "delta.bin")
        whole = damaged.read_bytes()
        damaged.write_bytes(whole[:-1])
        point(pointer, held)
        with running(program, config(where), tmp_path) as server, Load(server.url, "din", tensors(inputs)) as load:
            point(pointer, new)
            assert "delta.bin is missing or damaged" in server.wait("din", failed=True)["failed"]
            assert {state for state, _ in load.answers} == {(2, 1)}
            damaged.write_bytes(whole)
            server.wait("din", fence=last["fence"], delta=4, failed=False)
            while load.answers[-1][0] != (last["fence"], 4) and not load.errors:
                threading.Event().wait(0.01)
        assert not load.errors
        assert {state for state, _ in load.answers} == {(2, 1), (last["fence"], 4)}


def broken(published, change: Callable[[Path], None], seal: bool = True) -> str:
    """Publish a copy of the model in which something was changed; return its folder."""
    pointer = publish.publish(published.folder / "runs/din/export", published.where("din"), "2026-12-01", 5)
    folder = Path(published.where("din"), pointer["folder"])
    change(folder)
    if seal:
        (folder / "manifest.json").unlink()
        files = {path.name: manifest.digest(path) for path in sorted(folder.iterdir()) if path.name != "wanted.txt"}
        manifest.commit(folder, files)
    return pointer["folder"]


def point(pointer: Path, content: str) -> None:
    """Replace a pointer, as a publisher does: at once."""
    draft = pointer.with_name("draft")
    draft.write_text(content)
    draft.replace(pointer)


def other_score(folder: Path) -> None:
    content = json.loads((folder / "golden.json").read_text())
    content["scores"]["click"][5] += 1e-3
    (folder / "golden.json").write_text(json.dumps(content))


def flipped(folder: Path) -> None:
    content = bytearray((folder / "model.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.pt").write_bytes(content)


def half(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "model.pt").unlink()


@pytest.mark.parametrize(
    ("change", "seal", "said"),
    [
        (other_score, True, "golden rows: click is not what golden.json says"),
        (flipped, False, "model.pt is missing or damaged"),
        (half, False, "manifest.json is missing"),
        (lambda folder: (folder / "model.pt").write_bytes(b"x" * 100), True, ""),
    ],
    ids=["golden row", "hash", "half-written", "no model"],
)
def test_what_cannot_be_loaded_is_not_served(program, published, tmp_path, change, seal, said):
    inputs, pointer = golden(published, "din"), Path(published.where("din"), "current.json")
    old = pointer.read_text()
    folder = broken(published, change, seal)
    new = pointer.read_text()
    point(pointer, old)
    with running(program, config(published.where("din")), tmp_path) as server:
        before = client.Client(server.url, 30.0).infer("din", tensors(inputs), rows=True)
        with Load(server.url, "din", tensors(inputs), 1) as load:
            point(pointer, new)
            about = server.wait("din", failed=True)
            assert (about["fence"], said in about["failed"]) == (1, True)
            assert server.health()["status"] == "serves on what it has"
            assert server.metric('livetrain_failed_loads_total{model="din"}') >= 1
            assert (Path(published.where("din"), folder) / "wanted.txt").exists()
            third = published.again("din", "2026-12-02")["fence"]
            server.wait("din", fence=third, failed=False)
        assert not load.errors
        assert {scores for _, scores in load.answers} == {before.scores["click"].tobytes()}


def test_a_folder_that_is_away_is_waited_for(program, published, tmp_path):
    inputs, where = golden(published, "din"), Path(published.where("din"))
    with running(program, config(str(where)), tmp_path) as server:
        with Load(server.url, "din", tensors(inputs), 1) as load:
            where.rename(where.with_name("away"))
            assert "current.json cannot be read" in server.wait("din", failed=True)["failed"]
            where.with_name("away").rename(where)
            published.again("din", "2026-12-01")
            server.wait("din", version="2026-12-01", failed=False)
        assert not load.errors
        assert not list(where.rglob("wanted.txt"))


def test_a_smaller_fence_is_ignored(program, published, tmp_path):
    pointer = Path(published.where("din"), "current.json")
    old = pointer.read_text()
    published.again("din", "2026-12-01")
    with running(program, config(published.where("din")), tmp_path) as server:
        assert server.health()["models"]["din"]["version"] == "2026-12-01"
        point(pointer, old)
        threading.Event().wait(0.5)
        assert server.health()["models"]["din"]["version"] == "2026-12-01"
        publish.publish(published.folder / "runs/din/export", published.where("din"), "2026-12-03", 5)


def test_a_delta_that_scores_otherwise_is_taken_back(program, tmp_path):
    where, data = str(tmp_path / "models"), samples.write(tmp_path / "data", 400)
    with line(tmp_path / "run", samples.recipe(data)) as training:
        training.go(1).save()
        publish_next(training.run, where, "a", 3)
        inputs = golden_inputs(Served(where).golden)
        scores = Served(where).score(*inputs)["click"].detach().numpy().tobytes()
        held = Path(where, "current.json").read_text()
        training.go(1).save()
        pointer = publish_delta(training.run, where, share=1e9)
        folder = Path(where, pointer["deltas"][0]["folder"])
        Path(where, "current.json").write_text(held)
        other_score(folder)
        seal = manifest.read(folder)
        seal["files"]["golden.json"] = manifest.digest(folder / "golden.json")
        (folder / "manifest.json").unlink()
        manifest.commit(folder, seal.pop("files"), **seal)
        pointer["deltas"][0]["xxh64"] = manifest.digest(folder / "manifest.json")["xxh64"]
        with running(program, config(where), tmp_path) as server:
            point(Path(where, "current.json"), json.dumps(pointer))
            assert "golden rows: click" in server.wait("din", failed=True)["failed"]
            found = client.Client(server.url, 30.0).infer("din", tensors(inputs), rows=True)
            assert (found.delta, found.scores["click"].tobytes()) == (0, scores)
            assert list(Path(where).rglob("wanted.txt"))


def test_towers_wait_for_their_index(program, published, tmp_path):
    person = {"user": 7, "history": [3, 4], "rating": [5, 1], "rate": 2.0}
    about = {
        "published": published.where("towers"),
        "kind": "retrieve",
        "index": str(published.folder / "indexes/towers"),
    }
    with running(program, {"models": {"towers": about}}, tmp_path) as server:
        ask = client.Client(server.url, 30.0)
        before = ask.retrieve(person, 5)
        # Another model of the same towers: retrained, so the old vectors are not its own.
        run = published.folder / "runs/towers"
        signature = json.loads((run / "export/signature.json").read_text())
        (run / "export/signature.json").write_text(json.dumps(signature | {"created": "later"}))
        files = manifest.read(run / "export")
        files["files"]["signature.json"] = manifest.digest(run / "export/signature.json")
        (run / "export/manifest.json").unlink()
        manifest.commit(run / "export", files.pop("files"), **files)
        published.again("towers", "2026-12-01")
        assert "is no index of 2026-12-01" in server.wait("towers", waits=True)["waits"]
        assert server.health()["status"] == "ok"
        assert ask.retrieve(person, 5).version == "2026-11-30"
        build(
            origin(published.where("towers"), published.folder / "runs"),
            about["index"],
            Asked("exact", least=0.1),
            print,
        )
        server.wait("towers", version="2026-12-01")
        after = ask.retrieve(person, 5)
        assert after.version == "2026-12-01"
        assert after.other["items"].tolist() == before.other["items"].tolist()
        # The same towers with fewer items.
        server.get("/v2/models/towers/air", {"off": after.other["items"][:1].tolist()})
        build(
            origin(published.where("towers"), published.folder / "runs"),
            about["index"],
            Asked("exact", least=0.1),
            print,
        )
        threading.Event().wait(1)
        assert ask.retrieve(person, 4).other["items"].tolist() == after.other["items"][1:].tolist()


def test_a_killed_server_starts_again_and_scores_the_same(program, published, tmp_path):
    inputs, asked = golden(published, "din"), config(published.where("din"))
    with running(program, asked, tmp_path) as server:
        with Load(server.url, "din", tensors(inputs)) as load:
            while len(load.answers) < 20:
                threading.Event().wait(0.05)
            assert server.end(signal.SIGKILL) == -signal.SIGKILL
        assert all(isinstance(error, client.Unreachable) for error in load.errors)
    with running(program, asked | {"port": server.port}, tmp_path) as server:
        found = client.Client(server.url, 30.0).infer("din", tensors(inputs), rows=True)
        assert {scores for _, scores in load.answers} == {found.scores["click"].tobytes()}


def many(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    lists = {name: rng.integers(1, 6, 6) for name in ("history", "rating")}
    given = {"ids.user": np.array([3]), "ids.movie": rng.integers(0, 99, count)}
    given |= {f"ids.{name}": value for name, value in lists.items()}
    given |= {f"lengths.{name}": np.array([6]) for name in lists}
    return given | {"dense.rate": rng.normal(3, 1, count).astype(np.float32)}


def asked_at_once(url: str, given: dict, count: int) -> list[bytes | Exception]:
    found: list[bytes | Exception] = []

    def ask() -> None:
        try:
            found.append(client.Client(url, 60.0).infer("din", given).scores["click"].tobytes())
        except client.ServerError as error:
            found.append(error)

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return found


def test_beyond_the_queue_and_the_deadline_there_is_no_answer_and_no_wrong_one(program, published, tmp_path):
    given, where = many(10_000), published.where("din")
    with running(program, config(where, threads=1, queue=2), tmp_path) as server:
        whole = asked_at_once(server.url, given, 1)
        found = asked_at_once(server.url, given, 20)
        refused = [str(each) for each in found if isinstance(each, client.Busy)]
        assert {each for each in found if isinstance(each, bytes)} == {*whole}
        assert len(refused) == 20 - sum(isinstance(each, bytes) for each in found) > 0
        assert all("queue is full" in each for each in refused)
        assert server.metric('livetrain_requests_total{model="din",code="429"}') == len(refused)
        assert server.metric("livetrain_queue_length") == 0
    with running(program, config(where, threads=1, deadline_ms=1), tmp_path) as server:
        found = asked_at_once(server.url, given, 20)
        late = [str(each) for each in found if isinstance(each, client.Busy)]
        assert {each for each in found if isinstance(each, bytes)} <= {*whole}
        assert all("before the deadline" in each for each in late)
        assert late
        assert server.metric('livetrain_requests_total{model="din",code="503"}') == len(late)


def test_a_server_that_is_stopped_answers_what_it_has(program, published, tmp_path):
    given = many(10_000)
    with running(program, config(published.where("din"), threads=1), tmp_path) as server:
        whole = asked_at_once(server.url, given, 1)
        found: list[bytes | Exception] = []
        asking = threading.Thread(target=lambda: found.extend(asked_at_once(server.url, given, 8)))
        asking.start()
        while server.metric("livetrain_queue_length") == 0 and asking.is_alive():
            pass
        assert server.end() == 0
        asking.join()
        assert len(found) == 8
        # Who had no connection yet when it stopped has none; who had one has the answer.
        assert {each for each in found if isinstance(each, bytes)} == {*whole}
        assert all("refused" in str(each) for each in found if not isinstance(each, bytes))
        with pytest.raises(client.Unreachable):
            client.Client(server.url, 5.0).infer("din", given)
