"""A run of a range of workers on machines of Ray that die, join and are told to leave."""

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from livetrain.cluster import launch
from livetrain.configs.load import dump_recipe
from livetrain.trainers.runtime import run_folder, runlog, signals
from livetrain.trainers.train.stopping import Listener
from tests import machines, samples


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[machines.Machines]:
    with machines.started(tmp_path_factory.mktemp("home")) as started:
        for name in ("a", "b", "c"):
            started.join(name)
        yield started


def trained(run: Path) -> list[dict]:
    return [line for line in runlog.read(run) if line["kind"] == "train"]


def notes(run: Path) -> list[str]:
    return [line["text"] for line in runlog.read(run) if line["kind"] == "note"]


def workers(run: Path) -> list[int]:
    """How many workers its attempts had so far."""
    starts = [text.split() for text in notes(run)]
    return [int(words[1]) for words in starts if words[0] == "starting" and words[2].startswith("worker")]


@pytest.mark.slow
def test_machines_come_and_go_and_every_step_has_its_rows(cluster, tmp_path, monkeypatch):
    """One dies, one joins, one is told to leave: the steps are those of a run in one process that nobody disturbs."""
    data = samples.write(tmp_path / "data", rows=20_000)
    sgd = {"optimizers__sparse__kind": "sgd", "optimizers__dense__kind": "sgd"}
    recipe = samples.recipe(data, train__epochs=1000, train__checkpoint_every=20, **sgd)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    run = tmp_path / "small"
    command = cluster.livetrain(
        "train", str(tmp_path / "recipe.yaml"), "--runs", str(tmp_path), "cluster.workers={min: 1, max: 3}"
    )

    def until(met: Callable[[], bool], seconds: float = 400) -> None:
        end = time.monotonic() + seconds
        while not met():
            assert command.poll() is None, command.communicate()[0]
            assert time.monotonic() < end, notes(run)
            time.sleep(0.2)

    def on(count: int, attempts: int) -> None:
        """Wait until that attempt has trained some steps."""
        until(lambda: len(workers(run)) == attempts)
        assert workers(run)[-1] == count
        until(
            lambda: sum(text.startswith("tables: ") for text in notes(run)) == attempts
        )  # as each says when it begins
        last = max((line["step"] for line in trained(run)), default=0)
        until(lambda: max((line["step"] for line in trained(run)), default=0) > last + 30)

    on(3, attempts=1)
    cluster.kill("b")
    on(2, attempts=2)
    cluster.join("d")
    on(3, attempts=3)
    cluster.notify("c")
    on(2, attempts=4)
    os.kill(command.pid, signal.SIGTERM)
    out, _ = command.communicate(timeout=200)
    assert command.returncode == 143, out
    found = trained(run)
    asks = itertools.count(1)
    monkeypatch.setattr(Listener, "told", lambda listener: next(asks) % 50 == 0 and enough())

    def enough() -> bool:
        return len(trained(tmp_path / "whole")) >= len(found)

    with pytest.raises(signals.Stopped):
        launch.train(recipe.model_copy(update={"name": "whole"}), tmp_path)
    whole = trained(tmp_path / "whole")
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))
    assert [line["samples"] for line in found] == [line["samples"] for line in whole[: len(found)]]
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in whole[: len(found)]], abs=1e-3)
    asked = [text for text in notes(run) if "save, and start again" in text]
    assert asked == [
        "there is room for 3 workers: the 2 save, and start again as so many",
        "1 machine of the run is to leave: its workers save, and start again",
    ]
    parts = run_folder.content(run_folder.committed(run)[-1])["position"]["workers"]
    assert [part["workers"] for part in parts] == [3, 2, 3, 2]
    lost = next(int(text.split()[-1]) for text in notes(run) if text.startswith("resumed at step"))
    assert parts[1]["from_step"] == lost
