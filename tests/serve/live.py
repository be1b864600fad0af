"""A real livetrain-serve over published models, for tests."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from tests.serve.built import CACHE, SERVE, TORCH


def binary() -> Path:
    """Return the server: LIVETRAIN_SERVE names one, else it is built here, without optimisation."""
    if named := os.environ.get("LIVETRAIN_SERVE"):
        return Path(named)
    if not shutil.which("cmake") or not Path("/usr/include/httplib.h").exists():
        pytest.skip("needs cmake and httplib.h (apt install cmake libcpp-httplib-dev nlohmann-json3-dev)")
    folder = CACHE / "server"
    asked = [
        "cmake",
        "-S",
        str(SERVE),
        "-B",
        str(folder),
        f"-DTORCH={TORCH}",
        f"-DARROW={pyarrow.__path__[0]}",
        "-DCMAKE_BUILD_TYPE=Debug",
    ]
    for command in (asked, ["cmake", "--build", str(folder)]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return folder / "livetrain-serve"


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


class Running:
    """A server that runs.

    Attributes:
        url: of it.
        process: it.
    """

    def __init__(self, program: Path, config: dict[str, Any], folder: Path) -> None:
        self.port = config.get("port") or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        file = folder / f"serve-{self.port}.json"
        file.write_text(json.dumps({"port": self.port, **config}))
        self._said = (folder / f"serve-{self.port}.log").open("w+")
        self.process = subprocess.Popen([str(program), str(file)], stderr=self._said)
        for _ in range(600):
            if self.process.poll() is not None or self.up():
                break
            time.sleep(0.1)
        assert self.up(), self.said()

    def said(self) -> str:
        """Return what it has written to stderr."""
        return Path(self._said.name).read_text()

    def up(self) -> bool:
        try:
            return self.get("/health")[0] == 200
        except OSError:
            return False

    def get(self, path: str, body: Any = None) -> tuple[int, str]:
        """Ask as people do; return the status and the text."""
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data), timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def health(self) -> dict[str, Any]:
        return json.loads(self.get("/health")[1])

    def wait(self, model: str, **wanted: Any) -> dict[str, Any]:
        """Wait until /health says of a model what is wanted; a key that is None must be there."""
        for _ in range(300):
            about = self.health()["models"][model]
            if all(about.get(key) == value or (value is None and key in about) for key, value in wanted.items()):
                return about
            time.sleep(0.1)
        raise AssertionError(f"{model} is {about} and never {wanted}: {self.said()}")

    def metric(self, line: str) -> float:
        (found,) = (each for each in self.get("/metrics")[1].splitlines() if each.startswith(f"{line} "))
        return float(found.rpartition(" ")[2])

    def end(self, by: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(by)
        return self.process.wait(60)


@contextlib.contextmanager
def running(program: Path, config: dict[str, Any], folder: Path) -> Iterator[Running]:
    """Run a server; at the end it must stop by itself when it is asked to."""
    server = Running(program, {"refresh_ms": 50, **config}, folder)
    try:
        yield server
        ended = server.process.poll()
        assert ended in (None, -signal.SIGKILL, 0), server.said()
        assert ended is not None or server.end() == 0, server.said()
    finally:
        if server.process.poll() is None:
            server.end(signal.SIGKILL)
