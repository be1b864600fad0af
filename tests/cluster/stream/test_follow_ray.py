"""A follower's two ranks under Ray, and a follower that is told to stop."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from livetrain.cli import main as cli
from livetrain.cluster.stream import follow
from livetrain.configs.load import dump_recipe
from livetrain.trainers.export import export, publish
from livetrain.trainers.runtime import run_folder, runlog
from tests import minutes as made

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def night(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("night")
    made.days(folder, made.DAYS)
    made.night(made.recipe(folder), folder / "runs")
    made.write(folder, 6)
    return folder


def increments(runs: Path) -> list[dict]:
    return [line for line in runlog.read(runs / "din-follow/2022-05-04") if line["kind"] in ("eval", "train")]


def weights(runs: Path) -> dict[str, torch.Tensor]:
    line = runs / "din-follow/2022-05-04"
    model = export.plain_model(run_folder.recipe_of(line), run_folder.find_checkpoint(line, "last"))
    return model.state_dict()


def test_two_ranks_learn_what_one_does(night, tmp_path):
    import ray

    places = {}
    for workers in (0, 2):
        places[workers] = tmp_path / str(workers)
        shutil.copytree(night / "runs", places[workers] / "runs", symlinks=True)
        recipe = made.recipe(night, cluster__workers=workers)
        try:
            follow.follow(recipe, places[workers] / "runs", str(places[workers] / "models"), 120, once=True)
        finally:
            ray.shutdown()
    alone, two = (increments(places[workers] / "runs") for workers in (0, 2))
    assert [x.get("samples") for x in alone] == [x.get("samples") for x in two]
    for one, other in zip(alone, two, strict=True):
        names = ("loss", "click.auc", "click.log_loss", "rows")
        known = [{name: line[name] for name in names if name in line} for line in (one, other)]
        assert known[0] == pytest.approx(known[1], rel=1e-4)
    for name, value in weights(places[0] / "runs").items():
        torch.testing.assert_close(weights(places[2] / "runs")[name], value, rtol=1e-4, atol=1e-5)
    first, second = (publish.current(str(place / "models")) for place in places.values())
    assert (first["version"], first["fence"], first["step"]) == (second["version"], second["fence"], second["step"])
    assert second["version"] == "2022-05-03T00-06-00Z"


def test_a_follower_that_is_told_to_stop_says_how_it_goes_on(night, tmp_path):
    shutil.copytree(night / "runs", tmp_path / "runs", symlinks=True)
    (tmp_path / "din.yaml").write_text(dump_recipe(made.recipe(night)))
    command = [sys.executable, "-m", "livetrain", "follow", str(tmp_path / "din.yaml"), "--every", "2m"]
    command += ["--publish", str(tmp_path / "models"), "--runs", str(tmp_path / "runs")]
    with subprocess.Popen(
        command, cwd=Path(cli.__file__).parents[1], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as follower:
        end = time.monotonic() + 240
        while not (tmp_path / "models/current.json").exists() and time.monotonic() < end:
            time.sleep(0.5)
        follower.send_signal(signal.SIGTERM)
        _, said = follower.communicate(timeout=120)
    assert follower.returncode == 143
    assert "din-follow was stopped; started again it goes on from its newest checkpoint" in said
    assert json.loads((tmp_path / "models/current.json").read_text())["version"] == "2022-05-03T00-06-00Z"
