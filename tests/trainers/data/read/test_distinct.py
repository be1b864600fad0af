"""How many different ids a column has: as sets do, kept beside the data, and said where a table is crowded."""

import math
import re

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given

from livetrain.trainers.data.checks import brief
from livetrain.trainers.data.read import distinct
from livetrain.trainers.data.read.distinct import KEPT, Ids
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.statistics import scan
from tests.trainers.data.parquet import make_recipe, make_rows, write_split

ids = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30).map(lambda values: np.array(values, np.int64))


@given(ids, ids)
def test_a_sketch_of_parts_is_the_sketch_of_all_and_exact_where_ids_are_few(one, other):
    both = Ids.of(one).merge(Ids.of(other))
    assert np.array_equal(both.hashes, Ids.of(np.concatenate([one, other])).hashes)
    assert both.count == len({*one.tolist(), *other.tolist()})
    assert np.array_equal(Ids.restored(both.arrays()).hashes, both.hashes)


@pytest.mark.parametrize("count", [KEPT - 1, KEPT, 50_000])
def test_many_ids_are_counted_to_some_percent(count):
    parts = [Ids.of(part) for part in np.array_split(np.arange(count) * 7 - 1000, 9)]
    total = distinct.Distinct.nothing
    for part in parts:
        total = total.merge(part)
    assert len(total.hashes) == min(count, KEPT)
    assert total.count == pytest.approx(count, rel=0.08)  # five standard deviations


def test_ids_of_all_parts_are_counted_once_and_kept(tmp_path, monkeypatch):
    write_split(tmp_path / "train", [make_rows(60, seed) for seed in range(3)], 20)
    recipe = make_recipe(tmp_path)
    source = Source.open(recipe, "train")
    tables = [source.read(group, ["user", "movie"]) for group in source.groups]
    users = {user for table in tables for user in table["user"].to_pylist()} - {None}
    movies = {movie for table in tables for movie in table["movie"].to_pylist()} - {None}
    assert scan(source, recipe).distinct == {"user": len(users), "movie": len(movies)}
    monkeypatch.setattr(Source, "read", None)  # what is kept is not read again
    assert scan(Source.open(recipe, "train"), recipe).distinct == {"user": len(users), "movie": len(movies)}


def test_strings_are_ids_too():
    recipe = make_recipe("nowhere")
    table = pa.table({"user": pa.array(["a", "b", None, "a"])})
    assert distinct.distinct(recipe)["user"].of(table, 0, "").count == 2


def test_a_crowded_table_is_named_with_rows_that_would_do(tmp_path):
    for split in ("train", "valid", "test"):
        write_split(tmp_path / split, [make_rows(200)], 100)
    crowded, roomy = (make_recipe(tmp_path) for _ in range(2))
    roomy.tables["users"] = roomy.tables["users"].model_copy(update={"rows": 10_000})
    for made, expected in ((roomy, 0), (crowded, 1)):
        sources = {split: Source.open(made, split) for split in ("train", "valid", "test")}
        notes: list[str] = []
        brief.examine(made, sources, {split: scan(source, made) for split, source in sources.items()}, notes.append)
        said = [note for note in notes if "tables.users" in note and "are shared by about" in note]
        assert len(said) == expected
    count = scan(sources["train"], crowded).distinct["user"]
    assert f"the 100 rows are shared by about {float(f'{count:.2g}'):,.0f} ids of column user" in said[0]
    rows = int(re.findall("rows: ([0-9,]+) would", said[0])[0].replace(",", ""))
    assert 1 - math.exp(-count / rows) == pytest.approx(brief.CROWDED, abs=0.01)
