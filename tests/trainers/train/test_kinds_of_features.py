"""A run with every kind of feature, from strangers' columns to predictions."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from livetrain.cluster import launch
from livetrain.configs.schema import Recipe
from livetrain.trainers.data.read.source import Source, scan
from livetrain.trainers.export.export import export, plain_model
from livetrain.trainers.export.prediction import Predictor, weights_of
from livetrain.trainers.export.rows import golden_inputs, synthetic_rows
from livetrain.trainers.runtime.run_folder import find_checkpoint
from tests import samples

FEATURES = {
    "name": {"type": "id", "table": "name"},
    "tags": {"type": "sequence", "table": "name", "max_length": 3},
    "price": {"type": "dense", "clip": [0, 50], "log1p": True, "missing_flag": True},
    "part": {"type": "bucket", "column": "price", "quantiles": 4, "table": "part"},
    "mixed": {"type": "autodis", "column": "price", "dim": 4},
    "picture": {"type": "vector", "width": 6, "normalise": True, "projection": 3},
    "hour": {"type": "hour", "column": "timestamp", "zone": "America/New_York", "table": "hour"},
    "weekday": {"type": "weekday", "column": "timestamp", "zone": "America/New_York", "table": "weekday"},
    "age": {"type": "age", "column": "made", "unit": "ms", "log1p": True, "per": "hours"},
}
TABLES = {
    "name": {"rows": 64, "dim": 8},
    "part": {"rows": 5, "dim": 4, "hash": "modulo"},
    "hour": {"rows": 24, "dim": 4, "hash": "modulo"},
    "weekday": {"rows": 7, "dim": 4, "hash": "modulo", "sharding": "data_parallel"},
}


def add_columns(file: Path) -> None:
    table, draw = pq.read_table(file), np.random.default_rng(0)
    rows = len(table)
    names = np.array(["ä", "b", "", "a long name"])[draw.integers(0, 4, rows)]
    made = draw.integers(1_700_000_000_000, 1_701_000_000_000, rows)
    columns = {
        "name": pa.array(names, mask=draw.random(rows) < 0.1).dictionary_encode(),
        "tags": pa.array([[str(tag) for tag in draw.integers(0, 9, n)] for n in draw.integers(0, 5, rows)]),
        "price": pa.array(draw.lognormal(2, 1, rows).astype(np.float16), mask=draw.random(rows) < 0.2),
        "picture": pa.array(
            [None if draw.random() < 0.1 else draw.normal(size=6).astype(np.float32) for _ in range(rows)],
            pa.list_(pa.float32(), 6),
        ),
        "timestamp": pa.array(made + draw.integers(0, 10**9, rows), pa.timestamp("ms"), mask=draw.random(rows) < 0.1),
        "made": pa.array(made),
        "who": table["user"].cast(pa.string()).cast(pa.large_string()),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    pq.write_table(table, file, row_group_size=128)


def recipe_of(data: Path, **changes) -> Recipe:
    added = {f"features__{name}": section for name, section in FEATURES.items()}
    added |= {f"tables__{name}": section for name, section in TABLES.items()}
    return samples.recipe(data, train__epochs=1, model__pooled=["tags"], **added, **changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = samples.write(tmp_path_factory.mktemp("kinds") / "data", rows=800)
    for split in ("train", "valid", "test"):
        add_columns(folder / split / "part-0.parquet")
    return folder


@pytest.fixture(scope="module")
def run(data) -> Path:
    launch.train(recipe_of(data, name="kinds", evaluate__group_by="who", export__golden="rows"), data.parent / "runs")
    return data.parent / "runs/kinds"


def test_what_was_measured_is_in_the_checkpoint(run, data):
    recipe = recipe_of(data)
    found = scan(Source.open(recipe, "train"), recipe)
    model = plain_model(recipe, find_checkpoint(run, "best"))
    assert model.transforms["part"].bounds.tolist() == found.quantiles["part"]
    assert len(set(found.quantiles["part"])) == 3
    wanted = [[part[0], 0.0] if name == "price" else part for name, part in found.mean.items()]
    assert model.dense.normalise.mean.tolist() == pytest.approx(sum(wanted, []))
    assert found.mean["price"][0] < np.log1p(50)


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_the_exported_file_is_proved_and_predicts_alike(run, data, tmp_path, quantize):
    signature = export(run, out=tmp_path / "out", quantize=quantize)
    picture = signature["features"]["picture"]
    assert (picture["width"], len(picture["mean"]), len(picture["std"])) == (6, 6, 6)
    file = torch.jit.load(tmp_path / "out/model.pt")
    rows = json.loads((tmp_path / "out/golden.json").read_text())
    assert file(*golden_inputs(rows))["click"].tolist() == pytest.approx(rows["scores"]["click"], abs=1e-6)
    drawn = file(*golden_inputs(synthetic_rows(recipe_of(data), signature, 20)))["click"]
    assert drawn.shape == (20,)
    assert not drawn.isnan().any()
    table = pq.read_table(data / "test").drop_columns(["label", "like", "watch", "gift", "worth"])
    by_file, by_run = (Predictor(weights_of(run, place)).predict(table)[0] for place in (tmp_path / "out", "best"))
    np.testing.assert_allclose(by_file.to_numpy(), by_run.to_numpy(), atol=1e-6 if quantize == "none" else 0.02)
