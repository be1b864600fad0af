"""Sweeps for real, under Ray: early stops free what they held, crashes are survived, killed sweeps go on."""

import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from livetrain.cluster import launch
from livetrain.cluster.sweep import Sweep, resume, tune
from livetrain.configs.errors import BadInput
from livetrain.configs.load import dump_recipe, load_recipe
from livetrain.configs.space import parse_space
from livetrain.configs.trees import dump_tree
from livetrain.trainers.runtime import runlog
from tests import samples

ROOT = Path(__file__).parents[3]
RATE = "optimizers.dense.lr"


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One Ray of two CPUs for the tests that do not need to see it start."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return samples.write(tmp_path_factory.mktemp("data") / "data")


def seed_for(space: dict, wanted: list[dict]) -> int:
    """Return a seed whose first random draws are the wanted ones."""
    parsed = parse_space(space)
    return next(s for s in itertools.count() if [parsed.sample(s, n) for n in range(len(wanted))] == wanted)


def trained(run: Path) -> list[dict]:
    return [line for line in runlog.read(run) if line["kind"] == "train"]


def resumed(run: Path) -> list[int]:
    """Return the steps at which a run went on."""
    notes = [line["text"] for line in runlog.read(run) if line["kind"] == "note"]
    return [int(text.split()[-1]) for text in notes if text.startswith("resumed at step")]


def span(run: Path) -> tuple[float, float]:
    """Return when a run's first and last line of training were written."""
    lines = trained(run)
    return lines[0]["time"], lines[-1]["time"]


def most_at_once(spans: list[tuple[float, float]]) -> int:
    return max(sum(first <= moment <= last for first, last in spans) for moment, _ in spans)


