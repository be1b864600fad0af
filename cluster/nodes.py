"""What every node of a cluster says of itself."""

import hashlib
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from livetrain.cluster.parcel import SUFFIXES, sources
from livetrain.trainers.train.memory import free_memory

ANSWER_S = 120  # longest wait for a node


def look() -> dict[str, Any]:
    """Return what this machine is: versions, free host memory (bytes) and GPUs (name, bytes)."""
    number = platform.python_version()
    fbgemm = next((f"{_version(name)} ({name})" for name in ("fbgemm-gpu", "fbgemm-gpu-cpu") if _version(name)), "")
    digest = hashlib.sha256()
    for name, content in sources().items():
        if name.endswith(SUFFIXES):
            digest.update(name.encode() + content)
    return {
        "versions": {
            "python": number,
            **{name: _version(name) or "missing" for name in ("torch", "torchrec", "ray")},
            "fbgemm": fbgemm or "missing",
            "livetrain": f"{_version('livetrain')}, sources {digest.hexdigest()[:8]}",
        },
        "host": platform.node(),
        "free": free_memory(),
        "gpus": _gpus(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cores(root: Path = Path("/")) -> int:
    """Return the cores that this process may use, as the machine, its affinity and its container say."""
    found = len(os.sched_getaffinity(0))
    limit = root / "sys/fs/cgroup/cpu.max"
    if limit.is_file():
        most, period = limit.read_text(encoding="utf-8").split()
        if most != "max":
            found = min(found, max(1, int(most) // int(period)))
    return found


def _gpus() -> list[tuple[str, int]]:
    """Ask the driver, not torch: Ray hides the GPUs from a task that does not ask for one."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    parts = (line.rpartition(",") for line in said.splitlines() if "," in line)
    return [(name.strip(), int(mib) * 2**20) for name, _, mib in parts]


def ask(nodes: dict[str, dict], question: Callable[..., Any], *arguments: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Call a function on every node; return the answers, and why the others gave none, by node."""
    asked = ray.remote(question)
    pending = {
        node: asked.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(*arguments)
        for node in nodes
    }
    answers, silent = {}, {}
    end = time.monotonic() + ANSWER_S
    for node, answer in pending.items():
        try:
            answers[node] = ray.get(answer, timeout=max(end - time.monotonic(), 1))
        except Exception as error:
            cause = getattr(error, "cause", None) or error
            first = next(iter(str(cause).strip().splitlines()), "")
            silent[node] = f"{type(cause).__name__}: {first}"
    return answers, silent
