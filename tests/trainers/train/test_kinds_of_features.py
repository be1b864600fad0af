"""A run with every kind of feature, from strangers' columns to predictions."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from livetrain.cluster import launch
from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.statistics import scan
from livetrain.trainers.export.export import export, plain_model
from livetrain.trainers.export.prediction import Predictor, weights_of
from livetrain.trainers.export.rows import golden_inputs, synthetic_rows
from livetrain.trainers.runtime.run_folder import find_checkpoint
from tests import samples
from tests.trainers.train import test_loop as loop

FEATURES = {
    "name": {"type": "id", "table": "name"},
    "tags": {"type": "sequence", "table": "name", "max_length": 3},
    "price": {"type": "dense", "clip": [0, 50], "log1p": True, "missing_flag": True},
    "part": {"type": "bucket", "column": "price", "quantiles": 4, "table": "part"},
    "mixed": {"type": "autodis", "column": "price", "dim": 4},
    "picture": {"type": "vector", "width": 6, "normalise": True, "projection": 3},
    "hour": {"type": "hour", "column": "timestamp", "zone": "America/New_York", "table": "hour"},
    "weekday": {"type": "weekday", "column": "timestamp", "zone": "America/New_York", "table": "weekday"},
    "liked": {"type": "bag", "column": "tags", "weights": "tag_weights", "table": "liked", "max_length": 3},
    "both": {"type": "cross", "of": ["name", "hour"], "table": "both"},
    "age": {"type": "age", "column": "made", "unit": "ms", "log1p": True, "per": "hours"},
}
TABLES = {
    "name": {"rows": 64, "dim": 8},
    "liked": {"rows": 64, "dim": 8, "sharding": "row_wise"},
    "both": {"rows": 64, "dim": 4, "sharding": "table_wise"},
    "part": {"rows": 5, "dim": 4, "hash": "modulo"},
    "hour": {"rows": 24, "dim": 4, "hash": "modulo"},
    "weekday": {"rows": 7, "dim": 4, "hash": "modulo", "sharding": "data_parallel"},
}


def add_columns(file: Path) -> None:
    table, draw = pq.read_table(file), np.random.default_rng(0)
    rows = len(table)
    names = np.array(["ä", "b", "", "a long name"])[draw.integers(0, 4, rows)]
    made = draw.integers(1_700_000_000_000, 1_701_000_000_000, rows)
    tags = [[str(tag) for tag in draw.integers(0, 9, n)] for n in draw.integers(0, 5, rows)]
    columns = {
        "name": pa.array(names, mask=draw.random(rows) < 0.1).dictionary_encode(),
        "tags": pa.array(tags),
        "tag_weights": pa.array([[None, *draw.normal(size=len(row) - 1)] if row else None for row in tags]),
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


def with_kinds(**changes) -> dict:
    added = {f"features__{name}": section for name, section in FEATURES.items()}
    added |= {f"tables__{name}": section for name, section in TABLES.items()}
    return {"train__epochs": 1, **added, **changes}


def recipe_of(data: Path, **changes) -> Recipe:
    return samples.recipe(data, model__pooled=["tags"], **with_kinds(**changes))


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


@pytest.mark.parametrize("quantize", [pytest.param("none", marks=pytest.mark.slow), "int8"])
@pytest.mark.slow
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


ALL = {
    "model__pooled": ["tags"],
    "model__activation": "relu",
    "optimizers__sparse__kind": "sgd",
    "optimizers__dense__kind": "sgd",
    "optimizers__ema": 0.9,
    "train__accumulate": 2,
    "train__checkpoint_every": 3,
}


@pytest.mark.slow
def test_two_ranks_are_resumed_bitwise_and_measure_what_one_does(two_ranks, data, tmp_path):
    """With a mean of the dense part and batches in parts."""
    jobs = {name: loop.job(data, tmp_path / name, **with_kinds(**ALL)) for name in ("whole", "killed", "one")}
    whole = two_ranks.run(loop.train, jobs["whole"])
    two_ranks.run(loop.train, jobs["killed"], 5)
    found = two_ranks.run(loop.train, jobs["killed"])
    assert all(loop.same(a, b) for a, b in zip(found, whole, strict=True))
    one, two = loop.train(jobs["one"]), whole[0]
    for name, value in one["dense"].items():
        assert torch.allclose(two["dense"][name], value, atol=1e-5), name
    keys = [key for key in one["result"] if key.startswith(("valid.", "test."))]
    assert {key: two["result"][key] for key in keys} == pytest.approx(
        {key: one["result"][key] for key in keys}, abs=2e-3
    )
    assert {"liked", "tags"} < one["result"]["cut"].keys()
    assert two["result"]["cut"] == one["result"]["cut"]


@pytest.mark.slow
def test_towers_with_vectors_and_encoders_are_exported(data, tmp_path):
    model = {"kind": "dssm", "key": "movie", "item": ["movie", "picture"], "units": [16], "width": 8}
    task = {"click": {"label": "label", "kind": "retrieval"}}
    launch.train(samples.recipe(data, **with_kinds(model=model, tasks=task)), tmp_path)
    run = tmp_path / "small"
    export(run, out=tmp_path / "out")
    table = pq.read_table(data / "test")
    sides = {}
    for side in ("user", "item"):
        by_file, sides[side] = (
            np.stack(Predictor(weights_of(run, place, side)).predict(table)[0].to_numpy())
            for place in (tmp_path / "out", "best")
        )
        np.testing.assert_allclose(by_file, sides[side], atol=1e-6)
        assert sides[side].std(0).min() > 0
    product = (sides["user"] * sides["item"]).sum(1)
    score = Predictor(weights_of(run)).predict(table)[0].to_numpy()
    np.testing.assert_allclose(score, product * (score @ product) / (product @ product), atol=1e-4)


def test_ids_of_another_type_than_in_training_are_refused(run, data, tmp_path):
    export(run, out=tmp_path / "out")
    table = pq.read_table(data / "test")
    strings = table.set_column(table.column_names.index("user"), "user", table["user"].cast(pa.string()))
    numbers = table.set_column(table.column_names.index("name"), "name", pa.array(range(len(table))))
    nothing = table.set_column(table.column_names.index("name"), "name", pa.nulls(len(table)))
    for place in (tmp_path / "out", "best"):
        predictor = Predictor(weights_of(run, place))
        with pytest.raises(
            BadInput, match="features.user: column 'user' of .* holds strings, but integers in training"
        ):
            predictor.predict(strings)
        with pytest.raises(
            BadInput, match="features.name: column 'name' of .* holds integers, but strings in training"
        ):
            predictor.check(numbers.schema, "rows")
        assert predictor.predict(nothing).num_rows == len(table)
    signature = json.loads((tmp_path / "out/signature.json").read_text())
    ids = {name: feature["ids"] for name, feature in signature["features"].items() if "ids" in feature}
    texts = dict.fromkeys(("name", "tags", "liked"), "strings")
    assert ids == {name: "integers" for name in ("user", "movie", "history", "rating")} | texts


def test_a_run_does_not_go_on_with_ids_of_another_type(run, data, tmp_path):
    other = tmp_path / "data"
    shutil.copytree(data, other)
    for split in ("train", "valid", "test"):
        file = other / split / "part-0.parquet"
        table = pq.read_table(file)
        table = table.set_column(table.column_names.index("user"), "user", table["user"].cast(pa.string()))
        pq.write_table(table, file)
    copy = tmp_path / "kinds"
    shutil.copytree(run, copy)
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace(str(data), str(other)))
    with pytest.raises(
        BadInput, match="features.user: column 'user' of .*test holds strings, but integers in training"
    ):
        launch.evaluate(copy, "test", "best")
