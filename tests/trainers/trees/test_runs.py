"""What is done with runs of trees: nights, sweeps, comparisons, splits that memory does not hold."""

import json
import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from livetrain.cluster import fusing, launch
from livetrain.cluster.nightly import night
from livetrain.cluster.sweep import tune
from livetrain.configs.load import load_recipe
from livetrain.modules.fitted import fitted
from livetrain.modules.trees.columns import Column
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.export.fitted import state_in
from livetrain.trainers.fitted import rows
from livetrain.trainers.observe.compare import compared, draw, remarks
from livetrain.trainers.runtime import run_folder
from livetrain.trainers.trees import boost, encode
from tests import pictures
from tests.trainers.trees.days import DAYS, ROWS, launched, recipe, written

BRIEF = {"tasks": {"click": {"label": "click"}}, "export": {"after_training": False}}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("days"))


def test_a_night_goes_on_with_the_trees_of_the_night_before(data, tmp_path):
    settled = recipe(data, {"more_trees": 15})
    first = launched(settled, tmp_path, "first")
    begun = settled.model_copy(update={"train": settled.train.model_copy(update={"warm_start": None})})
    begun = load_recipe({**json.loads(begun.model_dump_json(exclude_none=True)), "train": {"warm_start": str(first)}})
    second = launched(begun, tmp_path, "second")
    old, new = (state_in(run_folder.checkpoint(folder, 1)) for folder in (first, second))
    for task in settled.tasks:
        count = len(old[f"roots.{task}"])
        assert count <= len(new[f"roots.{task}"]) <= count + 15
        nodes = len(old[f"feature.{task}"])
        np.testing.assert_allclose(new[f"value.{task}"][:nodes], old[f"value.{task}"])
        np.testing.assert_array_equal(new[f"threshold.{task}"][:nodes], old[f"threshold.{task}"])


def test_nights_publish_trees_and_go_on_with_them(data, tmp_path):
    """Two nights, the second of which adds to the trees of the first, and searches the fused score's weights anew."""
    fused = {"score": "click ** a * like ** b", "weights": {"a": [0, 3], "b": [0, 3]}, "trials": 4}
    tasks = {name: {"label": name, "unknown": True} for name in ("click", "like")}
    tree = recipe(data, {"more_trees": 5, "trees": 10}, tasks=tasks, fusion=fused, name="trees")
    tree = tree.model_dump(mode="json", exclude_none=True)
    learned_by, searched, said = [], [], list[str]()
    for train, valid, test in (("1..2026-01-02", 3, 4), ("1..2026-01-03", 4, 5)):
        days = {"train": f"2026-01-0{train}", "valid": f"2026-01-0{valid}..2026-01-0{valid}"}
        days["test"] = f"2026-01-0{test}..2026-01-0{test}"
        tonight = load_recipe({**tree, "data": {**tree["data"], "days": days}})
        place, day = str(tmp_path / "published"), f"2026-01-0{test}"
        pointer = night(tonight, tmp_path / "runs", day, place, 1.0, 3, False, said.append)
        assert pointer is not None
        assert pointer["version"] == day
        own = tmp_path / "runs" / f"trees-{day}"
        learned_by.append(state_in(run_folder.checkpoint(own, 1)))
        searched.append(json.loads((own / "fusion.json").read_text()))
        served = json.loads((tmp_path / "published" / pointer["folder"] / "signature.json").read_text())
        assert served["fusion"]["weights"] == searched[-1]["weights"]
        assert fusing.fuse(own)["tried"] == searched[-1]["tried"]  # by this night's trees and validation days
    first, second = learned_by
    nodes = len(first["value.click"])
    np.testing.assert_array_equal(second["value.click"][:nodes], first["value.click"])
    assert len(first["roots.click"]) <= len(second["roots.click"]) <= len(first["roots.click"]) + 5
    one, other = ([point["metrics"] for point in found["tried"]] for found in searched)
    assert len(one) == len(other) == 4
    assert all(a != b for a, b in zip(one, other, strict=True))


