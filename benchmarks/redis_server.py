"""A Redis that keeps nothing on disk, for benchmarks and tests."""

import socket
import subprocess
import time
from pathlib import Path
from typing import Any

_TRIES, _EVERY_S = 200, 0.05


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(port: int, folder: Path, log: Any = subprocess.DEVNULL) -> subprocess.Popen:
    """Return a redis-server that takes connections at a port; its working folder is `folder`, its output goes to `log`.

    Raises:
        RuntimeError: it does not answer within 10 s.
    """
    command = ["redis-server", "--port", str(port), "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=log)
    for _ in range(_TRIES):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process
        except OSError:
            time.sleep(_EVERY_S)
    process.kill()
    raise RuntimeError(f"redis-server does not answer at port {port}")
