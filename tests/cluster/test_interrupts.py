"""Commands under Ray that are told to end: real processes, real signals, and what is left of them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from livetrain.configs.load import dump_recipe
from livetrain.configs.trees import dump_tree
from livetrain.trainers.runtime import run_folder, runlog
from tests import samples

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A recipe of more steps than anybody waits for, on two workers."""
    folder = tmp_path_factory.mktemp("long")
    made = samples.recipe(samples.write(folder / "data"), cluster__workers=2, train__epochs=100_000)
    (folder / "recipe.yaml").write_text(dump_recipe(made))
    (folder / "space.yaml").write_text(dump_tree({"train.seed": {"choice": [1, 2]}}))
    return folder / "recipe.yaml"


def start(*words: str) -> subprocess.Popen:
    """A command in a session of its own, by which all its processes can be found."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    return subprocess.Popen([sys.executable, "-m", "livetrain", *words], cwd=ROOT, env=environment, **pipes)


def processes(session: int) -> list[str]:
    lines = subprocess.run(["ps", "-eo", "sid,stat,args"], capture_output=True, text=True, check=True).stdout
    rows = (line.split(None, 2) for line in lines.splitlines()[1:])
    return [args for sid, state, args in rows if int(sid) == session and not state.startswith("Z")]


def until(met: Callable[[], bool], command: subprocess.Popen, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert command.poll() is None, command.communicate()[0]
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def trained(run: Path) -> list[dict]:
    return [line for line in runlog.read(run) if line["kind"] == "train"]


def notes(run: Path) -> list[str]:
    return [line["text"] for line in runlog.read(run) if line["kind"] == "note"]


def end(command: subprocess.Popen, number: int, whole_group: bool = False) -> tuple[int, str]:
    """Tell a command to end; return its exit code and what it printed, once none of its processes is left."""
    (os.killpg if whole_group else os.kill)(command.pid, number)
    out, _ = command.communicate(timeout=300)
    stop = time.monotonic() + 60
    while processes(command.pid):
        assert time.monotonic() < stop, processes(command.pid)
        time.sleep(0.1)
    return command.returncode, out


@pytest.mark.slow
def test_sigterm_has_all_workers_save_at_one_step(recipe, tmp_path):
    command, run = start("train", str(recipe), "--runs", str(tmp_path)), tmp_path / "small"
    until(lambda: len(trained(run)) > 2, command)
    code, out = end(command, signal.SIGTERM)
    assert code == 143, out
    step = int(run_folder.committed(run)[-1].name.removeprefix("step-"))
    assert notes(run)[-1].startswith(f"stopped at step {step} of ")
    assert trained(run)[-1]["step"] == step
    assert out.splitlines()[-1] == (
        f"small was stopped; started again under this name it goes on from its checkpoint of step {step}"
    )
    assert "Traceback" not in out


@pytest.mark.slow
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_training_in_the_process_itself_ends_alike(recipe, tmp_path, number):
    command, run = start("train", str(recipe), "cluster.workers=0", "--runs", str(tmp_path)), tmp_path / "small"
    until(lambda: len(trained(run)) > 2, command)
    code, out = end(command, number)
    assert code == 128 + number, out
    assert "Traceback" not in out
    saved = run_folder.committed(run)
    if number == signal.SIGTERM:
        assert saved[-1].name == f"step-{trained(run)[-1]['step']:08d}"
    again = "its checkpoint of step" if saved else "its start"
    assert f"started again under this name it goes on from {again}" in out.splitlines()[-1]


@pytest.mark.slow
def test_ctrl_c_ends_a_training_that_is_starting(recipe, tmp_path):
    command, run = start("train", str(recipe), "--runs", str(tmp_path)), tmp_path / "small"
    until(lambda: "starting 2 workers" in notes(run), command)
    code, out = end(command, signal.SIGINT, whole_group=True)  # as a terminal sends it
    assert code == 130, out
    assert out.splitlines()[-1].startswith("small was interrupted; started again under this name it goes on from")
    assert "Traceback" not in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "whole_group", "code"),
    [(signal.SIGINT, True, 130), (signal.SIGINT, False, 130), (signal.SIGTERM, True, 143)],
)
def test_a_training_ends_at_once(recipe, tmp_path, number, whole_group, code):
    command, run = start("train", str(recipe), "--runs", str(tmp_path)), tmp_path / "small"
    until(lambda: len(trained(run)) > 2, command)
    ended, out = end(command, number, whole_group)
    assert ended == code, out
    assert "Traceback" not in out
    assert {path.name for path in run.iterdir()} <= {"metrics.jsonl", "config.yaml", ".lock", "checkpoints"}
    again = start("train", str(recipe), "--runs", str(tmp_path))
    until(lambda: len(trained(run)) > 4, again)
    assert end(again, signal.SIGTERM)[0] == 143


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_evaluation_ends_at_once(recipe, tmp_path, number):
    command, run = start("train", str(recipe), "--runs", str(tmp_path)), tmp_path / "small"
    until(lambda: len(run_folder.committed(run)) > 1, command)
    end(command, signal.SIGINT)
    evaluation = start("evaluate", str(run))
    before = len(notes(run))
    until(lambda: "starting 2 workers" in notes(run)[before:], evaluation)
    code, out = end(evaluation, number)
    assert code == 128 + number, out
    assert "Traceback" not in out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_ends_at_once(recipe, tmp_path, number):
    folder = tmp_path / "sweep"
    space = ("--space", str(recipe.with_name("space.yaml")), "--samples", "2")
    command = start("tune", str(recipe), *space, "--out", str(folder))
    until(lambda: len(trained(folder / "trials/000")) > 2, command)
    code, out = end(command, number)
    assert code == 128 + number, out
    assert f"interrupted; livetrain tune --resume {folder} goes on with it" in out
    assert "Traceback" not in out
    again = start("tune", "--resume", str(folder))
    before = len(trained(folder / "trials/000"))
    until(lambda: len(trained(folder / "trials/000")) != before, again)
    end(again, number)
