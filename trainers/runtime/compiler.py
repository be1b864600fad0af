"""Compiles C++ sources where a C++ compiler is found, once a machine."""

import fcntl
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import xxhash

FAILURES = (OSError, RuntimeError, subprocess.SubprocessError)
"""What `shared_object` may raise; RuntimeError: there is no home."""

# No -ffast-math: what is not a number must stay so.
_FLAGS = ["-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread"]
_WIDE = ["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []


def shared_object(source: Path, *options: str, others: Sequence[Path] = ()) -> Path:
    """Return a source, and others that it needs, compiled for this machine.

    From the cache, XDG_CACHE_HOME or ~/.cache, if it lies there.

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
    command = [*compiler, *options, *_FLAGS, *_WIDE]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "livetrain"
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"{source.stem}-{_fingerprint([source, *others], command)}.so"
    with open(folder / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            with tempfile.TemporaryDirectory(dir=folder) as draft:
                command += [str(source), *map(str, others), "-o", f"{draft}/made.so"]
                subprocess.run(command, check=True, capture_output=True, text=True)
                os.replace(f"{draft}/made.so", made)
    return made


def reason(error: BaseException) -> str:
    """Return why there is no compilation, as one line."""
    return (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]


def _fingerprint(sources: Sequence[Path], command: list[str]) -> str:
    """Return what names a compilation: the sources and what they include from beside them, the command, the compiler's
    version and the processor's features."""
    version = subprocess.run([command[0], "--version"], check=True, capture_output=True, text=True).stdout
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.exists() else []
    features = [line for line in lines if line.startswith(("flags", "Features", "model name"))][:2]
    read = [source.read_text(encoding="utf-8") for source in sources]
    beside = {sources[0].parent / name for text in read for name in re.findall(r'^#include "(.+)"', text, re.MULTILINE)}
    read += [path.read_text(encoding="utf-8") for path in sorted(beside)]
    text = "\n".join([*read, *command, version, platform.machine(), *features])
    return xxhash.xxh64_hexdigest(text.encode())