def wait_until(met: Callable[[], bool], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def processes(name: str) -> list[int]:
    """Return the processes of that name which descend from this one: others on the machine may have Ray too."""
    lines = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    table = {int(pid): (int(parent), args) for pid, parent, args in (x.split(None, 2) for x in lines.splitlines()[1:])}

    def ours(pid: int) -> bool:
        while pid in table and pid != os.getpid():
            pid = table[pid][0]
        return pid == os.getpid()

    return [pid for pid, (_, args) in table.items() if name in args and ours(pid)]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_trials_in_their_own_processes(data, tmp_path, capsys):
    """Two at a time on two CPUs; one that diverges is told of; the best trains again bit for bit."""
    space = {RATE: {"choice": [0.01, 1e30, 0.003]}, "tables.movie.dim": {"choice": [8, 12]}}
    wanted = [(0.01, 8), (1e30, 8), (0.003, 8), (0.01, 12)]
    space["tables.user.dim"] = {"choice": [8, 12], "when": {RATE: 0.003}}
    draws = [{RATE: rate, "tables.movie.dim": dim} for rate, dim in wanted]
    draws[2]["tables.user.dim"] = 12
    recipe = samples.recipe(data, train__epochs=4)
    seed = seed_for(space, draws)
    sweep = tune(recipe, space, tmp_path / "sweep", samples=4, seed=seed, metrics=["valid/auc"], scheduler="none")

    assert [trial.values for trial in sweep.trials] == draws
    assert [trial.state for trial in sweep.trials] == ["finished", "failed", "finished", "finished"]
    assert "lower optimizers.sparse.lr or optimizers.dense.lr" in sweep.trials[1].error
    frame = sweep.frame
    assert frame.set_index("trial").loc[1, "error"] == sweep.trials[1].error
    assert frame.iloc[0]["valid/auc"] == max(trial.scores[0] for trial in sweep.trials if trial.scores)
    assert "trial 001: " in capsys.readouterr().out
    done = [trial for trial in sweep.trials if trial.state == "finished"]
    assert most_at_once([span(sweep.run(trial)) for trial in done]) <= 2
    for trial in done:  # the test split was never looked at
        lines = runlog.read(sweep.run(trial))
        assert {line["split"] for line in lines if line["kind"] == "eval"} == {"valid"}
        result = json.loads((sweep.run(trial) / "result.json").read_text())
        assert result["valid.click.auc"] == trial.scores[0]
        assert not any(key.startswith("test.") for key in result)
    assert "test.click.auc" in launch.evaluate(sweep.run(sweep.best), "test", "best")

    (tmp_path / "best.yaml").write_text(sweep.winner())
    assert (tmp_path / "best.yaml").read_text().startswith(f"# Trial {sweep.best.number} of 4 of the sweep sweep")
    again = launch.train(load_recipe(tmp_path / "best.yaml", ["name=again"]), tmp_path)
    assert again["valid.click.auc"] == sweep.best.scores[0]
    assert again["step"] == trained(sweep.run(sweep.best))[-1]["step"]

    before = {path: path.stat().st_mtime_ns for path in (sweep.folder / "trials").rglob("*")}
    assert resume(sweep.folder).frame.equals(frame)
    assert {path: path.stat().st_mtime_ns for path in (sweep.folder / "trials").rglob("*")} == before
    with pytest.raises(BadInput, match="a sweep is there already"):
        tune(recipe, space, tmp_path / "sweep", samples=4)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_killed_trials_go_on_from_their_checkpoints_until_they_are_given_up(tmp_path):
    """One trial at a time, as each takes both CPUs: the first dies once more than it may, the second once."""
    data = samples.write(tmp_path / "data", rows=8000)
    recipe = samples.recipe(
        data,
        train__checkpoint_every=10,
        train__epochs=4,
        cluster={"workers": 0, "cpus_per_worker": 2, "max_failures": 1},
    )
    given_up, survivor = (tmp_path / "sweep/trials" / name for name in ("000", "001"))

    def kill(run: Path, resumes: int) -> None:
        """Kill the trial's process once it trains after so many resumes."""
        wait_until(lambda: len(resumed(run)) == resumes and len(trained(run)) > 30)
        for pid in processes("ray::ImplicitFunc"):
            os.kill(pid, signal.SIGKILL)

    def kill_all() -> None:
        for run, resumes in ((given_up, 0), (given_up, 1), (survivor, 0)):
            kill(run, resumes)

    killer = threading.Thread(target=kill_all)
    killer.start()
    sweep = tune(recipe, {"train.seed": {"choice": [1]}}, tmp_path / "sweep", samples=2, scheduler="none")
    killer.join()
    assert [trial.state for trial in sweep.trials] == ["failed", "finished"]
    assert sweep.trials[0].error.endswith("the trial's process died: it was killed, or memory ran out")
    assert len(resumed(given_up)) == len(resumed(survivor)) == 1
    assert resumed(survivor)[0] >= 10
    alone = launch.train(recipe, tmp_path)
    assert alone["valid.click.auc"] == sweep.best.scores[0]
    assert [x["samples"] for x in trained(survivor)] == [x["samples"] for x in trained(tmp_path / "small")]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_optuna_and_several_metrics(data, tmp_path):
    space = {
        RATE: {"log_uniform": [1e-3, 3e-2]},
        "model.units": {"choice": [[8], [16, 8]]},
        "model.dropout": {"uniform": [0, 0.2], "when": {"model.units": [[16, 8]]}},
        "optimizers.schedule.warmup_steps": {"integer": [0, 5]},
    }
    recipe = samples.recipe(data, train__epochs=1)
    asked = {"metrics": ["valid/auc", "valid/gauc"], "search": "optuna", "samples": 4}
    sweep = tune(recipe, space, tmp_path / "sweep", **asked)
    assert [trial.state for trial in sweep.trials] == ["finished"] * 4
    assert all(("model.dropout" in t.values) == (t.values["model.units"] == [16, 8]) for t in sweep.trials)
    points = [trial.scores for trial in sweep.trials]
    beaten = [any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points) for p in points]
    assert {trial.number for trial in sweep.front} == {n for n, lost in enumerate(beaten) if not lost}
    assert sweep.frame.set_index("trial")["pareto"].sort_index().tolist() == [not lost for lost in beaten]
    assert {path.stem for path in sweep.folder.glob("*.png")} == {"parallel", "importance", "curves", "best", "pareto"}

    record = json.loads((sweep.folder / "sweep.json").read_text())  # two more trials are asked for
    record["settings"]["samples"] = 5
    (sweep.folder / "sweep.json").write_text(json.dumps(record))
    more = resume(sweep.folder)
    assert [trial.values for trial in more.trials[:4]] == [trial.values for trial in sweep.trials]
    assert more.trials[4].state == "finished"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_an_early_stop_frees_the_workers_for_the_next_trial(data, tmp_path):
    """Each trial's two workers take both CPUs: the third can only train if the second, stopped, let go of them."""
    space = {RATE: {"choice": [0.01, 1e-8]}, "train.epochs": {"choice": [60], "when": {RATE: 1e-8}}}
    seed = seed_for(space, [{RATE: 0.01}, {RATE: 1e-8, "train.epochs": 60}, {RATE: 0.01}])
    recipe = samples.recipe(data, cluster__workers=2, train__epochs=2, optimizers__sparse={"kind": "sgd", "lr": 1e-4})
    sweep = tune(recipe, space, tmp_path / "sweep", samples=3, seed=seed)
    assert [trial.state for trial in sweep.trials] == ["finished", "stopped", "finished"]
    runs = [sweep.run(trial) for trial in sweep.trials]
    assert trained(runs[1])[-1]["epoch"] < 60
    assert most_at_once([span(run) for run in runs]) == 1
    assert sweep.trials[0].scores == sweep.trials[2].scores
    assert sweep.best.number == 0
    wait_until(lambda: ray.available_resources().get("CPU") == 2)
    wait_until(lambda: not processes("ray::RayTrainWorker"))


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(tmp_path):
    data = samples.write(tmp_path / "data", rows=8000)
    recipe = samples.recipe(data, train__checkpoint_every=10)
    space, folder = {"train.epochs": {"choice": [1, 12]}}, tmp_path / "sweep"
    seed = seed_for(space, [{"train.epochs": epochs} for epochs in (1, 12, 1)])
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    (tmp_path / "space.yaml").write_text(dump_tree(space))

    def start(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "livetrain", "tune", *arguments]
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=ROOT, **pipe, start_new_session=True)

    asked = (str(tmp_path / "recipe.yaml"), "--space", str(tmp_path / "space.yaml"), "--samples", "3")
    driver = start(*asked, "--scheduler", "none", "--seed", str(seed), "--out", str(folder))
    first, second = folder / "trials/000", folder / "trials/001"
    try:
        wait_until(lambda: (first / "result.json").exists() and any(x["step"] >= 60 for x in trained(second)))
        with pytest.raises(BadInput, match="this sweep is running already"):
            resume(folder)
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    killed = Sweep.open(folder)
    assert [trial.state for trial in killed.trials].count("running") >= 1
    done = (first / "metrics.jsonl").read_bytes()

    again = start("--resume", str(folder))
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    sweep = Sweep.open(folder)
    assert [trial.state for trial in sweep.trials] == ["finished"] * 3
    assert [t.values for t in sweep.trials[: len(killed.trials)]] == [t.values for t in killed.trials]
    assert (first / "metrics.jsonl").read_bytes() == done
    assert resumed(second)[0] >= 10
    alone = launch.train(sweep.recipe_of(sweep.trials[1]).model_copy(update={"name": "alone"}), tmp_path)
    assert alone["valid.click.auc"] == sweep.trials[1].scores[0]
    assert [x["samples"] for x in trained(second)] == [x["samples"] for x in trained(tmp_path / "alone")]
    assert "livetrain tune best" in output
