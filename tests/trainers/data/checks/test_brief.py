"""What a run says of its own columns before it starts, and the little that it refuses."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.trainers.data.checks import brief, dataset
from livetrain.trainers.data.checks.dataset import PIECE
from livetrain.trainers.data.checks.findings import share
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.statistics import scan
from livetrain.trainers.train import preflight
from tests import samples


def change(folder, split, **columns):
    """Set columns of a split's file; a function gets the table."""
    path = folder / split / "part-0.parquet"
    table = pq.read_table(path)
    for name, values in columns.items():
        values = values(table) if callable(values) else values
        table = table.drop_columns(name) if name in table.column_names else table
        table = table.append_column(name, values)
    pq.write_table(table, path, row_group_size=128)


def everywhere(folder, **columns):
    for split in preflight.SPLITS:
        change(folder, split, **columns)


def notes(recipe):
    said = []
    preflight.check(recipe, said.append)
    return said


@pytest.fixture
def data(tmp_path):
    return samples.write(tmp_path / "data")


def test_a_run_notes_rates_nulls_unseen_ids_and_the_best_column(data):
    change(data, "test", user=lambda table: pa.array(np.arange(len(table)) + 50))  # 450 of 500 are not in train
    said = notes(samples.recipe(data))
    labels = {split: pq.read_table(data / split)["label"].to_numpy() for split in preflight.SPLITS}
    wanted = ", ".join(f"{labels[split].mean():.3f} in {split}" for split in preflight.SPLITS)
    assert f"label click: mean {wanted}" in said
    nulls = next(text for text in said if text.startswith("nulls: "))
    absent = pq.read_table(data / "train")["movie"].null_count
    assert f"movie {share(absent / 2000)} of train" in nulls
    assert "user" not in nulls
    unseen = "ids not in train: movie 100.0 % of valid, 100.0 % of test, user 0.0 % of valid, 90.0 % of test"
    assert unseen in said
    assert any(text.startswith("leakage probe of label: best single column: rate (AUC 0.7") for text in said)


def test_ids_beyond_the_rows_of_a_modulo_table_are_told(data):
    quiet = notes(samples.recipe(data))
    assert not any("hash: modulo" in text for text in quiet)
    change(data, "test", user=lambda table: pa.array(np.arange(len(table)) - 1))
    said = [text for text in notes(samples.recipe(data, tables__rating__rows=5)) if "hash: modulo" in text]
    assert "features.user: ids from -1 to 498 in test, and tables.user has rows for 0 to 99 alone" in said[0]
    assert "features.rating: ids from 1 to 5 in train, from 1 to 5 in valid, from 1 to 5 in test, and" in said[1]
    assert not any("hash: modulo" in text for text in notes(samples.recipe(data, tables__user__hash="mix")))


def test_a_feature_that_leaks_is_named_and_training_goes_on(data):
    everywhere(
        data,
        planted=lambda table: pa.array(table["label"].to_numpy() + np.random.default_rng(0).random(len(table)) * 0.9),
    )
    features = {"planted": {"type": "dense"}, "user": {"type": "id", "table": "user"}}
    recipe = samples.recipe(
        data, features=features, tables={"user": {"rows": 100, "dim": 4}}, model={"kind": "dnn", "units": [4]}
    )
    assert "wrong: leakage probe of label: predicted too well by planted (AUC 1.000" in "\n".join(notes(recipe))


@pytest.mark.parametrize(
    "feature", [{"type": "dense", "column": "label"}, {"type": "id", "table": "user", "column": "label"}]
)
def test_a_label_as_a_feature_is_refused(data, feature):
    recipe = samples.recipe(data, features__extra=feature)
    with pytest.raises(
        BadInput, match=r"features\.extra: column 'label' is an outcome of the row \(tasks\.click\.label\)"
    ):
        preflight.check(recipe, lambda text: None)


def test_an_outcome_that_the_manifest_names_is_refused_as_a_feature(data):
    everywhere(data, watch_time=lambda table: pa.array(np.random.default_rng(0).random(len(table))))
    recipe = samples.recipe(data, features__watch={"type": "dense", "column": "watch_time"})
    preflight.check(recipe, lambda text: None)
    (data / "dataset.json").write_text(json.dumps({"roles": {"labels": ["label", "watch_time"]}}))
    with pytest.raises(BadInput, match=r"features\.watch: column 'watch_time' .*\(dataset\.json lists it"):
        preflight.check(recipe, lambda text: None)


def test_a_copy_of_a_label_under_another_name_is_refused(data):
    everywhere(data, innocent=lambda table: table["label"].cast(pa.float32()))
    recipe = samples.recipe(data, features__innocent={"type": "dense"})
    with pytest.raises(BadInput, match=r"features\.innocent: column 'innocent' equals 'label' \(tasks\.click\.label\)"):
        preflight.check(recipe, lambda text: None)
    change(data, "train", innocent=_one_other)
    preflight.check(recipe, lambda text: None)  # one row differs: for a person to judge


def _one_other(table):
    values = table["label"].to_numpy().astype(np.float32)
    values[0] = 1 - values[0]
    return pa.array(values)