def test_runs_of_trees_are_compared(data, tmp_path):
    asked = BRIEF | {"evaluate": {"group_by": "user", "bootstrap": 50}}
    many, few = (launched(recipe(data, {"trees": trees}, **asked), tmp_path, f"of-{trees}") for trees in (20, 2))
    found = compared([many, few], None, "test")
    assert found.recipes() == {"model.trees": [20, 2]}
    figures = [json.loads((run / "result.json").read_text())["test.click.auc"] for run in (many, few)]
    difference, ends = found.difference(1, "test.click.auc")
    assert difference == pytest.approx(figures[1] - figures[0])
    assert ends[0] <= difference <= ends[1]  # drawn of the same users
    assert difference < 0
    pictures.check(draw(found))
    (told,) = remarks(found)
    assert "95 % intervals" in told


def test_of_a_split_memory_holds_a_batch_and_no_numbers(data, tmp_path):
    """However many rows there are: they come a batch at a time, and LightGBM reads the file that they were put in."""
    settled = recipe(data, {"trees": 3}, **BRIEF)
    read, alive, most = list[int](), 0, 0

    def watched(given: Any) -> Any:
        def freed() -> None:
            nonlocal alive
            alive -= 1

        def each() -> Any:
            nonlocal alive, most
            for batch in given():
                for part in (batch.labels, batch.inputs[0]["item"]):
                    weakref.finalize(part, freed)
                alive += 2
                most = max(most, alive)
                read.append(len(batch.labels))
                yield batch

        return each

    splits = [watched(rows.passes(Source.open(settled, split), settled)) for split in ("train", "valid")]
    fitted(settled).fit(*splits, tmp_path)
    assert len(read) > 10
    assert most <= 6  # of the batch that was there, of the next, and of the last one of the split before
    numbers = np.memmap(tmp_path / "more.f32", np.float32, "w+", shape=(30_000, 64))
    numbers[:] = np.random.default_rng(0).normal(size=numbers.shape)
    labels = (numbers[:, :1] > numbers[:, 1:2]).astype(np.float32)
    encoded = encode.Encoded(numbers, labels, np.ones_like(labels), np.zeros(len(labels), np.int32))
    columns = [Column(f"c{at}", 0) for at in range(64)]
    tracemalloc.start()
    try:
        grower = boost.Grower(settled.model, settled, columns, encoded, encoded, len(labels))
        assert grower.grow(0, 3).num_trees()
        assert tracemalloc.get_traced_memory()[1] < numbers.nbytes / 4
    finally:
        tracemalloc.stop()


def test_of_a_split_no_more_rows_are_read_ahead_than_the_windows_hold(data, monkeypatch):
    """Where they are small; a split that the shuffle's memory holds would else be read whole."""
    sizes, load = list[int](), Reader._load

    def watched(self: Any, pieces: Any, epoch: int, shard: int, window: Any) -> Any:
        sizes.append(window.stop - window.start)
        return load(self, pieces, epoch, shard, window)

    monkeypatch.setattr(Reader, "_load", watched)
    monkeypatch.setattr(rows, "_WINDOWS_GB", 1e-6)
    settled = recipe(data)
    read = sum(len(each.labels) for each in rows.passes(Source.open(settled, "train"), settled)())
    assert read == sum(sizes) == ROWS * len(DAYS["train"])
    assert max(sizes) <= 2 * settled.data.batch_size


@pytest.mark.slow  # starts Ray
def test_trees_are_swept(data, tmp_path):
    space = {"model.rate": {"log_uniform": [1e-3, 0.3]}, "model.trees": {"choice": [20]}}
    try:
        sweep = tune(recipe(data, **BRIEF), space, tmp_path / "sweep", samples=2, metrics=["valid/click.auc"])
    finally:
        ray.shutdown()
    assert [trial.state for trial in sweep.trials] == ["finished", "finished"]
    one, other = (trial.scores[0] for trial in sweep.trials)
    assert one != other
    for trial in sweep.trials:  # by the rate that was drawn, and the test days were not looked at
        result = json.loads((sweep.run(trial) / "result.json").read_text())
        assert result["valid.click.auc"] == trial.scores[0]
        assert not any(key.startswith("test.") for key in result)
    (tmp_path / "best.yaml").write_text(sweep.winner())
    again = launch.train(load_recipe(tmp_path / "best.yaml", ["name=again"]), tmp_path)
    assert again["valid.click.auc"] == sweep.best.scores[0] == max(one, other)
