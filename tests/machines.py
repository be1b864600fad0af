"""Several machines of a Ray cluster on this one, which join it, lose power, or are told to leave."""

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
from pathlib import Path

from ray._raylet import GcsClient

from tests.heads import environment, free_ports

# Python and its imports take a busy machine longer than the 60 s that Ray gives them.
_PATIENT = {"RAY_AUTH_MODE": "disabled", "RAY_worker_register_timeout_seconds": "300"}
_TRIES = 5  # of a machine that a busy one starts more slowly than the 30 s for which Ray waits


class Machines:
    """A cluster whose head has no CPU, and machines of one CPU each.

    Args:
        home: the folder of their logs and of commands.
        temporary: a short path, for Ray's sockets lie in it.
    """

    def __init__(self, home: Path, temporary: str) -> None:
        (self._port,) = free_ports(1)
        self._home, self._temporary = home, temporary
        self._running: dict[str, subprocess.Popen] = {}
        self.address = f"127.0.0.1:{self._port}"
        self.variables = environment(home, **_PATIENT, RAY_ADDRESS=self.address)
        head = ("--head", f"--port={self._port}", "--num-cpus=0", "--include-dashboard=false")
        self._start("head", *head, f"--temp-dir={temporary}")

    def _start(self, name: str, *words: str) -> None:
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-name={name}", *words),
            *("--node-ip-address=127.0.0.1", "--min-worker-port=0", "--max-worker-port=0"),
            *("--object-store-memory=80000000", "--disable-usage-stats"),
        ]
        variables = {key: value for key, value in self.variables.items() if key != "RAY_ADDRESS"}
        for _ in range(_TRIES):
            with (self._home / f"{name}.log").open("w") as log:
                self._running[name] = subprocess.Popen(
                    command, env=variables, stdout=log, stderr=log, start_new_session=True, cwd=self._home
                )
            while self._running[name].poll() is None:
                if listens(self._port) and name in self.nodes():
                    return
                time.sleep(0.5)
            self.kill(name)  # what it has left
        raise AssertionError((self._home / f"{name}.log").read_text())

    def nodes(self) -> dict[str, str]:
        """Return the ids of the machines that are there, by name."""
        found = GcsClient(address=self.address).get_all_node_info()
        return {node.node_name: key.hex() for key, node in found.items() if node.state == 0}

    def join(self, name: str) -> None:
        """Start a machine, and return once it belongs to the cluster."""
        self._start(name, f"--address={self.address}", "--num-cpus=1")

    def kill(self, name: str) -> None:
        """End a machine and all on it at once, as when its power fails."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._running.pop(name).pid, signal.SIGKILL)

    def notify(self, name: str) -> None:
        """Tell the cluster that a machine leaves, as the hook in cluster/kubernetes does."""
        words = ["drain-node", f"--address={self.address}", f"--node-id={self.nodes()[name]}"]
        why = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", "--deadline-remaining-seconds=100"]
        command = [sys.executable, "-m", "ray.scripts.scripts", *words, *why]
        subprocess.run(command, env=self.variables, check=True, capture_output=True, timeout=120)

    def livetrain(self, *words: str) -> subprocess.Popen:
        """Start a livetrain command on the head."""
        return subprocess.Popen(
            [sys.executable, "-m", "livetrain", *words],
            env=self.variables,
            cwd=self._home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def end(self) -> None:
        """End all machines."""
        for name in list(self._running):
            self.kill(name)
        shutil.rmtree(self._temporary, ignore_errors=True)


def listens(port: int) -> bool:
    """Return whether somebody listens at a port of this machine."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def started(home: Path) -> Iterator[Machines]:
    """Start a head; the machines are to join it."""
    machines = None
    try:
        machines = Machines(home, tempfile.mkdtemp(prefix="ray-"))
        yield machines
    finally:
        if machines is not None:
            machines.end()
