"""The package of examples outside the tree, all its kinds in one recipe, by the commands that anybody gives."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from livetrain.configs.load import dump_recipe
from livetrain.configs.trees import dump_tree
from livetrain.trainers.export.rows import golden_inputs
from livetrain.trainers.runtime import run_folder, runlog
from tests import heads, samples
from tests.examples.test_extending import CHANGES, EXAMPLES

pytestmark = pytest.mark.slow

PLUGINS = [f"my_package.{name}" for name in ("model", "feature", "task", "optimizer")]


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Iterator[heads.Head]:
    with heads.started(tmp_path_factory.mktemp("head")) as started:
        yield started


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with the package, and with a recipe for two Ray workers that names it."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(EXAMPLES / "my_package", home / "my_package", ignore=shutil.ignore_patterns("__pycache__"))
    data = samples.write(home / "data", rows=4000)
    recipe = samples.recipe(data, plugins=PLUGINS, cluster__workers=2, train__checkpoint_every=10, **CHANGES)
    assert recipe.plugins == PLUGINS
    (home / "recipe.yaml").write_text(dump_recipe(recipe))
    return home


def start(home: Path, *words: str) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, "-m", "livetrain", *words]
    return subprocess.Popen(command, cwd=home, env=heads.environment(home), start_new_session=True, **pipes)


def livetrain(home: Path, *words: str) -> str:
    command = start(home, *words)
    said, _ = command.communicate(timeout=300)
    assert command.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def run(home) -> Path:
    """A run of two workers that was killed with all its processes, and has gone on by the same command."""
    run = home / "runs/small"
    killed = start(home, "train", "recipe.yaml")
    while not run_folder.committed(run):
        assert killed.poll() is None, killed.stdout.read()
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    livetrain(home, "train", "recipe.yaml")
    return run


def test_a_killed_run_of_two_workers_goes_on(run):
    result = json.loads((run / "result.json").read_text())
    assert result["workers"] == 2
    assert set(result["plan"]) == {"user", "movie", "rating", "rate"}
    assert result["test.click.auc"] > 0.6
    lines = runlog.read(run)
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == list(range(1, result["step"] + 1))
    assert any(line["text"].startswith("resumed at step") for line in lines if line["kind"] == "note")


def test_it_is_evaluated_and_exported(home, run):
    shown = livetrain(home, "evaluate", "runs/small", "--split", "test")
    assert f"{json.loads((run / 'result.json').read_text())['test.click.auc']:.4f}" in shown
    livetrain(home, "export", "runs/small")
    golden = json.loads((run / "export/golden.json").read_text())
    scores = torch.jit.load(str(run / "export/model.pt"))(*golden_inputs(golden))["click"]
    np.testing.assert_allclose(scores.tolist(), golden["scores"]["click"], atol=1e-6)


def test_a_sweep_searches_their_keys(home):
    space = {"model.width": {"choice": [4, 8]}, "tasks.click.epsilon": {"uniform": [0, 2]}}
    (home / "space.yaml").write_text(dump_tree(space))
    words = ("recipe.yaml", "train.epochs=1", "cluster.workers=1", "--space", "space.yaml", "--samples", "2")
    livetrain(home, "tune", *words, "--scheduler", "none", "--out", "sweep")
    trials = json.loads((home / "sweep/sweep.json").read_text())["trials"]
    assert [trial["state"] for trial in trials] == ["finished"] * 2
    assert trials[0]["values"]["tasks.click.epsilon"] != trials[1]["values"]["tasks.click.epsilon"]


def test_a_cluster_is_sent_the_package(head, home):
    """Only who submits finds it; what the cluster's two workers import lies in the job's folder."""
    words = ("submit", str(home / "recipe.yaml"), "name=sent", "train.epochs=1", "--runs", str(home / "runs"))
    sent = head.livetrain(*words, PYTHONPATH=str(home))
    assert sent.code == 0, sent.out + sent.err
    assert json.loads((home / "runs/sent/result.json").read_text())["workers"] == 2
    livetrain(home, "export", "runs/sent")
    assert (home / "runs/sent/export/model.pt").exists()
