"""The wire at the server itself: what it refuses over HTTP, what clients get of it, and what it logs."""

import contextlib
import json
import shutil
import socket

import numpy as np
import pyarrow.parquet as pq
import pytest

from livetrain.cluster import launch
from livetrain.trainers.export import publish
from livetrain.trainers.export.export import export
from tests.serve import malformed, vectors
from tests.serve.client import asked_in_go, client
from tests.serve.live import running

pytestmark = pytest.mark.slow
HEADER = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A published model with a feature of every kind, and vectors of its own."""
    folder = tmp_path_factory.mktemp("wire")
    launch.train(vectors.recipe(vectors.data(folder / "data")), folder / "runs")
    export(folder / "runs/small")
    publish.publish(folder / "runs/small/export", str(folder / "models"), "2026-11-30", 5)
    vectors.write(folder / "vectors", folder / "runs/small/export")
    return folder


def config(made, **more):
    return {"models": {"din": {"published": str(made / "models")}}, "deadline_ms": 60_000, **more}


def post(server, path, body, header=None, length=None):
    """Send bytes as they are; return the status and the body, or None where the server only hangs up."""
    fields = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body) if length is None else length}"]
    fields += ["Connection: close"] + ([] if header is None else [f"{HEADER}: {header}"])
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        found, broken = b"", (BrokenPipeError, ConnectionResetError)  # where it has read enough to refuse
        with contextlib.suppress(*broken):
            connection.sendall("\r\n".join(fields).encode() + b"\r\n\r\n" + body)
        with contextlib.suppress(*broken):
            while part := connection.recv(1 << 16):
                found += part
    if not found:
        return None
    head, _, rest = found.partition(b"\r\n\r\n")
    return int(head.split()[1]), rest


def test_200_malformed_requests_get_200_clear_answers_and_the_next_one_its_scores(program, made, tmp_path):
    place = made / "vectors"
    cases = json.loads((place / "cases.json").read_text())
    with running(program, config(made), tmp_path) as server:
        refused = 0
        for case in malformed.corpus(place):
            path = "/rank" if case.header is None else "/v2/models/din/infer"
            answer = post(server, path, case.body, case.header)
            assert answer is not None, case.name
            status, body = answer
            assert status in (400, 413), case.name
            sentence = json.loads(body)["error"]
            assert 20 < len(sentence) < 300, case.name
            refused += 1
        assert refused == 200
        for name, case in cases.items():
            body = (place / f"{name}.request.bin").read_bytes()
            for length in (0, 10, len(body) - 1):  # what comes after is no request
                assert post(server, "/v2/models/din/infer", body, case["header"], length)[0] == 400
            answer = post(server, "/v2/models/din/infer", body, case["header"], len(body) + 100)
            assert answer is None or answer[0] == 400  # bytes that never come
        for path in ("/", "/rank/", "/v2/models/none/infer", "/v2/models/../infer"):
            assert post(server, path, b"{}")[0] == 404
        asked = client.Client(server.url, 60)
        wanted = np.array(cases["rank"]["scores"]["click"], np.float32)
        people = json.loads((place / "rank.people.json").read_text())
        answer = asked.rank("din", people["user"], people["candidates"])
        assert answer.scores["click"].tobytes() == wanted.tobytes()


def test_go_and_python_get_the_scores_that_the_file_has_bit_for_bit(program, made, tmp_path):
    go = shutil.which("go")
    if go is None:
        pytest.skip("needs Go 1.19 or newer")
    place = made / "vectors"
    with running(program, config(made), tmp_path) as server:
        asked_in_go(go, server.url, place)
        rows = json.loads((place / "rows.people.json").read_text())["rows"]
        found = client.Client(server.url, 60).rows("din", rows).scores["click"]
    cases = json.loads((place / "cases.json").read_text())
    assert found.tobytes() == np.array(cases["rows"]["scores"]["click"], np.float32).tobytes()


def test_what_is_ranked_is_logged_with_its_scores_when_the_server_stops(program, made, tmp_path):
    people = json.loads((made / "vectors/rank.people.json").read_text())
    with running(program, config(made, log={"path": str(tmp_path / "log"), "share": 1}), tmp_path) as server:
        asked = client.Client(server.url, 60)
        first = asked.rank(None, people["user"], people["candidates"], channel=["hot"] * 6, request_id="one")
        asked.rank("din", people["user"], people["candidates"], request_id="two")
        asked.rows("din", json.loads((made / "vectors/rows.people.json").read_text())["rows"])
        assert server.end() == 0
    (row,) = pq.read_table(next((tmp_path / "log/rank").glob("date=*/*.parquet"))).to_pylist()
    assert (row["request_id"], row["version"], row["fence"], row["channel"]) == ("one", "2026-11-30", 1, ["hot"] * 6)
    assert np.array(row["scores.click"], np.float32).tobytes() == first.scores["click"].tobytes()
    assert row["order"] == first.other["order"].tolist()
    assert (row["user"], row["movie"]) == (people["user"]["user"], people["candidates"]["movie"])
    (other,) = pq.read_table(next((tmp_path / "log/din").glob("date=*/*.parquet"))).to_pylist()
    assert other["request_id"] == "two"
