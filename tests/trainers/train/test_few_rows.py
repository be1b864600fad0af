"""What a run is told that leaves each GPU a few rows of a step."""

import re

import pytest

from livetrain.cluster import doctor
from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe
from livetrain.trainers.runtime import runlog
from livetrain.trainers.train import few_rows
from tests import samples
from tests.trainers.train.test_loop import job, log, train

FEW = few_rows.FEW


def recipe(rows: int, workers: int, **data) -> Recipe:
    data = {"batch_size": rows * workers, "shards": workers, **data}
    return load_recipe("configs/recipes/din_ml1m.yaml", data=data, cluster={"workers": workers})


@pytest.mark.parametrize(("rows", "workers"), [(24, 64), (1536, 1), (FEW - 1, 8)])
def test_what_a_few_rows_per_gpu_cost_is_told(rows, workers):
    """The gain is that of the same arithmetic, step by step: launches first, then the rows' own work."""
    said = few_rows.advice(recipe(rows, workers), workers, "cuda")
    assert f" {rows * workers:,} rows per step are {rows:,} per GPU" in said
    assert "by an estimate 4,096 per GPU (data.batch_size_per_worker: 4096)" in said
    gain = float(re.search(r"train ([\d.]+) times as many", said).group(1))
    seconds = {n: 0.006 + n / 14e6 for n in (rows, 4096)}
    assert gain == pytest.approx((4096 / seconds[4096]) / (rows / seconds[rows]), rel=0.06)
    assert doctor.rows_are_told(recipe(rows, workers), workers, "cuda") == said
    assert few_rows.advice(recipe(rows, workers), workers, "cpu") is None


def test_enough_rows_are_told_nothing_and_requests_have_many():
    assert few_rows.advice(recipe(FEW, 8), 8, "cuda") is None
    requests = recipe(FEW // 8, 8, layout="request", candidates=8)
    assert few_rows.advice(requests, 8, "cuda") is None
    assert doctor.rows_are_told(requests, 8, "cuda") == "4,096 requests per step, 512 on each of 8 workers"


def test_what_is_advised_divides_among_the_shards():
    few = recipe(30, 64, shards=64 * 3)
    wanted = re.search(r"data.batch_size_per_worker: (\d+)", few_rows.advice(few, 64, "cuda")).group(1)
    assert int(wanted) == 4098  # 3 shards each
    changed = load_recipe(few, [f"data.batch_size_per_worker={wanted}"])
    assert few_rows.advice(changed, 64, "cuda") is None


def test_a_run_says_how_few_rows_its_gpus_have(tmp_path, monkeypatch):
    """It knows its batch, and its rates follow that."""
    monkeypatch.setattr(few_rows, "advice", lambda recipe, world, device: f"{device}: few rows on each of {world}")
    changes = {"train__epochs": 1, "optimizers__rates_for_batch": 24}
    made = job(samples.write(tmp_path / "data", rows=96), tmp_path / "run", **changes)
    assert train(made)["result"]["batch_size"] == made.recipe.data.batch_size
    assert "cpu: few rows on each of 1" in [line["text"] for line in runlog.read(made.run) if line["kind"] == "note"]
    assert {line["lr"] for line in log(made.run)} == {2 * made.recipe.optimizers.dense.lr}  # of 96 rows
