"""Compiles the layers' C++ where a C++ compiler is found, once a machine; elsewhere PyTorch computes the same."""

import fcntl
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
import xxhash

from modules.layers import compiled, fused
from modules.layers.dice import Dice

log = logging.getLogger("livetrain")

SOURCE = Path(fused.__file__).with_name("fused.cpp")
_REAL = {torch.float32: "float", torch.float64: "double"}
# No -ffast-math: what is not a number must stay so.
_FLAGS = ["-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread"]
_WIDE = ["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []


def enable(model: torch.nn.Module, device: torch.device) -> None:
    """Let a model that has something to gain train by compiled passes on this process's CPU; say where it cannot."""
    if device.type != "cpu" or not any(isinstance(part, Dice) for part in model.modules()):
        return
    try:
        compiled.use(library())
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: there is no home
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        log.warning("training DIN without compiled layers, which takes about twice as long: %s", reason)


@cache
def library(dtype: torch.dtype = torch.float32) -> compiled.Library:
    """Return the layers compiled for this machine, from the cache (XDG_CACHE_HOME or ~/.cache) if they lie there.

    The compiler is CXX, or the c++, g++ or clang++ of the PATH. A compilation is never seen half done, and ranks that
    start together wait for one of them.

    Raises:
        OSError: there is no compiler, or the cache cannot be written.
        CalledProcessError: the compiler failed.
    """
    compiler = shlex.split(os.environ.get("CXX", ""))
    compiler = compiler or [found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))][:1]
    if not compiler:
        raise FileNotFoundError("no C++ compiler on the PATH; install g++, or name one by CXX")
    command = [*compiler, f"-DREAL={_REAL[dtype]}", *_FLAGS, *_WIDE, str(SOURCE)]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "livetrain"
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"fused-{_fingerprint(command)}.so"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            with tempfile.TemporaryDirectory(dir=folder) as draft:
                subprocess.run([*command, "-o", f"{draft}/fused.so"], check=True, capture_output=True, text=True)
                os.replace(f"{draft}/fused.so", made)
    return compiled.Library(str(made), dtype)


def _fingerprint(command: list[str]) -> str:
    """Return what names a compilation: the source, the command, the compiler's version and the processor's features."""
    version = subprocess.run([command[0], "--version"], check=True, capture_output=True, text=True).stdout
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    features = [line for line in lines if line.startswith(("flags", "Features", "model name"))][:2]
    text = "\n".join([SOURCE.read_text(), *command[:-1], version, platform.machine(), *features])
    return xxhash.xxh64_hexdigest(text.encode())
