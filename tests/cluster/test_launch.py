"""Ray Train for real: two workers on this machine, killed workers, killed drivers, other numbers of workers."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from livetrain.cluster import launch, places, ray_workers
from livetrain.configs.errors import BadInput, NotNow
from livetrain.configs.load import dump_recipe
from livetrain.configs.schema import Cluster
from livetrain.trainers.data.read import sidecar, statistics
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.spread import Looking
from livetrain.trainers.runtime import runlog
from tests import samples

ROOT = Path(__file__).parents[2]


def log(run: Path) -> list[dict]:
    return [line for line in runlog.read(run) if line["kind"] == "train"]


def wait_for_step(run: Path, step: int, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (run / runlog.NAME).exists() and any(line["step"] >= step for line in log(run)):
            return
        time.sleep(0.05)
    raise AssertionError(f"{run} never came to step {step}")


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One Ray for the tests that do not need to see it start."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_rays_cpus_look_at_data_as_this_process_does(tmp_path, monkeypatch):
    """Footers and rows: the same to the last digit, told as they come, and what is wrong is as it is here."""
    monkeypatch.setattr(statistics, "_STRETCH", 256)
    data = samples.write(tmp_path / "data")
    recipe, told = samples.recipe(data, cluster__workers=2), []
    here = statistics.scan(Source.open(recipe, "train"), recipe)
    shutil.rmtree(data / "train" / sidecar.NAME)
    monkeypatch.setattr(ray_workers, "_FEW", 1)
    looking = Looking(spread=ray_workers.spread(recipe), told=lambda *words: told.append(words)).at("train")
    assert statistics.scan(Source.open(recipe, "train", looking), recipe, looking) == here
    assert told == [("train", "files", 1, 1), *(("train", "rows", min(n * 256, 2000), 2000) for n in range(1, 9))]
    table = pq.read_table(data / "train/part-0.parquet")
    rates = pa.array(np.where(np.arange(2000) == 1500, np.inf, 1.0))
    pq.write_table(table.set_column(table.column_names.index("rate"), "rate", rates), data / "train/part-0.parquet")
    with pytest.raises(BadInput, match="row group 0, row 1500: features.rate holds inf"):
        statistics.scan(Source.open(recipe, "train", looking), recipe, looking)


@pytest.mark.usefixtures("ray_here")
def test_two_ray_workers_train_and_evaluate(tmp_path):
    data = samples.write(tmp_path / "data")
    alone = launch.train(samples.recipe(data, name="alone"), tmp_path)
    found = launch.train(samples.recipe(data, cluster__workers=2), tmp_path)
    run = tmp_path / "small"
    assert [x["samples"] for x in log(run)] == [x["samples"] for x in log(tmp_path / "alone")]
    assert found["workers"] == 2
    assert found["test.click.auc"] == pytest.approx(alone["test.click.auc"], abs=0.01)
    user = {"sharding": "row_wise", "kernel": "fused", "ranks": [0, 1], "rows": [50, 50], "bytes": [1600, 1600]}
    assert found["plan"]["user"] == user
    said = [line["text"] for line in runlog.read(run) if line["kind"] == "note"]
    assert any("user row_wise on 2 ranks (fused, up to 50 rows and 0.0 MiB per rank)" in text for text in said)
    assert json.loads((run / "result.json").read_text())["test.click.auc"] == found["test.click.auc"]
    assert (run / "report.png").stat().st_size > 10_000
    again = launch.evaluate(run, "test", "best")
    assert not list(run.glob(".*.scratch"))
    assert again["test.click.auc"] == found["test.click.auc"]
    with pytest.raises(BadInput, match="this run is finished"):
        launch.train(samples.recipe(data, cluster__workers=2), tmp_path)


def test_places_of_commands_do_not_meet(tmp_path, monkeypatch):
    """What a training frees is other trainings'; an evaluation waits for nobody."""
    freed: list[Path] = []
    monkeypatch.setattr(places, "free", lambda place: freed.append(place) or True)
    with places.taken(tmp_path, places.TRAINING) as training, places.taken(tmp_path, places.EVALUATION) as evaluation:
        places.release(tmp_path)
        assert freed == [training]
        places.clear(evaluation, places.free)
        places.clear(training, places.free)
        assert training.is_dir()
        assert evaluation.is_dir()
        monkeypatch.setattr(places, "_PATIENCE_S", 0.0)
        with places.taken(tmp_path, places.TRAINING) as second, pytest.raises(NotNow, match="workers of an earlier"):
            places.clear(second, places.free)
        with places.taken(tmp_path, places.EVALUATION) as second:
            places.clear(second, places.free)
    assert freed == [training]
    assert not list(tmp_path.iterdir())


