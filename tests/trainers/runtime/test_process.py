"""What a process takes from its surroundings: threads, folders for temporary files, the locale's encoding."""

import ast
import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from livetrain.configs.errors import BadInput
from livetrain.modules.gradients.pcgrad import orders
from livetrain.trainers.runtime import process, ranks
from tests import samples
from tests.corpus.recipes import RECIPE


@pytest.mark.parametrize(
    ("value", "threads"),
    [(None, 1), ("", 1), (" ", 1), ("1", 1), ("2", 2), ("2,1", 2), (" 3 , 1", 3), ("4096", 4096), ("007", 7)],
)
def test_threads_are_openmps(monkeypatch, value, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if value is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert process.threads() == threads
    assert process.threads(otherwise=5) == (threads if (value or "").strip() else 5)


@pytest.mark.parametrize(
    "value", ["0", "-1", "two", "1.5", "0,2", "1e6", "1000000", "9" * 5000, "²", "2;1", "\x1b[31m"]
)
def test_threads_that_are_none(monkeypatch, value):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with pytest.raises(BadInput) as caught:
        process.set_up()
    assert str(caught.value).startswith("OMP_NUM_THREADS: ")
    assert "set it from 1 to 4,096, or leave it out" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_ray_gets_a_folder_for_its_sockets(monkeypatch, tmp_path):
    long, gone = tmp_path / ("long" * 20), tmp_path / "none"
    long.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", "")
    for folder in (long, gone, Path("relative" * 9), Path("/dev/null")):
        monkeypatch.setenv("TMPDIR", str(folder))
        assert process.ray_folder() == "/tmp/ray"
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    assert process.ray_folder() == "/var/tmp/ray"
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert process.ray_folder() == "/tmp/ray"
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(BadInput, match="name one by RAY_TMPDIR"):
        process.ray_folder()


REPEATED = """
import resource
from livetrain.trainers.runtime import process
process.set_up()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
def use(pieces):  # of 16 MiB, written to and freed
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [b"x" * (16 << 20) for _ in range(pieces)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
start, first, again = resident(), use(4), [use(4) for _ in range(5)]
use(24)
print(first, sum(again), round(resident() - start))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no glibc")
@pytest.mark.parametrize(
    ("set_by_a_user", "kept"),
    [
        ({}, True),
        ({"MALLOC_ARENA_MAX": "2", "GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}, True),
        ({"MALLOC_TRIM_THRESHOLD_": "1000000"}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=2:glibc.malloc.trim_threshold=1000000"}, False),
    ],
)
def test_freed_memory_is_kept_unless_a_user_says_otherwise(set_by_a_user, kept):
    """Used again it costs no page faults, and no more than 256 MiB of it is kept."""
    clean = {key: value for key, value in os.environ.items() if "MALLOC" not in key and key != "GLIBC_TUNABLES"}
    done = subprocess.run([sys.executable, "-c", REPEATED], env=clean | set_by_a_user, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, again, resident = map(int, done.stdout.split())
    assert (again < first / 10) if kept else (again > 4 * first)
    assert resident < 280


def test_a_c_library_without_settings_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    process.keep_freed()


def test_every_seed_is_one_for_all_that_draw():
    """Of the last one no rank's draw of any step overflows; the schema has no seed beyond it."""
    last, rank = 2**32 - 1, ranks.rank
    try:
        ranks.rank = lambda: 4095
        ranks.seed_step(last, 2**31)
    finally:
        ranks.rank = rank
        torch.manual_seed(0)
    assert orders(3, last, 2**31).shape == (3, 3)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder, a recipe and data whose names are not ASCII."""
    place = tmp_path_factory.mktemp("place")
    samples.write(place / "dätä", rows=60)
    text = "# größer, 漢字\n" + RECIPE.replace("path: data", "path: dätä").replace("shards: 12", "shards: 4")
    text = text.replace("batch_size: 96", "batch_size: 32").replace("epochs: 2", "epochs: 1")
    (place / "rezept-ü.yaml").write_text(text, encoding="utf-8")
    return place


def livetrain(place: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "livetrain", *words], cwd=place, env=kept | environment, capture_output=True
    )


STRANGE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.slow
def test_a_run_in_a_strange_place(place):
    """An ASCII locale and terminal, nested OpenMP levels and a TMPDIR that is not there, all at once."""
    done = livetrain(
        place,
        *("train", "rezept-ü.yaml", "--runs", "läufe", "name=a"),
        **STRANGE,
        PYTHONIOENCODING="ascii",
        OMP_NUM_THREADS="2,1",
        TMPDIR="/none/at/all",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert b"l\\xe4ufe" in done.stdout
    assert "path: dätä" in (place / "läufe/a/config.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("terminal", ["ascii", "latin-1", "utf-8"])
def test_a_refusal_is_written_for_every_terminal(place, terminal):
    done = livetrain(place, "zug-漢", **STRANGE, PYTHONIOENCODING=terminal)
    said = done.stderr.decode(terminal)
    word = "zug-漢" if terminal == "utf-8" else "zug-\\u6f22"
    assert (done.returncode, said) == (2, f"livetrain: no such command '{word}'; see livetrain --help\n")


OPENED = ("Source.open", "lmdb.open", "Sweep.open", "player.open", "source.open", "os.open")  # no files of text


@pytest.mark.parametrize("path", ["cli", "configs", "modules", "trainers", "cluster"])
def test_no_text_file_depends_on_the_locale(path):
    """Every call that opens text says its encoding."""
    for file in (Path(__file__).parents[3] / path).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or "encoding" in {part.arg for part in node.keywords}:
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            ours = isinstance(node.func, ast.Name) or ast.unparse(node.func) == "manifest.write_text"
            assert ours or called not in ("read_text", "write_text"), f"{file}:{node.lineno}"
            if called != "open" or ast.unparse(node.func) in OPENED:
                continue
            modes = [part.value for part in node.args if isinstance(part, ast.Constant)]
            assert any(isinstance(mode, str) and "b" in mode for mode in modes), f"{file}:{node.lineno}"
