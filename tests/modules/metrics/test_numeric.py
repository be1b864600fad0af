"""Metrics of numbers against every pair counted one by one."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from livetrain.modules.metrics import numeric
from livetrain.modules.tasks.binary import Binary
from livetrain.modules.tasks.regression import Regression
from livetrain.modules.tasks.watch_time import WatchTime
from livetrain.trainers.evaluate.evaluation import Evaluation

VALUES = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5, 40.0, 1e4])
ROWS = st.lists(st.tuples(VALUES, VALUES), max_size=25)


def pairs(labels: list[float], predictions: list[float]) -> float:
    found = [
        0.5 if p == q else float((y < z) == (p < q))
        for (y, p), (z, q) in itertools.combinations(zip(labels, predictions, strict=True), 2)
        if y != z
    ]
    return sum(found) / len(found) if found else math.nan


@given(ROWS)
def test_xauc_counts_pairs(rows):
    labels, predictions = (list(x) for x in zip(*rows, strict=True)) if rows else ([], [])
    found = numeric.xauc(np.array(labels), np.array(predictions))
    assert found == pytest.approx(pairs(labels, predictions), nan_ok=True)


@given(ROWS.filter(len))
def test_the_histogram_is_within_its_bound(rows):
    labels, predictions = (np.array(x, np.float32) for x in zip(*rows, strict=True))
    histogram = numeric.Histogram()
    for part in (slice(0, 7), slice(7, None)):
        histogram.count(labels[part], predictions[part])
    exact, found = numeric.figures(labels, predictions), histogram.figures()
    error = found.pop("xauc_error")
    assert found == pytest.approx(exact, nan_ok=True, abs=1e-9)  # these values lie in bins of their own
    assert math.isnan(error) or error >= abs(found["xauc"] - exact["xauc"]) - 1e-9


def test_the_bound_holds_where_bins_are_shared():
    draw = np.random.default_rng(0)
    labels = np.where(draw.random(3000) < 0.4, 0, draw.lognormal(1, 0.3, 3000))
    predictions = labels * draw.lognormal(0, 1, 3000) + 0.1
    histogram = numeric.Histogram()
    histogram.count(labels, predictions)
    exact, found = numeric.figures(labels, predictions), histogram.figures()
    assert 0 < abs(found["xauc"] - exact["xauc"]) <= found["xauc_error"] < 0.02


def test_errors_and_ratio():
    found = numeric.figures(np.array([0.0, 3.0, 1.0]), np.array([1.0, 1.0, 1.0]))
    assert found == {
        "xauc": 0.5,
        "mae": pytest.approx(1),
        "rmse": pytest.approx(math.sqrt(5 / 3)),
        "pcoc": pytest.approx(3 / 4),
    }
    assert math.isnan(numeric.xauc(np.array([1.0, 2.0]), np.array([math.nan, 1.0])))


KINDS = {"click": Binary(), "watch": WatchTime(), "gift": Regression()}


def columns(size: int = 400) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    logits = torch.randn(size, 3, generator=draw)
    labels = (torch.rand(size, 3, generator=draw) < 0.5).float()
    labels[:, 1:] *= torch.rand(size, 2, generator=draw) * 30
    labels[::4, 2] = math.nan
    weights = (torch.rand(size, generator=draw) < 0.9).float()
    return {"logits": logits, "labels": labels, "weights": weights, "groups": torch.arange(size) % 20}


def measured(memory: str, rows: slice = slice(None)) -> dict[str, float]:
    evaluation = Evaluation(KINDS, memory=memory)
    parts = {name: column[rows] for name, column in columns().items()}
    for at in range(0, len(parts["weights"]), 64):
        evaluation.update(**{name: column[at : at + 64] for name, column in parts.items()})
    found = evaluation.compute()
    assert evaluation.curves()["watch"] == {"calibration": [], "auc_by_length": []}
    assert evaluation.curves()["click"]["calibration"]
    return found


def test_an_evaluation_measures_each_task_by_its_kind():
    found, given_ = measured("exact"), columns()
    real = given_["weights"] > 0
    for t, (task, kind) in enumerate(KINDS.items()):
        known = real & ~given_["labels"][:, t].isnan()
        if kind.numeric:
            labels, predictions = given_["labels"][known, t].numpy(), kind(given_["logits"][known, t]).numpy()
            wanted = numeric.figures(labels, predictions)
            assert {name: found[f"{task}.{name}"] for name in wanted} == pytest.approx(wanted)
            assert f"{task}.auc" not in found
    assert {"click.auc", "click.gauc"} <= found.keys()
    bounded = measured("bounded")
    for key in found:
        assert bounded[key] == pytest.approx(found[key], abs=bounded.get(f"{key}_error", 1e-9) + 1e-9), key


def on_a_rank(memory: str) -> dict[str, float]:
    import torch.distributed as dist

    return measured(memory, [slice(0, 150), slice(150, 400)][dist.get_rank()])


@pytest.mark.parametrize("memory", ["exact", "bounded"])
def test_two_ranks_measure_the_same(two_ranks, memory):
    first, second = two_ranks.run(on_a_rank, memory)
    assert first == second == pytest.approx(measured(memory))
