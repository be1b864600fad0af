"""What is known of a split's ids: against counting all of them in NumPy."""

from collections import Counter
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from livetrain.modules.tables.hashing import row
from livetrain.trainers.data.read import lookups
from livetrain.trainers.data.read.lookups import Looked, looked_up
from livetrain.trainers.data.read.source import Source
from tests import samples


@pytest.fixture
def skewed(tmp_path):
    """Rows sorted by user, so that each place has few of them; half of all movies looked up are movie 7, or missing."""
    data, rng = samples.write(tmp_path / "data", rows=40), np.random.default_rng(0)
    rows = 6400
    lengths = rng.integers(0, 10, rows)
    history = np.where(rng.random(lengths.sum()) < 0.5, 7, rng.integers(0, 10**12, lengths.sum()))
    table = {
        "user": pa.array(np.arange(rows) // 50),
        "movie": pa.array(rng.integers(0, 10**12, rows), mask=rng.random(rows) < 0.25),
        "history": pa.ListArray.from_arrays(pa.array(np.r_[0, np.cumsum(lengths)], pa.int32()), pa.array(history)),
        "rating": pa.ListArray.from_arrays(
            pa.array(np.r_[0, np.cumsum(lengths)], pa.int32()), pa.array(rng.integers(1, 6, lengths.sum()))
        ),
        "rate": pa.array(rng.random(rows)),
        **{name: pa.array(np.zeros(rows, np.int8)) for name in ("label", "like", "watch", "gift", "worth")},
    }
    pq.write_table(pa.table(table), data / "train" / "part-0.parquet", row_group_size=100)
    return samples.recipe(data), lengths


def test_means_and_frequent_ids_are_those_of_the_data(skewed):
    recipe, lengths = skewed
    found = looked_up(Source.open(recipe, "train"), recipe)
    assert sorted(found) == ["history", "movie", "rating", "user"]
    assert found["user"].mean == 1
    assert found["movie"].mean == pytest.approx(0.75, abs=0.03)
    assert found["history"].mean == pytest.approx(np.minimum(lengths, 6).mean(), rel=0.05)
    assert found["history"].ids.tolist() == [7]
    assert found["history"].share == pytest.approx([0.5], abs=0.03)
    assert sorted(found["rating"].ids) == [1, 2, 3, 4, 5]
    assert found["rating"].share == pytest.approx([0.2] * 5, abs=0.03)
    assert len(found["user"].ids) == 0  # each is frequent at one place alone
    assert len(found["movie"].ids) == 0


def test_what_is_kept_of_a_place_does_not_hold_on_to_all_of_its_ids(skewed):
    recipe, _ = skewed
    source = Source.open(recipe, "train")
    names = {name: recipe.column(name) for name in ("movie", "history")}
    with mock.patch.object(lookups, "_IDS", 16):
        rows, found = lookups._Place(source, recipe.features, names)(source.groups[0])
    assert rows == 100
    assert all(ids.base is None and len(ids) <= 16 for _, ids in found.values())


def test_it_is_kept_beside_the_data_and_read_once(skewed):
    recipe, _ = skewed
    first = looked_up(Source.open(recipe, "train"), recipe)
    with mock.patch.object(lookups, "_found", side_effect=AssertionError):
        again = looked_up(Source.open(recipe, "train"), recipe)
    for name, one in first.items():
        assert (one.mean, one.ids.tolist()) == (again[name].mean, again[name].ids.tolist())
        assert one.share.tolist() == again[name].share.tolist()


def test_a_row_group_that_does_not_decode_is_left_out(skewed):
    recipe, lengths = skewed
    path = next((samples.Path(recipe.data.path) / "train").glob("*.parquet"))
    place = pq.ParquetFile(path).metadata.row_group(2).column(2).data_page_offset
    content = bytearray(path.read_bytes())
    content[place : place + 200] = bytes(200)
    path.write_bytes(content)
    found = looked_up(Source.open(recipe, "train"), recipe)
    assert found["history"].mean == pytest.approx(np.minimum(lengths, 6).mean(), rel=0.1)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=9, unique=True), st.integers(1, 70), st.data())
def test_the_part_of_every_block(ids, rows, data):
    """Against a table of which every row is written out."""
    blocks, modulo = data.draw(st.integers(1, 9)), data.draw(st.booleans())
    share = np.full(len(ids), 0.6 / len(ids))
    each = Counter(dict.fromkeys(range(rows), 0.4 / rows))
    for one, part in zip(row(torch.tensor(ids), rows, modulo).tolist(), share, strict=True):
        each[one] += part
    size = -(-rows // blocks)
    wanted = [sum(each[n] for n in range(block * size, min((block + 1) * size, rows))) for block in range(blocks)]
    assert Looked(1.0, np.array(ids), share).blocks(rows, modulo, blocks) == pytest.approx(wanted)
