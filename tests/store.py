"""An object store like S3, on a port of this machine, that can be as slow and as faulty as one behind a network.

python -m tests.store [--latency SECONDS] [--rate SHARE] [--seed N]    serves until it is ended
"""

import argparse
import json
import random
import socket
import threading
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

COUNTED = "/-counted"  # answers with what was counted since it was asked before
_ERRORS = {"slow": ("503 Slow Down", "SlowDown"), "error": ("500 Internal Server Error", "InternalError")}
_REFUSAL = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{}</Code><Message>try again</Message></Error>"


@dataclass
class Network:
    """What lies between the store and its clients. Whether the n-th request fails is a function of `seed` and n.

    How it fails goes by turns, and a kind that a request cannot have waits for the next one that can: `slow` (503,
    SlowDown), `error` (500), `reset` (the connection ends before the request is looked at), `lost` (after it was done,
    without its answer), `cut` (in the middle of a body), `short` (the body is shorter than what was asked for, and its
    header says so).
    """

    latency: float = 0.0  # s, of each request
    rate: float = 0.0  # share of requests with a fault
    seed: int = 1
    faults: tuple[str, ...] = ("slow", "error", "reset", "lost", "cut", "short")
    counted: Counter = field(default_factory=Counter)
    _number: int = 0
    _turns: deque[str] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fate(self, sent: dict[str, Any]) -> str:
        """Return the next request's fault, or nothing."""
        method = sent["REQUEST_METHOD"]
        with self._lock:
            draw = random.Random(f"{self.seed} {self._number}")
            self._number += 1
            fault = ""
            if draw.random() < self.rate:
                self._turns = self._turns or deque(self.faults)
                fault = next((kind for kind in self._turns if self._possible(kind, sent)), "")
            if fault:
                self._turns.remove(fault)
                self._turns.append(fault)
            self.counted[method] += 1
            if fault:
                self.counted[fault] += 1
        return fault

    def _possible(self, kind: str, sent: dict[str, Any]) -> bool:
        """Return whether a request can fail so: of what is no range a client cannot know how long it is."""
        reads = sent["REQUEST_METHOD"] == "GET"
        return (reads and "HTTP_RANGE" in sent) if kind == "short" else (reads or kind != "cut")

    def told(self) -> bytes:
        """Return what was counted, and begin anew."""
        with self._lock:
            found, self.counted = self.counted, Counter()
        return json.dumps(found).encode()


class _Quiet(WSGIRequestHandler):
    def log(self, *arguments) -> None:
        """Say nothing of each request."""


def _server(conditions: bool, network: Network) -> BaseWSGIServer:
    """Return a server that does one request after the other: what moto looks up first and writes then is one step."""
    from moto.server import DomainDispatcherApplication, create_backend_app

    moto, one = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def answered(environ: dict) -> tuple[str, list, bytes]:
        said: list = []
        with one:
            body = b"".join(moto(environ, lambda status, headers, info=None: said.append((status, headers))))
        return *said[-1], body

    def application(environ: dict, start) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].count("/") == 1:  # a new bucket
            status, headers, body = answered(environ)
            start(status, headers)
            return [body]
        if environ["PATH_INFO"] == COUNTED:
            start("200 OK", [])
            return [network.told()]
        if not conditions:
            environ = {key: value for key, value in environ.items() if not key.startswith("HTTP_IF_")}
        fault = network.fate(environ)
        time.sleep(network.latency)
        if fault in _ERRORS:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status, code = _ERRORS[fault]
            start(status, [("Content-Type", "application/xml")])
            return [_REFUSAL.format(code).encode()]
        if fault == "reset":
            return _ended(environ)
        status, headers, body = answered(environ)
        if fault == "lost":
            return _ended(environ)
        if fault == "short":
            body = body[: len(body) // 2]
            headers = [*((key, value) for key, value in headers if key.lower() != "content-length")]
            headers.append(("Content-Length", str(len(body))))
        start(status, headers)
        return _cut(environ, body) if fault == "cut" else [body]

    return make_server("127.0.0.1", 0, application, threaded=True, request_handler=_Quiet)


def _ended(environ: dict) -> list[bytes]:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError


def _cut(environ: dict, body: bytes) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError


def _made(server: BaseWSGIServer, bucket: str) -> str:
    """Return the URI of a new bucket."""
    address = f"127.0.0.1:{server.server_port}"
    urllib.request.urlopen(urllib.request.Request(f"http://{address}/{bucket}", method="PUT")).close()
    return f"s3://any:key@{bucket}/in/it?scheme=http&endpoint_override={address}&region=us-east-1"


def counted(uri: str) -> Counter:
    """Return the requests and faults of a store since this was called before."""
    address = dict(parse_qsl(urlsplit(uri).query))["endpoint_override"]
    with urllib.request.urlopen(f"http://{address}{COUNTED}") as answer:
        return Counter(json.loads(answer.read()))


@contextmanager
def served(conditions: bool = True, network: Network | None = None) -> Iterator[str]:
    """Serve from a thread of this process, and yield the URI of a folder in a bucket.

    Args:
        conditions: whether If-Match and If-None-Match are heeded, as not every store does.
        network: between this store and its clients, by default a good one.
    """
    server = _server(conditions, network or Network())
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield _made(server, "models")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with served(network=Network(given.latency, given.rate, given.seed)) as uri:
        print(uri, flush=True)
        threading.Event().wait()
