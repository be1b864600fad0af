"""cluster.workers: 0, the whole way in this process."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest

from livetrain.cluster import launch
from livetrain.configs.errors import BadInput
from livetrain.configs.load import load_recipe
from livetrain.trainers.evaluate import evaluation
from livetrain.trainers.runtime import manifest
from tests import samples


def test_a_finished_run_holds_its_parts(small_run):
    names = {path.name for path in small_run.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "result.json", "report.png", "checkpoints"} <= names
    result = json.loads((small_run / "result.json").read_text())
    assert result["name"] == "small"
    assert result["test.click.auc"] > 0.7
    assert result["rows_per_s"] > 0
    assert result["wall_s"] > 0
    assert set(result["tables"]) == {"user", "movie", "rating"}


def test_lists_over_their_limit_are_cut_and_counted(small_run):
    train = pq.read_table(small_run.parents[1] / "data/train")
    long = sum(len(events) > 6 for events in train["history"].to_pylist())
    assert 0 < long < len(train)
    epochs = 2
    assert json.loads((small_run / "result.json").read_text())["cut"] == {
        "history": epochs * long,
        "rating": epochs * long,
    }


@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluate_repeats_the_runs_own_figures(small_run, tmp_path, split):
    """With that split alone: what was measured on the training split is in the checkpoint."""
    shutil.copytree(small_run, tmp_path / "small")
    shutil.copytree(small_run.parents[1] / "data" / split, tmp_path / "data" / split)
    config = tmp_path / "small/config.yaml"
    config.write_text(config.read_text().replace(str(small_run.parents[1] / "data"), str(tmp_path / "data")))
    result = json.loads((small_run / "result.json").read_text())
    found = launch.evaluate(tmp_path / "small", split, "best")
    assert {path.name for path in (tmp_path / "data").iterdir()} == {split}
    assert set(found) == {key for key in result if key.startswith(f"{split}.")}
    assert found == {key: pytest.approx(result[key], rel=1e-6) for key in found}


def test_evaluate_takes_the_checkpoint_it_is_told(small_run, tmp_path):
    shutil.copytree(small_run, tmp_path / "small")
    last = launch.evaluate(tmp_path / "small", "valid", "last")
    log = [json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()]
    own = [line for line in log if line["kind"] == "eval" and line["split"] == "valid"][-1]
    assert last["valid.click.auc"] == pytest.approx(own["click.auc"], rel=1e-6)


def test_more_rows_than_are_kept_are_evaluated_in_bounded_memory_and_it_says_so(small_run, tmp_path, monkeypatch):
    shutil.copytree(small_run, tmp_path / "small")
    monkeypatch.setattr(evaluation, "EXACT_ROWS", 10)
    told = []
    monkeypatch.setattr(launch.runlog, "note", lambda path, kind, **entry: told.append(entry.get("text")))
    found = launch.evaluate(tmp_path / "small", "test", "best")
    own = json.loads((small_run / "result.json").read_text())["test.click.auc"]
    assert abs(found["test.click.auc"] - own) <= found["test.click.auc_error"] < 1e-2
    assert any("test: of more than" in text and "(evaluate.memory: auto)" in text for text in told)


def test_evaluate_refuses_an_unknown_split(small_run):
    with pytest.raises(BadInput, match="--split: 'tests' is none of train, valid, test"):
        launch.evaluate(small_run, "tests", "best")


HOLD = """
import fcntl, shutil, sys, time
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(float(sys.argv[2]))
if len(sys.argv) > 3:
    shutil.rmtree(sys.argv[3])
"""


def hold(run, seconds, *removed):
    """Have another process hold a run for some seconds, and remove a folder at the end."""
    run.mkdir()
    arguments = [run / launch.LOCK, seconds, *removed]
    other = subprocess.Popen([sys.executable, "-c", HOLD, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    return other


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return samples.write(tmp_path_factory.mktemp("data") / "data")


def test_a_run_is_trained_by_one_process_at_a_time(data, tmp_path, monkeypatch):
    monkeypatch.setattr("livetrain.cluster.alone.PATIENCE_S", 0.5)
    with hold(tmp_path / "small", 60) as other:
        with pytest.raises(BadInput, match=r"small: another process is training this run; wait for its end"):
            launch.train(samples.recipe(data), tmp_path)
        other.kill()
    assert [path.name for path in (tmp_path / "small").iterdir()] == [launch.LOCK]  # nothing of the other's is touched


@pytest.mark.slow
def test_a_process_on_its_way_out_is_waited_for(data, tmp_path):
    with hold(tmp_path / "small", 2):
        assert launch.train(samples.recipe(data, train__epochs=1), tmp_path)["step"] > 0


@pytest.mark.slow
def test_a_lock_goes_with_the_folder_of_a_refused_run(data, tmp_path):
    """Whoever waited for it holds the run's new lock, not the one that is gone."""
    with hold(tmp_path / "small", 2, tmp_path / "small"):
        launch.train(samples.recipe(data, train__epochs=1), tmp_path)
    assert (tmp_path / "small" / launch.LOCK).exists()