def test_no_helper_of_rays_frees_a_living_runs_workers():
    """It asks whether the controller lives at a dashboard that may be another Ray's, which knows of no such actor."""
    trainer = TorchTrainer(lambda: None, scaling_config=ScalingConfig(num_workers=2))
    helper, known, used = "PlacementGroupCleanerCallback", trainer._create_default_callbacks(), []
    trainer.fit = lambda: used.extend(trainer._create_default_callbacks())
    ray_workers._fit(trainer, Cluster(), {})
    assert helper in {type(one).__name__ for one in known}
    assert [type(one) for one in used] == [type(one) for one in known if type(one).__name__ != helper]


def test_evaluating_leaves_a_runs_folder_as_it_was(small_run):
    def state() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in small_run.rglob("*") if path.is_file()}

    before = state()
    launch.evaluate(small_run, "valid", "best")
    assert state() == before


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_what_a_worker_refuses_is_one_sentence(tmp_path):
    """A page goes bad after the data were checked: no retry can mend it."""
    data = samples.write(tmp_path / "data")
    recipe = samples.recipe(data, cluster__workers=2, train__epochs=40)
    file = data / "valid" / "part-0.parquet"

    def spoil() -> None:
        wait_for_step(tmp_path / "small", 1)
        file.unlink()

    spoiler = threading.Thread(target=spoil)
    spoiler.start()
    with pytest.raises(BadInput, match=r"part-0\.parquet"):
        launch.train(recipe, tmp_path)
    spoiler.join()


def start(recipe_file: Path, runs: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "livetrain", "train", str(recipe_file), "--runs", str(runs), *overrides]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def workers_of(driver: subprocess.Popen) -> list[psutil.Process]:
    """The Ray workers that a driver has started."""
    family = psutil.Process(driver.pid).children(recursive=True)
    return [one for one in family if "RayTrainWorker" in " ".join(one.cmdline())]


@pytest.fixture(scope="module")
def long_run(tmp_path_factory) -> tuple[Path, Path]:
    """A recipe of 420 steps, and the log of its run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("long")
    data = samples.write(folder / "data", rows=20_000)
    recipe = samples.recipe(
        data,
        cluster__workers=2,
        train__checkpoint_every=20,
        optimizers__sparse__kind="sgd",
        optimizers__dense__kind="sgd",
    )
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    launch.train(recipe.model_copy(update={"name": "whole"}), folder)
    return folder / "recipe.yaml", folder / "whole"


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_run_is_the_same(long_run, tmp_path):
    recipe, whole = long_run
    driver = start(recipe, tmp_path)
    wait_for_step(tmp_path / "small", 100)
    workers_of(driver)[0].kill()
    output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, output.decode()
    found = log(tmp_path / "small")
    notes = [line["text"] for line in runlog.read(tmp_path / "small") if line["kind"] == "note"]
    assert any(text.startswith("resumed at step") for text in notes)
    keys = ("step", "loss", "samples")
    assert [[x[k] for k in keys] for x in found] == [[x[k] for k in keys] for x in log(whole)]


@pytest.mark.slow
def test_evaluating_a_run_that_trains_disturbs_neither(long_run, tmp_path):
    recipe, _ = long_run
    driver, run = start(recipe, tmp_path, "train.epochs=12"), tmp_path / "small"
    wait_for_step(run, 230)
    codes = []
    while driver.poll() is None:
        command = [sys.executable, "-m", "livetrain", "evaluate", str(run), "--checkpoint", "last"]
        codes.append(subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode)
    output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, output.decode()
    assert codes[0] == 0
    assert [line["step"] for line in log(run)] == list(range(1, log(run)[0]["steps"] + 1))
    assert not [line for line in runlog.read(run) if "resumed" in str(line.get("text"))]
    assert not list(run.glob(".*.scratch"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_a_killed_driver_resumes_on_other_workers(long_run, tmp_path, workers):
    recipe, whole = long_run
    driver = start(recipe, tmp_path)
    wait_for_step(tmp_path / "small", 100)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    again = start(recipe, tmp_path, f"cluster.workers={workers}")
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output.decode()
    found = log(tmp_path / "small")
    assert [x["samples"] for x in found] == [x["samples"] for x in log(whole)]
    assert [x["loss"] for x in found[:120]] == pytest.approx([x["loss"] for x in log(whole)][:120], abs=1e-5)
