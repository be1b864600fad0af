"""Runs whose events carry vectors: killed and resumed, exported, predicted, warm-started, with one tower or two."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from livetrain.trainers.export.export import export
from livetrain.trainers.export.prediction import Predictor, weights_of
from livetrain.trainers.export.rows import golden_inputs, synthetic_rows
from livetrain.trainers.train import fitting
from tests import samples
from tests.trainers.train.test_loop import finished, job, same, train

WIDTH = 3
VECTORS = {
    "features__history__vectors": "pictures",
    "features__history__like": "picture",
    "features__picture": {"type": "vector", "width": WIDTH, "normalise": True, "projection": 2},
}
CHANGES = {**VECTORS, "train__checkpoint_every": 3, "train__epochs": 1, "export__golden": "rows"}
TOWERS = {"kind": "dssm", "key": "movie", "item": ["movie", "picture"], "units": [8], "width": 4}


def write(folder: Path) -> Path:
    """Samples whose candidates have a picture, and whose histories one of each movie; one in nine is missing."""
    data, draw = samples.write(folder, rows=960), np.random.default_rng(3)
    for split in ("train", "valid", "test"):
        file = data / split / "part-0.parquet"
        table = pq.read_table(file)
        events = len(table["history"].combine_chunks().flatten())
        of_events, of_rows = (
            [None if k % 9 == 0 else row for k, row in enumerate(draw.normal(2, 3, (count, WIDTH)).astype(np.float32))]
            for count in (events, len(table))
        )
        kind = pa.list_(pa.float32(), WIDTH)
        lists = pa.ListArray.from_arrays(table["history"].combine_chunks().offsets, pa.array(of_events, kind))
        table = table.append_column("picture", pa.array(of_rows, kind)).append_column("pictures", lists)
        pq.write_table(table, file, row_group_size=128)
    return data


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return finished(data, tmp_path_factory.mktemp("whole"), **CHANGES)


def test_killed_and_resumed_is_bitwise_the_run_that_was_not(data, whole, tmp_path):
    train(job(data, tmp_path, **CHANGES), kill_at=5)
    assert same(train(job(data, tmp_path, **CHANGES)), whole[1])


@pytest.mark.slow
def test_two_ranks_learn_what_one_does(two_ranks, data, tmp_path):
    """With SGD, so that they differ by rounding alone."""
    made = CHANGES | {"optimizers__sparse__kind": "sgd", "optimizers__dense__kind": "sgd"}
    one = train(job(data, tmp_path / "one", **made))
    two = two_ranks.run(train, job(data, tmp_path / "two", **made))[0]
    for name, value in one["dense"].items():
        torch.testing.assert_close(two["dense"][name], value, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("quantize", ["none", "int8"])
@pytest.mark.some(1)
def test_it_is_exported_and_predicted(data, whole, tmp_path, quantize):
    run = whole[0]
    signature = export(run, out=tmp_path / "export", quantize=quantize)
    assert (
        signature["features"]["history"]["vectors"]
        == "in dense under the feature's name, one like 'picture' of each id"
    )
    assert signature["parity"]["largest_difference_of_rank"] < 1e-5
    file = torch.jit.load(tmp_path / "export/model.pt")
    rows = json.loads((tmp_path / "export/golden.json").read_text())
    assert len(rows["dense"]["history"]) == len(rows["ids"]["history"]) > 0
    assert file(*golden_inputs(rows))["click"].tolist() == pytest.approx(rows["scores"]["click"], abs=1e-6)
    drawn = file(*golden_inputs(synthetic_rows(samples.recipe(data, **CHANGES), signature, 20)))["click"]
    assert not drawn.isnan().any()
    nobody = golden_inputs(
        {"ids": {n: [] for n in rows["ids"]}, "lengths": {n: [0] for n in rows["ids"]}}
        | {"dense": {"rate": [None], "picture": [[None] * WIDTH], "history": []}}
    )
    assert file(*nobody)["click"].shape == (1,)
    table = pq.read_table(data / "test" / "part-0.parquet")
    of_run, of_file = (
        Predictor(weights_of(run, source)).predict(table)["click_score"].to_numpy()
        for source in ("best", tmp_path / "export")
    )
    assert of_file == pytest.approx(of_run, abs=1e-6 if quantize == "none" else 1e-2)
    ids, lengths, dense = golden_inputs(rows)
    with pytest.raises(Exception, match="'history' needs one weight or vector of each of its ids"):
        file(ids, lengths, dense | {"history": dense["history"][1:]})


def test_two_towers_share_what_is_learned_of_a_vector(data, tmp_path):
    task = {"click": {"label": "label", "kind": "retrieval"}}
    changes = {**VECTORS, "train__epochs": 1, "model": TOWERS, "tasks": task}
    finished(data, tmp_path / "run", **changes)
    export(tmp_path / "run", out=tmp_path / "out")
    table = pq.read_table(data / "test")
    for side, other in (("user", "picture"), ("item", "pictures")):
        by_file, by_run = (
            np.stack(
                Predictor(weights_of(tmp_path / "run", place, side)).predict(table.drop_columns([other]))[0].to_numpy()
            )
            for place in (tmp_path / "out", "best")
        )
        np.testing.assert_allclose(by_file, by_run, atol=1e-6)
        assert by_run.std(0).min() > 0


def test_a_warm_start_knows_vectors_that_are_new_or_others(data):
    with_, without = samples.recipe(data, **VECTORS), samples.recipe(data)
    other = samples.recipe(data, **VECTORS, features__picture__normalise=False)
    lines = {line.name: line for line in fitting.fit(with_, without, "path").lines}
    assert lines["tables.movie"].taken == "all"
    assert lines["layers.bottom.histories.0.unit.first"].taken == "nothing"
    assert lines["layers.encode.encoders.of_picture"].taken == "nothing"
    same_, changed = (fitting.fit(with_, old, "path").taken for old in (with_, other))
    encoder = "dense.encode.encoders.of_picture.weight"
    unit = "dense.network.bottom.histories.0.unit.first.weight"
    assert {encoder, unit} <= same_.keys()
    assert not {encoder, unit} & changed.keys()
