"""wandb for real, offline: what it is sent, under which id, and that nothing of it can stop a run."""

import contextlib
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from livetrain.cli import main as cli
from livetrain.cluster import launch
from livetrain.configs.errors import BadInput
from livetrain.trainers.observe import weights_and_biases
from livetrain.trainers.observe.weights_and_biases import Tracker
from livetrain.trainers.runtime import ranks, runlog
from livetrain.trainers.train import preflight
from livetrain.trainers.train.loop import Job, Trainer
from livetrain.trainers.train.probes.step_times import PARTS
from tests import samples
from tests.trainers.observe.wandb_file import records

SECTION = {"project": "tests", "mode": "offline", "tags": ["small"], "group": "some"}


@pytest.fixture(scope="module", autouse=True)
def nobody(tmp_path_factory):
    """A machine on which nobody has logged in to wandb."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_DIR", "NETRC"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def tracked(tmp_path_factory) -> Path:
    """A finished and exported run that wandb followed."""
    folder = tmp_path_factory.mktemp("tracked")
    data = samples.write(folder / "data", rows=960)
    launch.train(samples.recipe(data, train__epochs=1, train__log_every=2, wandb=SECTION), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["livetrain", "export", str(folder / "small")])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert not end.value.code
    return folder / "small"


def sent(run: Path, kind: str) -> list:
    """Return the records of a kind that a run has sent, in order."""
    return [getattr(record, kind) for record in records(run) if record.WhichOneof("record_type") == kind]


def values(items) -> dict:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_every_line_of_the_log_is_sent_with_its_step(tracked):
    history = [values(record.item) for record in sent(tracked, "history")]
    assert [line["step"] for line in history if "report.path" in line] == [10]
    found = [{k: v for k, v in line.items() if k[0] != "_"} for line in history if "report.path" not in line]
    wanted = [line for line in runlog.read(tracked) if line["kind"] in ("train", "eval")]
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    for line, own in zip(found, wanted, strict=True):
        split = own.get("split", "train")
        figures = {f"{split}/{k}": v for k, v in own.items() if k not in ("kind", "time", "split", "samples", "step")}
        assert line == {"step": own["step"], **figures}
    assert {f"train/ms.{part}" for part in PARTS} < set(found[0])
    assert [m.step_metric for m in sent(tracked, "metric") if m.glob_name == "*"] == ["step"] * 2


def test_config_report_result_and_export_are_sent_under_one_id(tracked):
    runs = sent(tracked, "run")
    name = (tracked / "wandb/id").read_text()
    assert name.startswith("small-")
    assert [(run.run_id, run.project, run.display_name, list(run.tags), run.run_group) for run in runs] == [
        (name, "tests", "small", ["small"], "some")
    ] * 2  # training and its report together, and the command that exported it
    assert len([*(tracked / "wandb").glob("offline-run-*")]) == 2
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert {key: config[key] for key in config if key != "_wandb"} == yaml.safe_load(
        (tracked / "config.yaml").read_text()
    )
    result = json.loads((tracked / "result.json").read_text())
    summary = {}
    for record in sent(tracked, "summary"):
        summary |= values(record.update)
    assert summary["test.click.auc"] == result["test.click.auc"]
    pictures = list((tracked / "wandb").glob("offline-run-*/files/media/images/report*.png"))
    assert [picture.read_bytes() for picture in pictures] == [(tracked / "report.png").read_bytes()]
    pages = list((tracked / "wandb").glob("offline-run-*/files/media/html/report_page*.html"))
    assert [page.read_bytes() for page in pages] == [(tracked / "report.html").read_bytes()]
    (artifact,) = sent(tracked, "artifact")
    assert (artifact.run_id, artifact.type, artifact.name) == (name, "model", "small-model")
    assert {entry.path for entry in artifact.manifest.contents} == {p.name for p in (tracked / "export").iterdir()}
    assert json.loads(artifact.metadata)["parity"]["largest_difference"] <= 1e-5


@pytest.mark.parametrize("fails", [False, True])
def test_what_one_process_sends_is_finished_once(tmp_path, monkeypatch, fails):
    """As failed where it ends by an error, whatever was sent before."""
    ended = []

    class Open:
        def finish(self, exit_code: int) -> None:
            ended.append(exit_code)

    monkeypatch.setattr(Tracker, "_start", lambda self: setattr(self, "_run", Open()))
    recipe = samples.recipe(tmp_path, wandb=SECTION)
    with contextlib.suppress(ZeroDivisionError), weights_and_biases.shared(recipe, tmp_path):
        with Tracker(recipe, tmp_path) as first:
            pass
        with Tracker(recipe, tmp_path) as second:
            assert second._run is first._run
            assert not ended
            if fails:
                raise ZeroDivisionError
    assert ended == [int(fails)]
    with Tracker(recipe, tmp_path) as alone:
        assert alone._run is not first._run
    assert ended == [int(fails), 0]


def test_what_is_secret_is_not_sent(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["livetrain", "train", "data.path=s3://me:hunter2@bucket/data"])
    recipe = samples.recipe("s3://me:hunter2@bucket/data", wandb=SECTION)
    with Tracker(recipe, tmp_path) as tracker:
        tracker.line("train", {"step": 1, "loss": 0.5})
    assert len(sent(tmp_path, "history")) == 1
    files = [path for path in (tmp_path / "wandb").rglob("*") if path.is_file()]
    assert any(b"s3://bucket/data" in path.read_bytes() for path in files)
    assert not any(b"hunter2" in path.read_bytes() for path in files)


def train_plainly(made: Job) -> bool:
    """Train, and return whether this process knows wandb."""
    Trainer(made, torch.device("cpu")).run()
    return "wandb" in sys.modules


@pytest.mark.slow
def test_a_recipe_without_wandb_never_imports_it(two_ranks, tmp_path):
    recipe = samples.recipe(samples.write(tmp_path / "data", rows=480), train__epochs=1)
    made = Job(recipe, tmp_path, *preflight.check(recipe, lambda text: None))
    assert two_ranks.run(train_plainly, made) == [False, False]
    assert not (tmp_path / "wandb").exists()


def test_only_rank_0_opens_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    with Tracker(samples.recipe("data", wandb=SECTION), tmp_path) as tracker:
        tracker.line("train", {"step": 1, "loss": 0.5})
    assert list(tmp_path.iterdir()) == []


def test_without_a_login_training_goes_on_after_one_warning(tmp_path, caplog):
    data = samples.write(tmp_path / "data", rows=480)
    recipe = samples.recipe(data, train__epochs=1, wandb={"project": "tests"})
    result = launch.train(recipe, tmp_path)
    assert result["step"] == 5
    notes = [line["text"] for line in runlog.read(tmp_path / "small") if line["kind"] == "note"]
    (warning,) = [text for text in notes if "wandb" in text]
    assert warning.startswith("wandb failed, the run goes on without it: No API key configured")
    assert [record.message for record in caplog.records if record.name == "livetrain"] == []


def test_a_failure_on_the_way_is_the_last(tmp_path):
    class Broken:
        def __init__(self) -> None:
            self.asked = 0

        def log(self, line: dict) -> None:
            self.asked += 1
            raise BrokenPipeError("the service is gone: https://me:hunter2@host/x")

    warnings = []
    tracker = Tracker(samples.recipe("data", wandb=SECTION), tmp_path, warnings.append)
    (tmp_path / "wandb").mkdir()
    tracker._run = broken = Broken()
    for step in (1, 2, 3):
        tracker.line("train", {"step": step})
    tracker.__exit__(None, None, None)
    assert broken.asked == 1
    assert warnings == ["wandb failed, the run goes on without it: the service is gone: https://host/x"]


def test_a_missing_package_is_said_before_anything_starts(tmp_path, monkeypatch):
    def missing(name: str) -> str:
        raise weights_and_biases.PackageNotFoundError(name)

    monkeypatch.setattr(weights_and_biases, "version", missing)
    with pytest.raises(BadInput, match=r"wandb: the package is not installed; pip install 'livetrain\[wandb\]', or"):
        launch.train(samples.recipe(tmp_path / "none", wandb=SECTION), tmp_path)
    assert not (tmp_path / "small").exists()
