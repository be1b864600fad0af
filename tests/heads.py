"""A head node of this machine, with token authentication, and the command line against it."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

TOKEN = "0123456789abcdef" * 4


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return variables under which a command finds this environment's livetrain, and no Ray by itself."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "HOME": str(home), "PATH": path, "PYTHONPATH": "", **more}


@dataclass(frozen=True)
class Head:
    """A head node that wants a token, and where its commands are started."""

    address: str
    home: Path

    def start(self, *words: str, token: str | None = TOKEN, **more: str) -> subprocess.Popen:
        """Start a livetrain command against the node, with further variables."""
        given = more | ({"RAY_AUTH_TOKEN": token} if token else {})
        return subprocess.Popen(
            [sys.executable, "-m", "livetrain", *words, "--address", self.address],
            env=environment(self.home, COLUMNS="200", **given),
            cwd=self.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def livetrain(self, *words: str, token: str | None = TOKEN, **more: str) -> SimpleNamespace:
        """Run a livetrain command to its end."""
        command = self.start(*words, token=token, **more)
        out, err = command.communicate(timeout=240)
        return SimpleNamespace(code=command.returncode, out=out, err=err)


@contextlib.contextmanager
def started(home: Path) -> Iterator[Head]:
    """Start a head node of two CPUs, whose log and whose commands' folder is `home`."""
    temporary = tempfile.mkdtemp(prefix="ray-")  # short: Ray's sockets lie in it
    dashboard, agent, client = free_ports(3)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0", "--num-cpus=2"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
        *(f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0"),
        *("--object-store-memory=100000000", "--disable-usage-stats", f"--temp-dir={temporary}"),
    ]
    node = environment(home, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    log = (home / "head.log").open("w")
    ray = subprocess.Popen(command, env=node, stdout=log, stderr=log, start_new_session=True, cwd=home)
    try:
        _wait_for(dashboard, ray)
        yield Head(f"http://127.0.0.1:{dashboard}", home)
    finally:
        os.killpg(ray.pid, signal.SIGKILL)  # a graceful end takes half a minute
        ray.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait_for(port: int, ray: subprocess.Popen) -> None:
    for _ in range(600):
        assert ray.poll() is None, "the head node ended"
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("the head node did not start")
