import json
import math
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.read.measure import Moments
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import CorruptGroup, Source
from livetrain.trainers.data.read.spread import Looking
from livetrain.trainers.data.read.statistics import Statistics, scan
from tests.trainers.data.parquet import SCHEMA, corrupt, make_recipe, make_rows, write_split

ROW = make_rows(1)[0] | {"click": 1, "like": 0.0}


def changed(name, kind):
    """SCHEMA with one column of another type."""
    return SCHEMA.set(SCHEMA.get_field_index(name), pa.field(name, kind))


def refused(path, split="train", **recipe):
    with pytest.raises(BadInput) as caught:
        Source.open(make_recipe(path, **recipe), split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def scanned(path, rows, group=2, **data):
    write_split(path / "train", [rows], group)
    recipe = make_recipe(path, **data)
    return scan(Source.open(recipe, "train"), recipe)


def test_open(tmp_path):
    write_split(tmp_path / "train", [make_rows(7), make_rows(3)])
    (tmp_path / "train" / "_metadata.parquet").write_bytes(b"")
    (tmp_path / "train" / "notes.txt").write_text("")
    source = Source.open(make_recipe(tmp_path), "train")
    assert [(group.path[-14:], group.index, group.rows) for group in source.groups] == [
        ("part-0.parquet", 0, 5),
        ("part-0.parquet", 1, 2),
        ("part-1.parquet", 0, 3),
    ]
    assert source.rows == 10
    assert source.columns == ["user", "age", "history", "movie", "tags", "price", "click", "like"]
    assert source.read(source.groups[1], ["like", "age"]).column_names == ["like", "age"]


def test_pickle(tmp_path):
    write_split(tmp_path / "train", [make_rows(7)])
    source = Source.open(make_recipe(tmp_path), "train")
    copy = pickle.loads(pickle.dumps(source))
    assert copy.groups == source.groups
    assert copy.read(copy.groups[1], ["user"]).equals(source.read(source.groups[1], ["user"]))


@pytest.mark.parametrize("scheme", ["file", "fsspec+memory", "subtree"])
def test_any_filesystem(tmp_path, scheme, monkeypatch):
    rows = make_rows(30)
    (local,) = write_split(tmp_path / "train", [rows])
    if scheme == "file":
        path = tmp_path.as_uri()
    elif scheme == "fsspec+memory":
        path = f"fsspec+memory:///{tmp_path.name}"
        memory, root = fs.FileSystem.from_uri(path)
        memory.create_dir(f"{root}/train")
        with memory.open_output_stream(f"{root}/train/part-0.parquet") as out:
            out.write(local.read_bytes())
    else:
        path = "subtree://here"
        subtree = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
        monkeypatch.setattr("livetrain.trainers.data.read.files.open_filesystem", lambda path: (subtree, ""))
    recipe = make_recipe(path)
    source = pickle.loads(pickle.dumps(Source.open(recipe, "train")))
    assert source.rows == 30
    batches = list(Reader(source, recipe, rank=0, world=1, shuffle=True).batches(0))
    assert sorted(row for batch in batches for row in batch.rows.tolist() if row >= 0) == list(range(30))


def test_missing_folder_and_files(tmp_path):
    assert refused(tmp_path / "nowhere") == (
        f"data.path: there is no folder {tmp_path}/nowhere/train; prepare the data first, or correct data.path"
    )
    (tmp_path / "valid").mkdir()
    assert refused(tmp_path, "valid") == f"{tmp_path}/valid: the folder holds no *.parquet file; prepare the data again"


def test_address_that_cannot_be_opened():
    message = refused("nothing://me:secret@host/x")
    assert message.startswith("data.path: nothing://")
    assert "secret" not in message


def test_empty_split(tmp_path):
    write_split(tmp_path / "test", [[]])
    assert f"{tmp_path}/test: the split has no rows" in refused(tmp_path, "test")


@pytest.mark.parametrize("keep", [0, 3, 200, -1])
def test_truncated_file(tmp_path, keep):
    write_split(tmp_path / "train", [make_rows(7), make_rows(7)])
    path = tmp_path / "train" / "part-1.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    message = refused(tmp_path)
    assert message.startswith(f"{path}: not a complete Parquet file (")
    assert message.endswith("write or copy it again")


def test_missing_column(tmp_path):
    write_split(tmp_path / "train", [[ROW]])
    features = {"film": {"type": "id", "table": "movies", "column": "movi"}}
    message = refused(tmp_path, features=features)
    assert message == (
        f"features.film: {tmp_path}/train/part-0.parquet has no column 'movi' (did you mean 'movie'?); correct the name"
    )
    assert "evaluate.group_by" in refused(tmp_path, group="usr")


@pytest.mark.parametrize(
    ("column", "kind", "wish"),
    [
        ("user", pa.float64(), "features.user: column 'user' of .* is double, but must be int64 or a string; convert"),
        ("movie", pa.uint64(), "features.film: column 'movie' of .* is uint64, but must be int64 or a string"),
        ("history", pa.int64(), r"features.history: column 'history' of .* is int64, but must be list<int64>"),
        (
            "tags",
            pa.list_(pa.binary()),
            r"features.tags: column 'tags' of .* is list<.*binary>, but must be list<int64>",
        ),
        ("price", pa.string(), "features.cost: column 'price' of .* is string, but must be a number"),
        (
            "like",
            pa.string(),
            "tasks.liked.label: column 'like' of .* is string, but must be an integer, boolean or float",
        ),
    ],
)
def test_wrong_type(tmp_path, column, kind, wish):
    write_split(tmp_path / "train", [[]], schema=changed(column, kind))
    with pytest.raises(BadInput, match=wish):
        Source.open(make_recipe(tmp_path, group=None), "train")


def test_group_column_of_the_wrong_type(tmp_path):
    write_split(tmp_path / "train", [[ROW]])
    assert refused(tmp_path, group="age").startswith("evaluate.group_by: column 'age' of ")


def test_files_that_differ(tmp_path):
    write_split(tmp_path / "train", [[ROW], [ROW]])
    table = pa.Table.from_pylist([ROW], schema=changed("movie", pa.int64()))
    pq.write_table(table, tmp_path / "train" / "part-1.parquet")
    folder = f"{tmp_path}/train"
    assert refused(tmp_path) == (
        f"{folder}/part-1.parquet: column 'movie' is int64 here and int32 in {folder}/part-0.parquet; "
        "write all files of a split with one schema"
    )


def test_files_may_differ_in_columns_that_are_not_read(tmp_path):
    write_split(tmp_path / "train", [[ROW], [ROW]])
    schema = changed("unused", pa.int32()).set(0, pa.field("user", pa.int64(), nullable=False))
    table = pa.Table.from_pylist([ROW | {"unused": 1, "user": 5}], schema=schema)
    pq.write_table(table, tmp_path / "train" / "part-1.parquet")
    recipe = make_recipe(tmp_path, shards=1)
    (batch,) = Reader(Source.open(recipe, "train"), recipe, rank=0, world=1, shuffle=False).batches(0)
    assert batch.rows.tolist()[:2] == [0, 1]


def test_id_range(tmp_path):
    rows = [ROW | {"movie": 7, "history": [3, None, 9]}, ROW | {"movie": 2, "history": []}, ROW | {"movie": None}]
    rows[2]["history"] = None
    write_split(tmp_path / "train", [rows], group=1)
    source = Source.open(make_recipe(tmp_path), "train")
    assert source.id_range("movie") == (2, 7)
    assert source.id_range("history") == (3, 9)
    write_split(tmp_path / "train", [rows], group=1, write_statistics=False)
    assert Source.open(make_recipe(tmp_path), "train").id_range("movie") is None


def test_statistics(tmp_path):
    rows = make_rows(200) + [ROW | {"age": None, "click": 1}] * 6
    found = scanned(tmp_path, rows, group=3)
    for feature, column in (("age", "age"), ("cost", "price")):
        values = np.array([row[column] for row in rows if row[column] is not None], float)
        assert found.mean[feature] == [pytest.approx(values.mean(), rel=1e-12)]
        assert found.std[feature] == [pytest.approx(values.std(), rel=1e-12)]
    assert found.rows == 206
    assert found.rate == {
        "click": pytest.approx(np.mean([row["click"] for row in rows])),
        "liked": pytest.approx(np.mean([row["like"] for row in rows])),
    }
    assert Statistics.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_statistics_of_constant_and_missing_columns(tmp_path):
    found = scanned(tmp_path, [ROW | {"age": 0.1, "price": None}] * 7)
    assert found.mean == {"age": [0.1], "cost": [0.0]}
    assert found.std == {"age": [1.0], "cost": [1.0]}


@given(st.lists(st.lists(st.floats(-1e3, 1e3), max_size=5), min_size=1, max_size=6), st.floats(-1e9, 1e9))
def test_moments_merge(groups, shift):
    """The merge is exact to rounding, also for values far from zero."""
    total = Moments.of(np.zeros((0, 1)))
    for group in groups:
        total = total.merge(Moments.of((np.array(group) + shift).reshape(-1, 1)))
    values = np.concatenate([np.array(group) + shift for group in groups])
    if len(values):
        assert total.mean[0] == pytest.approx(values.mean(), rel=1e-12, abs=1e-9)
        assert total.squares[0] == pytest.approx(np.square(values - values.mean()).sum(), rel=1e-6, abs=1e-4)


@pytest.mark.parametrize(
    ("column", "value", "kind", "text"),
    [
        ("click", 2, pa.int8(), "tasks.click.label 'click' holds 2, but a label is 0 or 1"),
        ("click", -1, pa.int64(), "tasks.click.label 'click' holds -1,"),
        ("click", None, pa.int8(), "tasks.click.label 'click' holds None,"),
        ("like", 0.5, pa.float32(), "tasks.liked.label 'like' holds 0.5,"),
        ("like", math.nan, pa.float32(), "tasks.liked.label 'like' holds nan,"),
        (
            "age",
            math.nan,
            pa.float64(),
            "features.age holds nan; store finite float32 numbers, and null where there is none",
        ),
        ("age", -math.inf, pa.float64(), "features.age holds -inf;"),
        ("age", 1e300, pa.float64(), "features.age holds 1e+300;"),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_bad_values(tmp_path, column, value, kind, text, alone):
    """`alone`: the row group holds nothing else, so its footer may tell."""
    rows = [dict(ROW) for _ in range(9)]
    rows[0]["age"] = None
    for row in rows[4:6] if alone else rows[5:6]:
        row[column] = value
    rows[8][column] = value
    write_split(tmp_path / "train", [rows], group=2, schema=changed(column, kind))
    recipe = make_recipe(tmp_path)
    with pytest.raises(BadInput) as caught:
        scan(Source.open(recipe, "train"), recipe)
    place = f"{tmp_path}/train/part-0.parquet, row group 2, row {0 if alone else 1}: "
    assert str(caught.value).startswith(place + text)


def test_the_row_of_a_bad_value_counts_missing_ones(tmp_path):
    rows = [ROW | {"age": age} for age in (None, None, 1.0, math.nan)]
    with pytest.raises(BadInput, match="row group 0, row 3: features.age"):
        scanned(tmp_path, rows, group=4)


@pytest.mark.parametrize("kind", [pa.bool_(), pa.int64(), pa.float64(), pa.uint8()])
def test_labels_of_any_type(tmp_path, kind):
    zero, one = pa.array([0, 1]).cast(kind).to_pylist()
    write_split(
        tmp_path / "train", [[ROW | {"click": value} for value in [one, zero, zero] * 3]], schema=changed("click", kind)
    )
    recipe = make_recipe(tmp_path, shards=1)
    source = Source.open(recipe, "train")
    assert scan(source, recipe).rate["click"] == pytest.approx(1 / 3)
    (batch,) = Reader(source, recipe, rank=0, world=1, shuffle=False).batches(0)
    assert batch.labels[:, 0].tolist() == [1, 0, 0] * 3 + [0] * 3


def test_constant_labels_are_not_read(tmp_path, monkeypatch):
    rows = [ROW | {"click": int(n < 4), "like": float(n % 2)} for n in range(8)]
    write_split(tmp_path / "train", [rows], group=4)
    recipe = make_recipe(tmp_path)
    asked = []
    read = Source.read
    monkeypatch.setattr(
        Source, "read", lambda self, group, columns: asked.append(columns) or read(self, group, columns)
    )
    assert scan(Source.open(recipe, "train"), recipe).rate == {"click": 0.5, "liked": 0.5}
    assert asked == [["age", "price", "user", "movie", "like"]] * 2


def test_scan_of_a_corrupt_group(tmp_path, caplog):
    rows = [ROW | {"age": float(n)} for n in range(10)]
    (path,) = write_split(tmp_path / "train", [rows])
    corrupt(path, group=0, column="age")
    recipe = make_recipe(tmp_path)
    with pytest.raises(CorruptGroup, match="row group 0: its 5 rows do not decode"):
        scan(Source.open(recipe, "train"), recipe)
    recipe = make_recipe(tmp_path, on_corrupt="skip")
    done = []
    found = scan(Source.open(recipe, "train"), recipe, Looking(told=lambda *told: done.append(told), name="train"))
    assert (found.rows, found.mean["age"], done) == (5, [7.0], [("train", "rows", 10, 10)])
    assert "row group 0" in caplog.text
    corrupt(path, group=1, column="age")
    with pytest.raises(BadInput, match="not one row group can be read"):
        scan(Source.open(recipe, "train"), recipe)


def with_tasks(recipe, **tasks):
    return type(recipe).model_validate(recipe.model_dump() | {"model": recipe.model, "tasks": tasks})


NUMBERS = {
    "watch": {"label": "like", "kind": "watch_time", "unknown": True, "sample_weight": "price"},
    "spent": {"label": "age", "kind": "regression"},
}


def test_numbers_and_unknown_labels(tmp_path):
    rows = [ROW | {"like": like, "age": 2.5, "price": 3} for like in (None, 7.5, 0.0, math.nan, 1e4)]
    write_split(tmp_path / "train", [rows])
    recipe = with_tasks(make_recipe(tmp_path, features={"user": {"type": "id", "table": "users"}}, shards=1), **NUMBERS)
    source = Source.open(recipe, "train")
    assert source.columns == ["user", "like", "price", "age"]
    found = scan(source, recipe)
    assert found.rate == {"watch": pytest.approx(10007.5 / 3), "spent": 2.5}
    assert found.unknown == {"watch": pytest.approx(0.4), "spent": 0}
    assert Statistics.from_dict({k: v for k, v in found.to_dict().items() if k != "unknown"}).unknown == {}
    (batch,) = Reader(source, recipe, rank=0, world=1, shuffle=False).batches(0)
    assert batch.labels[:5, 1].tolist() == [2.5] * 5
    assert batch.labels[:5, 0].isnan().tolist() == [True, False, False, True, False]
    assert batch.sample_weights[:5].tolist() == [[3, 1]] * 5
    assert batch.weights.tolist() == [1] * 5 + [0] * 7
    assert not batch.labels[5:].any()
    assert not batch.sample_weights[5:, 0].any()


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("like", -1.0, "tasks.watch.label 'like' holds -1.0, but a label is a number from 0 on; correct the data, or"),
        ("like", math.inf, "tasks.watch.label 'like' holds inf,"),
        ("age", None, "tasks.spent.label 'age' holds None, but a label is a number from 0 on; correct the data, set "),
        ("age", 1e39, "tasks.spent.label 'age' holds 1e+39,"),
        ("price", -3, "tasks.watch.sample_weight 'price' holds -3, but a weight is a finite number from 0 on"),
        ("price", None, "tasks.watch.sample_weight 'price' holds None,"),
    ],
)
def test_bad_numbers_and_weights(tmp_path, column, value, text):
    rows = [ROW | {"like": 1.0, "age": 2.5, "price": 3} for _ in range(4)]
    rows[3][column] = value
    write_split(tmp_path / "train", [rows], group=2)
    recipe = with_tasks(make_recipe(tmp_path, features={"user": {"type": "id", "table": "users"}}), **NUMBERS)
    with pytest.raises(BadInput) as caught:
        scan(Source.open(recipe, "train"), recipe)
    assert str(caught.value).startswith(f"{tmp_path}/train/part-0.parquet, row group 1, row 1: {text}")


def test_a_skipped_row_weighs_nothing(tmp_path):
    rows = [ROW | {"like": 1.0, "age": 2.5, "price": 3} for _ in range(10)]
    (path,) = write_split(tmp_path / "train", [rows], group=5)
    corrupt(path, group=0, column="price")
    features = {"user": {"type": "id", "table": "users"}}
    recipe = with_tasks(make_recipe(tmp_path, features=features, shards=1, on_corrupt="skip"), **NUMBERS)
    (batch,) = Reader(Source.open(recipe, "train"), recipe, rank=0, world=1, shuffle=False).batches(0)
    for column in (batch.labels, batch.sample_weights[:, :1]):
        assert bool(column.isfinite().all())
        assert not column[batch.weights == 0].any()


def write_days(folder, days):
    for day, rows in days.items():
        write_split(folder / f"date={day}", [make_rows(rows, seed=rows)])


DAYS = {"train": "2025-05-25..2025-05-26", "valid": "2025-05-27..2025-05-27", "test": "2025-05-28..2025-05-29"}


def test_splits_are_days(tmp_path):
    write_days(tmp_path, {"2025-05-25": 3, "2025-05-26": 5, "2025-05-27": 2, "2025-05-28": 0, "2025-05-29": 4})
    write_split(tmp_path / "date=2025-05-30", [make_rows(9)])  # of no split
    recipe = make_recipe(tmp_path, days=DAYS)
    found = {split: Source.open(recipe, split) for split in DAYS}
    assert {split: source.rows for split, source in found.items()} == {"train": 8, "valid": 2, "test": 4}
    assert [group.path.split("/")[-2] for group in found["train"].groups] == ["date=2025-05-25", "date=2025-05-26"]
    assert found["test"].folder == f"{tmp_path}/date=2025-05-28..2025-05-29"


def test_a_missing_day_is_named(tmp_path):
    write_days(tmp_path, {"2025-05-25": 3})
    with pytest.raises(BadInput) as error:
        Source.open(make_recipe(tmp_path, days=DAYS), "train")
    assert str(error.value) == (
        f"data.days.train: {tmp_path} has no partition date=2025-05-26; prepare that day, or choose other days"
    )


def test_few_files_stay_open(tmp_path):
    """A thread keeps the files that it used last; whoever unpickles a source opens its own."""
    write_split(tmp_path / "train", [make_rows(4, seed=n) for n in range(6)])
    source = Source.open(make_recipe(tmp_path), "train")
    for group in [*source.groups, *reversed(source.groups)]:
        assert source.read(group, ["movie"]).num_rows == group.rows
    assert len(source._open.__dict__) == 4
    assert not pickle.loads(pickle.dumps(source))._open.__dict__
