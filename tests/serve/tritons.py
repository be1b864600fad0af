"""A real Triton Inference Server, for tests: LIVETRAIN_TRITON names the program, or it lies on the PATH.

The wheel nvidia-pytriton has one, at pytriton/tritonserver/bin/tritonserver, with its Python backend; install it into
an environment of its own (python -m venv triton; triton/bin/pip install nvidia-pytriton).
"""

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.client import client
from tests.serve.live import free_port


class Triton:
    """A Triton that runs.

    Attributes:
        url: of it.
    """

    def __init__(self, url: str, log: Path, process: subprocess.Popen) -> None:
        self.url, self._log, self._process = url, log, process

    def said(self) -> str:
        """Return what it has written."""
        return self._log.read_text()

    def wait(self, text: str) -> None:
        """Wait until it has written something."""
        for _ in range(600):
            if text in self.said():
                return
            assert self._process.poll() is None, self.said()
            time.sleep(0.1)
        raise AssertionError(self.said())


@contextlib.contextmanager
def running(repository: Path, folder: Path) -> Iterator[Triton]:
    """Serve a model repository, which it looks at each second."""
    named = os.environ.get("LIVETRAIN_TRITON") or shutil.which("tritonserver")
    if named is None:
        pytest.skip("needs tritonserver on the PATH, or LIVETRAIN_TRITON=/its/path (pip install nvidia-pytriton)")
    program, port, log = Path(named).resolve(), free_port(), folder / "triton.log"
    command = [str(program), "--model-repository", str(repository), "--http-port", str(port)]
    command += ["--http-address", "127.0.0.1", "--allow-grpc", "0", "--allow-metrics", "0"]
    command += ["--disable-auto-complete-config", "--model-control-mode", "poll", "--repository-poll-secs", "1"]
    command += ["--exit-timeout-secs", "1"]  # else it waits for connections that clients keep
    environment = dict(os.environ)
    if (stubs := program.parents[1] / "python_backend_stubs").is_dir():  # nvidia-pytriton: a stub for each Python
        shutil.copytree(program.parents[1] / "backends", folder / "backends")
        stub = stubs / f"{sys.version_info[0]}.{sys.version_info[1]}" / "triton_python_backend_stub"
        if not stub.exists():
            pytest.skip(f"this Triton has no stub for Python {sys.version_info[0]}.{sys.version_info[1]}")
        shutil.copy(stub, folder / "backends/python")
        command += ["--backend-directory", str(folder / "backends")]
        libraries = [str(program.parents[3] / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR")]
        paths = [str(Path(sys.executable).parent), environment["PATH"]]  # where the stub finds this Python's packages
        environment |= {"LD_LIBRARY_PATH": ":".join(libraries), "PATH": ":".join(paths)}
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    made = Triton(f"http://127.0.0.1:{port}", log, process)
    try:
        made.wait("Started HTTPService")
        asked = client.Client(made.url, 5)
        for _ in range(100):
            if asked.ready():
                break
            time.sleep(0.1)
        yield made
        assert process.poll() is None, made.said()
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
