"""Slices: a condition picks the rows that a slow reading of it picks, whatever their types, and is refused in time."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.slices import Slices
from livetrain.trainers.data.read.source import Source
from tests import samples

ROWS = pa.table(
    {
        "seen": pa.array([1, 9, None], pa.uint64()),
        "half": pa.array(np.array([0.5, 2.0, 3.0], np.float16)),
        "city": pa.array(["Ulm", None, "Bern"]),
        "tags": pa.array([[1, 2], [], None], pa.list_(pa.int32())),
        "moment": pa.array([0, 3_600_000_000, None], pa.timestamp("us", tz="Asia/Tokyo")),
        "nothing": pa.nulls(3),
        "part": pa.array([{"x": 1}, {"x": 2}, None]),
    }
)


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        ("seen < 3", [1, 0, 0]),
        ("seen IS NULL", [0, 0, 1]),
        ("NOT seen < 3", [0, 1, 0]),
        ("half > 1 -- of the day", [0, 1, 1]),
        ("city LIKE 'B%' OR seen = 9", [0, 1, 1]),
        ("len(tags) = 0", [0, 1, 0]),
        ("hour(moment) = 1", [0, 1, 0]),
        ("nothing > 3", [0, 0, 0]),
        ("part.x = 2", [0, 1, 0]),
    ],
)
def test_a_condition_on_columns_of_any_type(condition, wanted):
    slices = Slices({"all": "seen > 0 OR seen IS NULL", "some": condition})
    slices.check(ROWS.schema, "valid")
    assert slices.marks(ROWS).tolist() == [1 + 2 * one for one in wanted]


@given(st.lists(st.tuples(st.none() | st.integers(-5, 5), st.floats(-3, 3)), max_size=20), st.integers(-4, 4))
def test_marks_are_those_of_python(rows, bound):
    table = pa.table(
        {"a": pa.array([a for a, _ in rows], pa.int64()), "b": pa.array([b for _, b in rows], pa.float64())}
    )
    slices = Slices({"low": f"a < {bound}", "both": f"a < {bound} AND b >= 0.5", "none": "b > 100"})
    wanted = [(a is not None and a < bound) + 2 * (a is not None and a < bound and b >= 0.5) for a, b in rows]
    assert slices.marks(table).tolist() == wanted


def test_threads_ask_at_the_same_time():
    tables = [pa.table({"a": np.random.default_rng(n).integers(0, 9, 3000)}) for n in range(24)]
    slices = Slices({"low": "a < 4", "high": "a > 6"})
    with ThreadPoolExecutor(8) as pool:
        for table, marks in zip(tables, pool.map(slices.marks, tables), strict=True):
            a = table.column("a").to_numpy()
            assert (marks == (a < 4) + 2 * (a > 6)).all()


@pytest.mark.parametrize(
    ("condition", "why"),
    [
        ("seen <", "is no SQL expression"),
        ("seen < 3; DROP TABLE x", "is no SQL expression"),
        ("seen < 3) FROM (SELECT 1", "holds a query"),
        ("seen IN (SELECT 1)", "holds a query"),
        ("sum(seen) OVER () > 3", "holds a function of several rows"),
        ("sum(seen) > 3", r"holds sum\(\), a function of several rows"),
        ("random() < seen", r"holds random\(\), which answers otherwise every time"),
        ("read_text('/etc/passwd') LIKE seen", "cannot be asked of valid"),
        ("true", "names no column"),
        ("seen", "is UBIGINT, no condition; compare it, as user_count < 3"),
        ("city > 3", "cannot be asked of valid"),
        ("sen < 3", 'Referenced column "sen" not found'),
    ],
)
def test_what_is_no_condition_on_a_row_is_refused(condition, why):
    with pytest.raises(BadInput, match=rf"^evaluate\.slices\.some: .*{why}"):
        Slices({"fine": "seen < 3", "some": condition}).check(ROWS.schema, "valid")


def test_a_value_at_which_a_condition_fails_is_refused():
    slices = Slices({"fine": "seen < 3", "some": "city = 3"})
    slices.check(ROWS.schema, "valid")
    with pytest.raises(BadInput, match=r"^evaluate\.slices\.some: 'city = 3' cannot be asked of the data"):
        slices.marks(ROWS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = samples.write(tmp_path_factory.mktemp("slices"), rows=400)
    for split in ("train", "valid", "test"):
        file = folder / split / "part-0.parquet"
        table = pq.read_table(file)
        city = pa.array([None if n % 5 == 0 else f"city {n % 3}" for n in range(len(table))]).dictionary_encode()
        pq.write_table(table.append_column("city", city), file, row_group_size=64)
    return folder


def test_a_column_of_no_feature_is_read_in_evaluations_alone(data):
    recipe = samples.recipe(data, evaluate__slices={"first": "city = 'city 0'", "rare": "user < 20"})
    source = Source.open(recipe, "test")
    options = {"rank": 0, "world": 1}
    assert "city" not in Reader(source, recipe, shuffle=True, **options).columns
    reader = Reader(source, recipe, shuffle=False, groups=True, slices=True, **options)
    table = pq.read_table(data / "test")
    city, user = table.column("city").to_pylist(), table.column("user").to_pylist()
    found = {}
    for batch in reader.batches(0):
        found |= dict(zip(batch.rows.tolist(), batch.slices.tolist(), strict=True))
        assert batch.groups is not None
    assert found.pop(-1) == 0  # padding
    assert [found[n] for n in range(100)] == [(c == "city 0") + 2 * (u < 20) for c, u in zip(city, user, strict=True)]


def test_a_missing_column_is_named_before_anything_starts(data):
    recipe = samples.recipe(data, evaluate__slices={"some": "town = 'x'"})
    with pytest.raises(BadInput, match=r"^evaluate\.slices\.some: .*part-0.parquet has no column 'town'"):
        Source.open(recipe, "test")
