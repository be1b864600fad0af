"""The clients, against a server that gives the vectors' answers or one failure."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from tests.serve.client import SOURCE, client

VECTORS = Path(__file__).parent / "vectors"
CASES = json.loads((VECTORS / "cases.json").read_text(encoding="utf-8"))
HEADER = "Inference-Header-Content-Length"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._answer(200, json.dumps({"inputs": self.server.inputs}).encode())

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, body, self.client_address))
        kind = self.path.split("/")[3] if self.path.startswith("/v2") else "din"
        if kind == "slow":
            time.sleep(1)
        if kind.isdigit():
            self._answer(int(kind), b'{"error": "said why"}')
        elif kind == "nonsense":
            self._answer(200, b"scores")
        elif kind == "gone":
            self.connection.close()
            self.close_connection = True
        else:
            name = next((n for n in CASES if (VECTORS / f"{n}.request.bin").read_bytes() == body), "rank")
            self._answer(200, (VECTORS / f"{name}.answer.bin").read_bytes(), CASES[name]["answer_header"])
        if self.server.closes:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def _answer(self, status, body, header=None):
        self.send_response(status)
        if header is not None:
            self.send_header(HEADER, str(header))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    made.seen, made.closes = [], False
    made.inputs = [{"name": n, "shape": [-1, *about["shape"][1:]]} for n, about in CASES["rank"]["tensors"].items()]
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def _url(server):
    return f"http://127.0.0.1:{server.server_port}"


def _people(name):
    return json.loads((VECTORS / f"{name}.people.json").read_text(encoding="utf-8"))


def test_python_asks_as_the_vectors_do_and_reads_the_scores(server):
    asked = client.Client(_url(server), timeout=30)
    ranked = asked.rank("din", _people("rank")["user"], _people("rank")["candidates"], request_id="vector-rank")
    rows = asked.rows("din", _people("rows")["rows"], request_id="vector-rows")
    for name, answer in (("rank", ranked), ("rows", rows)):
        assert answer.id == f"vector-{name}"  # that is, its bytes were the vector's
        wanted = np.array(CASES[name]["scores"]["click"], np.float32)
        assert answer.scores["click"].tobytes() == wanted.tobytes()
    assert len({address for _, _, address in server.seen}) == 1  # one connection


@pytest.mark.parametrize(
    ("model", "kind", "says"),
    [
        ("400", client.Refused, "said why"),
        ("404", client.Refused, "said why"),
        ("429", client.Busy, "said why"),
        ("503", client.Busy, "said why"),
        ("500", client.Unreachable, "said why"),
        ("nonsense", client.Unreachable, "cannot be read"),
        ("gone", client.Unreachable, "connection"),
        ("slow", client.TimedOut, "0.2 s"),
    ],
)
def test_python_raises_one_clear_exception_and_sends_nothing_twice(server, model, kind, says):
    asked = client.Client(_url(server), timeout=0.2 if model == "slow" else 30)
    with pytest.raises(client.ServerError, match=says) as raised:
        asked.infer(model, {"ids.user": np.array([1])})
    assert type(raised.value) is kind
    assert len(server.seen) == 1
    asked = asked if model != "slow" else client.Client(_url(server), timeout=30)
    assert asked.infer("din", {"ids.user": np.array([1])}).model == "din"  # and goes on


def test_python_connects_anew_where_the_kept_connection_was_closed(server):
    asked = client.Client(_url(server), timeout=30)
    server.closes = True
    for _ in range(3):
        time.sleep(0.05)
        assert asked.infer("din", {"ids.user": np.array([1])}).model == "din"
    assert len(server.seen) == 3


def test_python_says_that_nobody_is_there():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    asked = client.Client(f"http://127.0.0.1:{port}")
    with pytest.raises(client.Unreachable):
        asked.infer("din", {"ids.user": np.array([1])})
    assert not asked.ready()
    with pytest.raises(ValueError, match="http://host:8080"):
        client.Client("localhost:8080")


@pytest.mark.parametrize(
    ("user", "says"),
    [
        ({"user": 1.5}, "user: an id is an integer"),
        ({"user": True}, "user: an id is"),
        ({"history": [2**63]}, "history"),
        ({"rate": "a"}, "rate"),
        ({"usr": 1}, "usr: is no feature"),
    ],
)
def test_python_refuses_before_it_sends(server, user, says):
    with pytest.raises(ValueError, match=says):
        client.Client(_url(server), timeout=30).rank("din", user, {})
    assert not server.seen


def test_python_without_a_models_name_goes_by_the_values(server):
    asked = client.Client(_url(server), timeout=30)
    asked.rank(None, {"user": 17, "city": "Oslo"}, {"video": [3, 4], "rate": [1.5, None]}, channel=["hot", "new"])
    asked.retrieve({"user": 17}, top=5, exclude=[3])
    (path, body, _), (second, found, _) = server.seen
    assert (path, second) == ("/rank", "/retrieve")
    names = [b"ids.user", b"ids.city", b"ids.video", b"dense.rate", b"channel"]
    assert all(b'"name":"' + name + b'"' in body for name in names)
    assert b'"top":5' in found
    assert b'"name":"exclude"' in found


def test_strings_are_hashed_as_everywhere():
    hashes = json.loads((VECTORS / "hashes.json").read_text(encoding="utf-8"))
    assert {text: client.hashed(text) for text in hashes} == hashes


def test_go_passes_its_own_tests_on_the_same_vectors():
    go = shutil.which("go")
    if go is None:
        pytest.skip("needs Go 1.19 or newer")
    environment = os.environ | {"GOFLAGS": "-mod=mod", "GOPROXY": "off"}
    done = subprocess.run(
        [go, "test", "./..."], cwd=SOURCE.parent / "go", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
