"""Runs whose events have times (HSTU) and whose users have several vectors (ComiRec): resumed, exported, predicted."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from livetrain.modules.layers import products
from livetrain.trainers.evaluate import retrieval
from livetrain.trainers.export.export import export
from livetrain.trainers.export.prediction import Predictor, weights_of
from livetrain.trainers.export.prediction_files import Neighbours, predict
from livetrain.trainers.export.rows import golden_inputs, synthetic_rows
from tests import samples
from tests.trainers.train.test_loop import finished, job, same, train

HISTORY = [{"query": ["movie"], "events": ["history"], "side": ["rating"]}]
TIMES = {"features__history__times": "when", "features__history__until": "now", "features__history__unit": "ms"}
HSTU = {"kind": "hstu_retrieval", "attention": HISTORY, "heads": 2, "length": 6, "cosine": True, "temperature": 0.1}
COMIREC = {"kind": "comirec", "attention": HISTORY, "interests": 3}
CHANGES = {
    **TIMES,
    "tasks": {"click": {"label": "label", "kind": "retrieval"}},
    "train__checkpoint_every": 3,
    "train__epochs": 1,
    "export__golden": "rows",
}


def write(folder: Path) -> Path:
    """Samples with the time of each event; those of one row in nine are not known."""
    data, draw = samples.write(folder, rows=480), np.random.default_rng(3)
    for split in ("train", "valid", "test"):
        file = data / split / "part-0.parquet"
        table = pq.read_table(file)
        lists = [[0] * len(row) for row in table["history"].to_pylist()]
        times = [np.sort(draw.integers(0, 10**12, len(row) + 1)).tolist() for row in lists]
        when = [None if place % 9 == 0 else row[:-1] for place, row in enumerate(times)]
        table = table.append_column("when", pa.array(when, pa.list_(pa.int64())))
        pq.write_table(table.append_column("now", pa.array([row[-1] for row in times])), file, row_group_size=128)
    return data


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="module")
def timed(data, tmp_path_factory):
    return finished(data, tmp_path_factory.mktemp("timed"), **CHANGES, model=HSTU)


@pytest.fixture(scope="module")
def interested(data, tmp_path_factory):
    return finished(data, tmp_path_factory.mktemp("interested"), **CHANGES, model=COMIREC)


def test_killed_and_resumed_is_bitwise_the_run_that_was_not(data, timed, tmp_path):
    train(job(data, tmp_path, **CHANGES, model=HSTU), kill_at=4)
    assert same(train(job(data, tmp_path, **CHANGES, model=HSTU)), timed[1])


@pytest.mark.slow
@pytest.mark.parametrize("model", [HSTU, COMIREC], ids=["hstu", "comirec"])
def test_two_ranks_learn_what_one_does(two_ranks, data, tmp_path, model):
    """With SGD and without dropout, so that they differ by rounding alone."""
    made = CHANGES | {"optimizers__sparse__kind": "sgd", "optimizers__dense__kind": "sgd"}
    made["model"] = model | {"dropout": 0.0}
    one = train(job(data, tmp_path / "one", **made))
    two = two_ranks.run(train, job(data, tmp_path / "two", **made))[0]
    for name, value in one["dense"].items():
        torch.testing.assert_close(two["dense"][name], value, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("quantize", [pytest.param("none", marks=pytest.mark.slow), "int8"])
def test_times_are_exported(data, timed, tmp_path, quantize):
    signature = export(timed[0], out=tmp_path / "export", quantize=quantize)
    assert "seconds from each id's time to the next " in signature["features"]["history"]["times"]
    assert signature["towers"]["interests"] == 1
    rows = json.loads((tmp_path / "export/golden.json").read_text())
    file, ids, lengths, dense = torch.jit.load(tmp_path / "export/model.pt"), *golden_inputs(rows)
    found = file(ids, lengths, dense)["click"]
    assert found.tolist() == pytest.approx(rows["scores"]["click"], abs=1e-6)
    later = file(ids, lengths, dense | {"history": dense["history"] * 40})["click"]
    told = torch.tensor([row > 0 for row in rows["lengths"]["history"]])
    assert ((later != found) & told).float().mean() > 0.5
    drawn = file(*golden_inputs(synthetic_rows(samples.recipe(data, **CHANGES, model=HSTU), signature, 20)))["click"]
    assert not drawn.isnan().any()
    table = pq.read_table(data / "test" / "part-0.parquet")
    of_run, of_file = (
        Predictor(weights_of(timed[0], source)).predict(table)["click_score"].to_numpy()
        for source in ("best", tmp_path / "export")
    )
    assert of_file == pytest.approx(of_run, abs=1e-6 if quantize == "none" else 3e-2)


def test_the_nearest_of_several_vectors_counts(data, interested, tmp_path):
    """In the file's scores, in evaluation and among the neighbours that are predicted."""
    signature = export(interested[0], out=tmp_path / "export")
    assert signature["towers"]["interests"] == 3
    table = pq.read_table(data / "test" / "part-0.parquet").slice(0, 40)
    items = table.filter(pa.compute.is_valid(table["movie"])).select(["movie"])
    pq.write_table(items, tmp_path / "items.parquet")
    pq.write_table(table, tmp_path / "rows.parquet")
    user, item = (
        Predictor(weights_of(interested[0], tmp_path / "export", side)).predict(rows)[0].combine_chunks()
        for side, rows in (("user", table), ("item", items))
    )
    users = user.flatten().flatten().to_numpy().reshape(len(table), 3, 8)
    vectors = item.flatten().to_numpy().reshape(len(items), 8)
    scores = np.einsum("qkd,nd->qkn", users, vectors).max(1)
    keys = np.array(items["movie"].to_pylist())
    keys, first = np.unique(keys, return_index=True)
    predict(
        interested[0],
        str(tmp_path / "rows.parquet"),
        tmp_path / "out",
        source=tmp_path / "export",
        neighbours=Neighbours(5, str(tmp_path / "items.parquet"), "movie"),
    )
    found = pq.read_table(next((tmp_path / "out").glob("*.parquet")))
    best = np.sort(scores[:, first], 1)[:, ::-1][:, :5]
    np.testing.assert_allclose(np.array(found["neighbour_scores"].to_pylist()), best, atol=1e-5)
    ranks = retrieval._ranks(
        torch.from_numpy(keys[:1]).repeat(len(table)),
        torch.from_numpy(users.copy()),
        {},
        torch.from_numpy(keys),
        torch.from_numpy(vectors[first]),
    )
    assert ranks.tolist() == pytest.approx((scores[:, first] >= scores[:, first[:1]]).sum(1))
    own = products.of_pairs(torch.from_numpy(users[:1].copy()), torch.from_numpy(vectors[:1]))
    assert own.item() == pytest.approx(scores[0, 0])