def test_what_is_read_is_bounded_and_said(data, monkeypatch):
    monkeypatch.setattr(brief, "PROBED", 256)
    monkeypatch.setattr(brief, "KNOWN", 512)
    read = []
    monkeypatch.setattr(Source, "stream", _counting(Source.stream, read))
    recipe = samples.recipe(data)
    sources = {split: Source.open(recipe, split) for split in preflight.SPLITS}
    said = []
    statistics = {split: scan(source, recipe) for split, source in sources.items()}
    read.clear()
    brief.examine(recipe, sources, statistics, said.append)
    assert sum(read) <= 3 * (256 + 128) + 512 + 128  # never more than a row group too many
    known = sum(read[-5:])
    assert next(text for text in said if text.startswith("ids not")).endswith(f"on {known} rows of it, so at most that")


def test_of_large_row_groups_stretches_are_read_that_lie_apart(tmp_path):
    rows = 5 * PIECE + 100
    (tmp_path / "train").mkdir()
    table = pa.table({"user": np.arange(rows), "label": np.zeros(rows, np.int8)})
    pq.write_table(table, tmp_path / "train" / "part-0.parquet")
    recipe = Recipe.model_validate(
        {
            "data": {"path": str(tmp_path)},
            "features": {"user": {"type": "id", "table": "user"}},
            "tables": {"user": {"rows": 10, "dim": 4}},
            "model": {"kind": "lr"},
            "tasks": {"click": {"label": "label"}},
        }
    )
    found = brief.read(Source.open(recipe, "train"), ["user"], 3 * PIECE, skip=False)["user"].to_numpy()
    assert found[::PIECE].tolist() == [0, 2 * PIECE, 5 * PIECE], "the first, one in the middle and the last"
    assert len(found) == 2 * PIECE + 100


def _counting(method, read):
    def counted(self, groups, columns, rows):
        for table in method(self, groups, columns, rows):
            read.append(len(table))
            yield table

    return counted


BAG = {"type": "bag", "table": "tag", "column": "rating", "weights": "w"}
AGE = {"type": "age", "column": "begun", "until": "ended"}


@pytest.mark.parametrize("feature", [{**BAG, "table": "user", "weights": "label"}, AGE | {"until": "label"}])
def test_a_label_as_another_column_of_a_feature_is_refused(data, feature):
    recipe = samples.recipe(data, features__extra=feature)
    with pytest.raises(BadInput, match=r"features\.extra: column 'label' is an outcome of the row \(tasks\.click"):
        brief.refuse_outcomes(recipe)


def _visits(table):
    """Visits whose length is the label, and says nothing else: they begin at any time."""
    begun = np.random.default_rng(1).integers(10**9, 10**10, len(table))
    return {"begun": begun, "ended": begun + table["watch"].to_numpy()}


def _weights_of(labels):
    return lambda table: pa.array(
        [[float(n)] * len(r) for n, r in zip(labels(table), table["rating"].to_pylist(), strict=True)]
    )


def test_weights_and_times_that_tell_the_label_are_found(data):
    everywhere(data, w=_weights_of(lambda table: table["label"].to_pylist()))
    weighed = {"features__extra": BAG, "tables__tag": {"rows": 9, "dim": 4}}
    with pytest.raises(BadInput, match=r"features\.extra: column 'w' equals 'label' \(tasks\.click\.label\)"):
        preflight.check(samples.recipe(data, **weighed), lambda text: None)
    everywhere(data, w=_weights_of(lambda table: 0.5 + 2 * table["label"].to_numpy()))
    assert any("predicted too well by w (AUC" in text for text in notes(samples.recipe(data, **weighed)))
    for name in ("begun", "ended"):
        everywhere(data, **{name: lambda table, name=name: pa.array(_visits(table)[name].astype(np.int64))})
    found = notes(samples.recipe(data, features__extra=AGE | {"unit": "s"}))
    assert any("predicted too well by begun until ended (AUC" in text for text in found)


def test_of_long_histories_few_rows_are_read(tmp_path, monkeypatch):
    requests, candidates, events = 3 * PIECE // 8, 8, 64
    (tmp_path / "train").mkdir()

    def lists(each):
        return pa.FixedSizeListArray.from_arrays(pa.array(np.arange(requests * each)), each).cast(pa.list_(pa.int64()))

    table = pa.table({"past": lists(events), "item": lists(candidates), "label": lists(candidates)})
    pq.write_table(table, tmp_path / "train" / "part-0.parquet", row_group_size=PIECE // 8)
    recipe = Recipe.model_validate(
        {
            "data": {"path": str(tmp_path), "layout": "request", "candidates": candidates, "shards": 1},
            "features": {
                "item": {"type": "id", "table": "item"},
                "past": {"type": "sequence", "table": "item", "max_length": events},
            },
            "tables": {"item": {"rows": 10, "dim": 4}},
            "model": {"kind": "lr"},
            "tasks": {"click": {"label": "label"}},
        }
    )
    source, read = Source.open(recipe, "train"), []
    flattened = source.candidates.flattened
    monkeypatch.setattr(source.candidates, "flattened", lambda t, where: read.append(len(t)) or flattened(t, where))
    assert len(brief.read(source, ["past", "item"], 32 * PIECE, skip=False)) == 3 * PIECE
    assert max(read) * candidates <= PIECE
    monkeypatch.setattr(dataset, "ELEMENTS", 3 * 100 * events)
    found = brief.read(source, ["past", "item"], 32 * PIECE, skip=False)
    assert found["item"].to_numpy()[::100].tolist() == [0, PIECE, 2 * PIECE], "the first of each stretch"
    assert len(found) == 300
    monkeypatch.setattr(dataset, "ELEMENTS", 1)
    assert len(brief.read(source, ["past", "item"], 32 * PIECE, skip=False)) == 3, "one row of each at least"
