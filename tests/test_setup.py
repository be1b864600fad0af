"""The set-up script's own logic, with a Python that only writes down what it is asked to install."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
FAKE = """#!/bin/bash
# `-c` answers as {python} does; `-m venv DIR` makes a folder with this script; `-m pip install` notes and may fail.
case "$1 $2" in
  "-c "*) [ -z "$FAKE_VERSION" ] || {{ echo "$FAKE_VERSION"; exit 1; }}; exec {python} "$@" ;;
  "-m venv") [ -z "$NO_VENV" ] || exit 1; mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  "-m pip") echo "${{*:3}}" >>{log}; case "$*" in *"${{BREAK_AT:-nothing}}"*) exit 1 ;; esac ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    """A clone with nothing but the set-up in it; `clone.setup(**environment)` runs it."""
    root, log, fake = tmp_path / "clone of it", tmp_path / "installed", tmp_path / "python"
    (root / "cluster").mkdir(parents=True)
    for name in ("cluster/setup.sh", "cluster/requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    fake.write_text(FAKE.format(python=sys.executable, log=log))
    fake.chmod(0o755)

    clone = SimpleNamespace(root=root, venv=root / ".venv")

    def setup(**environment: str) -> SimpleNamespace:
        """Return exit code, installs of this run and what was printed."""
        log.unlink(missing_ok=True)
        clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        done = subprocess.run(
            ["bash", str(clone.root / "cluster/setup.sh")],
            env={**clean, "PYTHON": str(fake), **environment},
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        installs = log.read_text().splitlines() if log.exists() else []
        return SimpleNamespace(code=done.returncode, installs=installs, out=done.stdout, err=done.stderr)

    clone.setup = setup
    return clone


def test_a_cpu_set_up_never_lets_pip_choose_torch_or_the_cuda_wheel(clone):
    done = clone.setup()
    assert done.code == 0, done.err
    first, second, third = done.installs
    assert first.endswith("torch==2.13.0 fbgemm-gpu-cpu==1.8.0")
    assert second.endswith("torch==2.13.0 fbgemm-gpu-cpu==1.8.0 --editable .[test]")
    assert third.endswith("--no-deps torchrec==1.8.0")
    assert done.out.splitlines()[-1].startswith("setup: ready")


def test_a_locked_set_up_takes_nothing_by_range_but_the_torch_release(clone):
    done = clone.setup(LOCKED="1")
    assert done.code == 0, done.err
    first, second, third, fourth = done.installs
    assert first.endswith("--require-hashes --no-deps --requirement cluster/requirements.lock")
    assert second.endswith("torch==2.13.0 fbgemm-gpu-cpu==1.8.0")
    assert third.endswith("--no-deps --no-build-isolation --editable .")
    assert fourth.endswith("--no-deps torchrec==1.8.0")
    assert clone.setup(LOCKED="1").installs == []
    with (clone.root / "cluster/requirements.lock").open("a") as file:
        file.write("# changed\n")
    assert len(clone.setup(LOCKED="1").installs) == 4
    assert len(clone.setup().installs) == 3  # by the ranges again


@pytest.mark.parametrize(
    ("trio", "first", "last"),
    [
        ("2.14", "torch==2.14.0 fbgemm-gpu==1.9.0", "torchrec==1.9.0"),
        ("2.12", "torch==2.12.0 fbgemm-gpu==1.7.0", "torchrec==1.7.0"),
        ("2.11", "torch==2.11.0 fbgemm-gpu==1.6.0", "torchrec==1.6.1"),  # torchrec 1.6.0 was never published
    ],
)
def test_the_trio_moves_together(clone, trio, first, last):
    installs = clone.setup(ACCELERATOR="cuda", TRIO=trio).installs
    assert installs[0].endswith(first)
    assert installs[2].endswith(last)


def test_a_second_run_does_nothing(clone):
    clone.setup()
    again = clone.setup()
    assert (again.code, again.installs, again.out) == (0, [], "")


def test_changed_dependencies_are_installed_into_what_is_there(clone):
    clone.setup()
    (clone.venv / "kept").touch()
    with (clone.root / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert len(clone.setup().installs) == 3
    assert (clone.venv / "kept").exists()
    assert clone.setup().installs == []


@pytest.mark.parametrize("change", [{"ACCELERATOR": "cuda"}, {"TRIO": "2.12"}])
def test_another_kind_of_environment_starts_over(clone, change):
    clone.setup()
    (clone.venv / "stale").touch()
    assert len(clone.setup(**change).installs) == 3
    assert not (clone.venv / "stale").exists()


def test_a_moved_clone_starts_over(clone):
    clone.setup()
    (clone.venv / "stale").touch()
    clone.root = clone.root.rename(clone.root.with_name("moved"))
    assert len(clone.setup().installs) == 3
    assert not (clone.root / ".venv/stale").exists()


@pytest.mark.parametrize("broken", ["fbgemm-gpu-cpu==1.8.0", "--editable", "--no-deps"])
def test_an_interrupted_set_up_is_made_again(clone, broken):
    assert clone.setup(BREAK_AT=broken).code != 0
    assert not (clone.venv / "ready").exists()
    (clone.venv / "half").touch()
    assert len(clone.setup().installs) == 3
    assert not (clone.venv / "half").exists()
    assert clone.setup().installs == []


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"ACCELERATOR": "gpu"}, "ACCELERATOR is 'gpu'; use cpu or cuda"),
        ({"LOCKED": "yes"}, "LOCKED is 'yes'; use 0 or 1"),
        ({"TRIO": "2.9"}, "TRIO is '2.9'; use 2.14, 2.13, 2.12 or 2.11"),
        ({"PYTHON": "no-such-python"}, "there is no 'no-such-python' on the PATH"),
        ({"FAKE_VERSION": "3.9"}, "livetrain needs Python 3.11 or newer, and"),
        ({"NO_VENV": "1"}, "install Python's venv module"),
    ],
)
def test_what_is_missing_is_said(clone, environment, sentence):
    done = clone.setup(**environment)
    assert done.code == 2
    assert sentence in done.err
    assert done.installs == []


@pytest.mark.parametrize("script", ["cluster/setup.sh", ".ci/run"])
def test_scripts_are_executable_and_parse(script):
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
