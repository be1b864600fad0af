"""What somebody who reaches the port may do: be refused in a sentence, and never end the server or fill its memory."""

import contextlib
import gzip
import json
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.serve.live import free_port, running
from tests.serve.test_swaps import config

pytestmark = pytest.mark.slow
RANK = {"user": {"user": 1, "history": [2], "rating": [3]}, "candidates": {"movie": [4, 5], "rate": [1.0, None]}}


def send(server, head: str, *parts: bytes) -> tuple[int, bytes]:
    """Send bytes as they are until nobody takes them; return the status and the body."""
    found = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n")
            for part in parts:
                connection.sendall(part)
        with contextlib.suppress(OSError):
            while part := connection.recv(1 << 16):
                found += part
    head, _, rest = found.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else 0), rest


def test_a_body_that_is_not_bounded_is_not_read(program, published, tmp_path):
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    packed = gzip.compress(b" " * (200 << 20), 1)
    with running(program, config(published.where("din")), tmp_path) as server:
        before = server.metric("process_resident_memory_bytes")
        for status, word, head, *parts in (
            (411, "Content-Length", "POST /rank HTTP/1.1\nHost: x\nTransfer-Encoding: chunked", *[chunk] * 200),
            (405, "GET and POST", "PUT /rank HTTP/1.1\nHost: x\nTransfer-Encoding: chunked", *[chunk] * 200),
            (411, "Content-Length", "POST /rank HTTP/1.1\nHost: x", *[b" " * (1 << 20)] * 200),
            (
                415,
                "compressed",
                f"POST /rank HTTP/1.1\nHost: x\nContent-Encoding: gzip\nContent-Length: {len(packed)}",
                packed,
            ),
        ):
            found, _ = send(server, head, *parts)
            assert found in (status, 0), head  # 0: it had hung up before all was sent
            found, body = send(server, head, b"{}")
            assert (found, word in json.loads(body)["error"]) == (status, True), head
        assert server.metric("process_resident_memory_bytes") - before < 50 << 20
        # What follows on a connection whose body was not read is no request.
        follows = b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        found, body = send(server, "POST /rank HTTP/1.1\nHost: x\nTransfer-Encoding: chunked", follows)
        assert (found, b"HTTP/1.1" in body) == (411, False)


def test_a_form_is_read_as_what_it_is_and_a_range_is_no_part_of_an_answer(program, published, tmp_path):
    text = (json.dumps(RANK) + " " * 20_000).encode()  # curl -d says of any text that it is a form
    head = f"POST /rank HTTP/1.1\nHost: x\nConnection: close\nContent-Length: {len(text)}"
    with running(program, config(published.where("din")), tmp_path) as server:
        for more in (
            "\nContent-Type: application/x-www-form-urlencoded",
            "\nContent-Type: multipart/form-data; boundary=x",
        ):
            status, body = send(server, head + more, text)
            assert (status, len(json.loads(body)["scores"]["click"])) == (200, 2)
        status, body = send(server, head + "\nRange: bytes=" + ",".join(["0-"] * 500), text)
        assert (status, len(json.loads(body)["scores"]["click"])) == (200, 2)


def test_a_change_of_the_air_that_is_nested_or_long_ends_nothing(program, published, tmp_path):
    models = {
        "towers": {
            "published": published.where("towers"),
            "kind": "retrieve",
            "index": str(published.folder / "indexes/towers"),
        }
    }
    with running(program, {"models": models}, tmp_path) as server:
        for body in (
            b'{"on": ' + b"[" * 3_000_000 + b"]" * 3_000_000 + b"}",
            b'{"off": [[]]}',
            b'{"off": ["' + b"x" * 100_000 + b'"]}',
            b'{"' + b"x" * 100_000 + b'": []}',
        ):
            head = f"POST /v2/models/towers/air HTTP/1.1\nHost: x\nConnection: close\nContent-Length: {len(body)}"
            status, said = send(server, head, body)
            assert (status, 20 < len(json.loads(said)["error"]) < 300) == (400, True)
        assert server.get("/v2/models/towers/air", {"off": [1]}) == (200, "{}")


def test_a_disk_that_gives_errors_ends_nothing(program, published, tmp_path):
    pointer = Path(published.where("din"), "current.json")
    with running(program, config(published.where("din")), tmp_path) as server:
        held = pointer.read_text()
        pointer.unlink()
        pointer.mkdir()  # reading it is an error of the system
        server.wait("din", failed=True)
        pointer.rmdir()
        pointer.write_text(held)
        server.wait("din", failed=False)
        assert server.get("/rank", RANK)[0] == 200


@pytest.mark.parametrize("after", [0.0, 0.1, 0.3, 1.0])
def test_a_server_that_is_stopped_as_it_begins_ends(program, published, tmp_path, after):
    file = tmp_path / "serve.json"
    file.write_text(json.dumps({"port": free_port(), **config(published.where("din"))}))
    with subprocess.Popen([str(program), str(file)], stderr=subprocess.DEVNULL) as process:
        time.sleep(after)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)  # by the signal before it could be heeded