def test_storage_without_locks_is_taken_as_it_is(data, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOTSUP, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert launch.train(samples.recipe(data, train__epochs=1), tmp_path)["step"] > 0


def test_runs_without_a_name_have_a_folder_each(data, tmp_path, monkeypatch):
    """Started in one second, at the same time: each makes a folder of its own."""
    monkeypatch.setattr(launch.time, "strftime", lambda form: "20261129-120000")
    monkeypatch.setattr(launch, "_train", lambda recipe, run, test: {"name": recipe.name, "run": run})
    monkeypatch.setattr(launch, "_show", lambda *_: None)
    recipe = samples.recipe(data).model_copy(update={"name": None})
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: launch.train(recipe, tmp_path / "runs"), range(8)))
    wanted = {f"din-20261129-120000{tail}" for tail in ("", *(f"-{n}" for n in range(2, 9)))}
    assert {result["name"] for result in found} == wanted
    assert all(result["run"] == tmp_path / "runs" / result["name"] for result in found)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == wanted


def test_a_place_without_room_for_a_nameless_run_is_named(data, tmp_path):
    (tmp_path / "runs").symlink_to(tmp_path / "nowhere/deeper")
    (tmp_path / "nowhere").write_text("a file")
    with pytest.raises(BadInput, match=r"cannot write here \(.*\); choose another folder with --runs"):
        launch.train(samples.recipe(data).model_copy(update={"name": None}), tmp_path / "runs")


def exporting(run):
    """The recipe of a run like `small_run`, which ends with an export."""
    return load_recipe(run / "config.yaml", ["export.after_training=true", "export.parity_rows=200"])


@pytest.fixture
def trained(small_run, tmp_path):
    """A run that was killed after its last step, report and all, and before its export."""
    return shutil.copytree(small_run, tmp_path / "small")


def test_a_run_ends_with_the_export_of_its_best_checkpoint(tmp_path):
    data = samples.write(tmp_path / "data", rows=600)
    result = launch.train(samples.recipe(data, train__epochs=1, export__after_training=True), tmp_path)
    assert manifest.read(tmp_path / "small/export") is not None
    signature = json.loads((tmp_path / "small/export/signature.json").read_text())
    assert signature["checkpoint"]["step"] == result["best_step"]
    with pytest.raises(BadInput, match="this run is finished"):
        launch.train(samples.recipe(data, train__epochs=1, export__after_training=True), tmp_path)


def test_a_run_that_was_killed_in_its_export_exports_and_trains_no_step_again(trained):
    log = (trained / "metrics.jsonl").read_text()
    launch.train(exporting(trained), trained.parent)
    assert manifest.damage(trained / "export", manifest.read(trained / "export")) is None
    assert (trained / "metrics.jsonl").read_text() == log


@pytest.mark.slow
def test_an_export_from_before_the_runs_end_is_replaced(trained):
    recipe = exporting(trained)
    launch.train(recipe, trained.parent)
    made = (trained / "export" / manifest.MANIFEST).stat()
    os.utime(trained / "export" / manifest.MANIFEST, ns=(0, (trained / "result.json").stat().st_mtime_ns - 1))
    launch.train(recipe, trained.parent)
    assert (trained / "export" / manifest.MANIFEST).stat().st_mtime_ns > made.st_mtime_ns
    with pytest.raises(BadInput, match="this run is finished"):
        launch.train(recipe, trained.parent)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        pytest.param(
            BadInput("tables: too large"),
            BadInput,
            "tables: too large; the run itself is whole, and `livetrain export",
            marks=pytest.mark.slow,
        ),
        (OSError("no space"), RuntimeError, r"the export failed \(OSError: no space\); the run itself is whole"),
        (KeyboardInterrupt(), KeyboardInterrupt, "small was interrupted; it is trained"),
    ],
)
def test_an_export_that_fails_leaves_the_run_whole(trained, monkeypatch, error, kind, said):
    def fail(run):
        raise error

    (trained / "report.png").unlink()
    recipe = exporting(trained)
    with monkeypatch.context() as patch:
        patch.setattr(launch.export, "export", fail)
        with pytest.raises(kind, match=said):
            launch.train(recipe, trained.parent)
    assert (trained / "report.png").exists()
    assert not launch.complete(recipe, trained)
    launch.train(recipe, trained.parent)
    assert launch.complete(recipe, trained)


def test_tables_that_memory_cannot_hold_are_not_exported(trained, monkeypatch):
    monkeypatch.setattr("livetrain.trainers.train.memory.free_memory", lambda: 1000)
    with pytest.raises(BadInput, match="has 0.0 MiB free; set export.tables: mapped, or export it on a larger one"):
        launch.export.export(trained)
