"""C++ programs for tests, compiled once for a state of their sources."""

import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SERVE = ROOT / "serve"
TORCH = Path(torch.__path__[0])
CACHE = SERVE / "build-tests"
WIRE = sorted(SERVE.glob("wire*.cpp"))


def program(name: str, sources: Sequence[Path], flags: Sequence[str] = ()) -> Path:
    """Return a program with libtorch, without optimisation; skips the test where a compiler or header is missing."""
    compiler = shutil.which("g++")
    if compiler is None or not any(
        Path(place, "nlohmann/json.hpp").exists() for place in ("/usr/include", "/usr/local/include")
    ):
        pytest.skip("needs g++ and nlohmann/json.hpp (apt install g++ nlohmann-json3-dev)")
    include = [f"-isystem{TORCH / part}" for part in ("include", "include/torch/csrc/api/include")]
    base = [compiler, "-std=c++20", "-O0", "-Wall", "-Wextra", "-Werror", *flags, *include]
    headers = sorted(SERVE.glob("*.h"))
    objects = []
    for source in sources:
        made = CACHE / f"{source.stem}-{_key([source, *headers], base)}.o"
        if not made.exists():
            _run([*base, "-c", str(source), "-o"], made)
        objects.append(made)
    link = [f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{TORCH / 'lib'}", "-pthread"]
    late = [flag for flag in flags if flag.startswith(("-l", "-L", "-Wl"))]
    built = CACHE / f"{name}-{_key(objects, link + late)}"
    if not built.exists():
        _run([compiler, *flags, *map(str, objects), *late, *link, "-o"], built)
    return built


def _key(files: Sequence[Path], words: Sequence[str]) -> str:
    found = hashlib.sha256("\0".join([torch.__version__, *words]).encode())
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


def _run(command: list[str], made: Path) -> None:
    made.parent.mkdir(parents=True, exist_ok=True)
    draft = made.with_name(f".{made.name}")
    done = subprocess.run([*command, str(draft)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    draft.rename(made)
