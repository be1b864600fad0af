"""Whole runs on requests: trained, evaluated, exported and predicted as the run on the same rows is."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import livetrain
from livetrain.configs.errors import BadInput
from livetrain.trainers.data.write import layout
from livetrain.trainers.data.write.requests import convert
from livetrain.trainers.train import preflight
from tests import samples
from tests.trainers.train import test_loop

ROLES = {"group": "user", "time": "timestamp", "item": "movie", "labels": ["label"], "sequences": ["history", "rating"]}
ROWS, EACH = 480, 4


def write(folder: Path) -> None:
    """Rows of which EACH follow one another with one user, time and history."""
    for number, split in enumerate(layout.SPLITS):
        rng = np.random.default_rng([3, number])
        requests = ROWS // EACH
        user = np.repeat(rng.integers(0, 30, requests), EACH)
        lengths = rng.integers(0, 7, requests)
        events, ratings = ([rng.integers(0, most, n).tolist() for n in lengths] for most in (40, 6))
        movie, rate = rng.integers(0, 40, ROWS), rng.normal(3, 2, ROWS)
        chance = 1 / (1 + np.exp(-(0.8 * (rate - 3) + np.where(user % 3 == 0, 1.0, -0.5))))
        table = {
            "user": pa.array(user),
            "timestamp": pa.array(np.repeat(np.arange(requests) + 1_700_000_000, EACH)),
            "history": pa.array([list(events[n // EACH]) for n in range(ROWS)], layout.list_of(pa.int64())),
            "rating": pa.array([list(ratings[n // EACH]) for n in range(ROWS)], layout.list_of(pa.int64())),
            "movie": pa.array(movie, mask=rng.random(ROWS) < 0.05),
            "rate": pa.array(rate, mask=rng.random(ROWS) < 0.1),
            "label": pa.array((rng.random(ROWS) < chance).astype(np.int8)),
        }
        (folder / split).mkdir(parents=True)
        pq.write_table(pa.table(table), folder / split / "part-0.parquet")
    (folder / layout.MANIFEST).write_text(json.dumps({"roles": ROLES}))


def trained(data: Path, runs: Path, **changes) -> Path:
    asked = {"train__epochs": 20, "train__evaluate_every": 1, "export__after_training": True, **changes}
    return livetrain.train(samples.recipe(data, **asked), runs=runs).folder


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_requests_is_the_run_on_their_rows(tmp_path, workers):
    flat, requests = tmp_path / "flat", tmp_path / "requests"
    write(flat)
    made = convert(flat, requests, most=EACH)["requests"]
    assert {*made["candidates"]} == {"movie", "rate", "label"}
    # A step is an epoch, so that both have the same rows in every step.
    common = {"cluster__workers": workers, "data__shards": 2, "data__shuffle_window": 1}
    rows = trained(flat, tmp_path / "a", data__batch_size=ROWS, **common)
    once = trained(
        requests, tmp_path / "b", data__batch_size=ROWS // EACH, data__layout="request", data__candidates=EACH, **common
    )
    wanted, found = (json.loads((run / "result.json").read_text()) for run in (rows, once))
    metrics = [key for key in wanted if key.startswith(("test.", "valid.")) and isinstance(wanted[key], float)]
    assert len(metrics) > 4
    for key in metrics:
        assert found[key] == pytest.approx(wanted[key], abs=2e-5), key
    livetrain.predict(rows, flat / "test", tmp_path / "scores")
    livetrain.predict(once, requests / "test", tmp_path / "lists")
    livetrain.predict(once, flat / "test", tmp_path / "again")  # rows are scored too
    scores, lists, again = (
        pq.read_table(next((tmp_path / name).glob("*.parquet")))["click_score"] for name in ("scores", "lists", "again")
    )
    assert [len(one) for one in lists.to_pylist()] == [EACH] * (ROWS // EACH)
    flat_lists = np.concatenate(lists.to_pylist())
    np.testing.assert_allclose(flat_lists, scores.to_numpy(), atol=1e-5)
    np.testing.assert_allclose(flat_lists, again.to_numpy(), atol=1e-6)
    assert livetrain.export(once, tmp_path / "small", quantize="int8")["parity"]["largest_difference_of_rank"] < 1e-5


def test_a_run_on_requests_that_was_killed_goes_on_bitwise(tmp_path):
    write(tmp_path / "flat")
    convert(tmp_path / "flat", tmp_path / "requests", most=EACH)
    asked = {"data__batch_size": 24, "data__layout": "request", "data__candidates": EACH, "train__checkpoint_every": 2}
    whole, killed = (test_loop.job(tmp_path / "requests", tmp_path / name, **asked) for name in ("whole", "killed"))
    wanted = test_loop.train(whole)
    assert wanted["result"]["step"] > 8
    test_loop.train(killed, kill_at=7)
    assert test_loop.same(test_loop.train(killed), wanted)
    logs = (
        [(line["step"], line["samples"], line["loss"]) for line in test_loop.log(made.run)] for made in (whole, killed)
    )
    assert next(logs) == next(logs)


@pytest.mark.slow
def test_runs_on_rows_and_on_requests_begin_with_each_other(tmp_path):
    flat, requests = tmp_path / "flat", tmp_path / "requests"
    write(flat)
    convert(flat, requests, most=EACH)
    on_requests = {"data__batch_size": 24, "data__layout": "request", "data__candidates": EACH}
    before = {"rows": trained(flat, tmp_path / "rows", train__epochs=2)}
    before["requests"] = trained(requests, tmp_path / "requests", train__epochs=2, **on_requests)
    begun = {"name": "warm", "train__epochs": 1, "optimizers__dense__lr": 1e-12, "optimizers__sparse__lr": 1e-12}
    for name, data, changes in (("rows", requests, on_requests), ("requests", flat, {})):
        found = trained(data, tmp_path / f"after {name}", train__warm_start=str(before[name]), **begun, **changes)
        wanted, told = (json.loads((run / "result.json").read_text()) for run in (before[name], found))
        assert told["test.click.auc"] == pytest.approx(wanted["test.click.auc"], abs=1e-3)  # as it was begun with


def test_what_tells_candidates_apart_must_be_theirs(tmp_path):
    write(tmp_path / "flat")
    convert(tmp_path / "flat", tmp_path / "requests", most=EACH)
    recipe = samples.recipe(
        tmp_path / "requests",
        data__layout="request",
        data__candidates=EACH,
        model={"kind": "dssm", "key": "user", "item": ["movie"]},
        tasks={"click": {"label": "label", "kind": "retrieval"}},
    )
    with pytest.raises(BadInput, match="model.key: column 'user' of .* has one id per request"):
        preflight.check(recipe, print)
