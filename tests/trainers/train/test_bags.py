"""Runs with bags and crosses: killed and resumed, behind a cache, with combined gradients, exported and predicted."""

import pyarrow.parquet as pq
import pytest
import torch

from livetrain.trainers.export.export import export
from livetrain.trainers.export.prediction import Predictor, weights_of
from livetrain.trainers.runtime import ranks
from tests import samples
from tests.emulated_cache import cache
from tests.modules.features.test_bag import made
from tests.trainers.train.test_loop import finished, job, same, train
from tests.trainers.train.test_sharding import train_sharded

CHANGES = {
    # A history as a bag of movies, each weighed by its rating; ratings as bags of their own.
    "features": {
        "user": {"type": "id", "table": "user"},
        "movie": {"type": "id", "table": "movie"},
        "liked": {"type": "bag", "table": "movie", "column": "history", "weights": "rating", "max_length": 4},
        "marks": {"type": "bag", "table": "mark", "column": "rating", "pooling": "max"},
        "both": {"type": "cross", "table": "movie", "of": ["user", "movie"]},
        "rate": {"type": "dense"},
    },
    "tables": {
        "user": {"rows": 100, "dim": 8},
        "movie": {"rows": 128, "dim": 8, "sharding": "row_wise"},
        "mark": {"rows": 16, "dim": 4},
    },
    "model": {"kind": "dnn", "units": [8]},
    "train__checkpoint_every": 3,
    "train__epochs": 1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return samples.write(tmp_path_factory.mktemp("samples"), rows=960)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return finished(data, tmp_path_factory.mktemp("whole"), **CHANGES)


def test_killed_and_resumed_is_bitwise_the_run_that_was_not(data, whole, tmp_path):
    train(job(data, tmp_path, **CHANGES), kill_at=5)
    assert same(train(job(data, tmp_path, **CHANGES)), whole[1])


def test_behind_a_cache_it_is_the_same_run(data, whole, tmp_path):
    with cache("user", "movie", "mark", part=0.3):
        found = train(job(data, tmp_path, **CHANGES))
    assert same(found, whole[1])
    assert found["result"]["tables"] == whole[1]["result"]["tables"]  # rows in use


@pytest.mark.parametrize("quantize", ["none", "int8"])
@pytest.mark.some(1)
def test_it_is_exported_and_predicted(data, whole, tmp_path, quantize):
    run = whole[0]
    signature = export(run, out=tmp_path / "export", quantize=quantize)
    assert signature["features"]["both"]["of"] == ["user", "movie"]
    assert signature["parity"]["largest_difference_of_rank"] < 1e-5
    table = pq.read_table(data / "test" / "part-0.parquet")
    of_run, of_file = (
        Predictor(weights_of(run, source)).predict(table)["click_score"].to_numpy()
        for source in ("best", tmp_path / "export")
    )
    assert of_file == pytest.approx(of_run, abs=1e-6 if quantize == "none" else 1e-2)


def test_combined_gradients_are_the_same_wherever_pooling_happens():
    tasks = {"tasks__like": {"label": "like", "weight": 0.5}, "gradients": {"kind": "pcgrad"}}
    tasks |= {"optimizers__sparse__kind": "sgd"}
    model = {"kind": "shared_bottom", "attention": [{"query": ["movie"], "events": ["history"], "side": ["rating"]}]}
    tasks["model"] = model | {"attention_units": [8], "tower_units": [8]}
    with ranks.alone(cuda=False):
        pooled = train_sharded(made(**tasks))
        apart = train_sharded(made(tables__tag__sharding="data_parallel", **tasks))
    for part in ("dense", "tables"):
        for name, value in pooled[part].items():
            torch.testing.assert_close(value, apart[part][name], atol=2e-6, rtol=0)
