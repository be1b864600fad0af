"""Places by hash, items by chance, runs of equal lists, against slow ways; and lists that repeated rows share."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetrain.configs.schema import Recipe
from livetrain.trainers.data.read import carry
from livetrain.trainers.data.read.draws import Chances, Places, begins_run
from tests import samples

INT64 = st.integers(-(2**63), 2**63 - 1) | st.integers(-20, 20)


@given(st.lists(INT64, min_size=1, unique=True), st.lists(INT64))
def test_places(ids, asked):
    where = {value: place for place, value in enumerate(ids)}
    found = Places(np.array(ids, np.int64))(np.array([*ids, *asked], np.int64))
    assert found.tolist() == [where.get(value, -1) for value in [*ids, *asked]]


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=200), st.data())
def test_chances(of, data):
    low = data.draw(st.integers(0, len(of) - 1))
    high = data.draw(st.integers(low + 1, len(of)))
    share = data.draw(st.floats(0, 1, exclude_max=True))
    ends = np.concatenate([[0.0], np.cumsum(of)])
    wanted = np.searchsorted(ends, ends[low] + share * (ends[high] - ends[low]), side="right") - 1
    (found,) = Chances(np.array(of)).within(np.array([low]), np.array([high]), np.array([share]))
    assert found == min(max(wanted, low), high - 1)


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=3), st.lists(st.integers(0, 1), max_size=2), st.booleans()))
)
def test_runs_of_equal_lists(rows):
    rows = [row for row in rows for _ in range(len(row[0]) + 1)]  # so that many follow one like them

    def column(lists):
        offsets = np.cumsum([0, *(len(one) for one in lists)])
        return offsets, np.array([value for one in lists for value in one], np.int64)

    found = begins_run(
        [column([row[0] for row in rows]), column([row[1] for row in rows])], [np.array([row[2] for row in rows])]
    )
    assert found.tolist() == [not n or row != rows[n - 1] for n, row in enumerate(rows)]


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.large_list(pa.int64()), pa.list_(pa.string())], ids=str)
def test_repeated_rows_share_their_lists(tmp_path, kind):
    stored = [[1, None, 2], None, [], [3], [None]]
    if pa.types.is_string(kind.value_type):
        stored = [own and [value and f"item {value}" for value in own] for own in stored]
    recipe: Recipe = samples.recipe(tmp_path)
    feature, rows = recipe.features["history"], np.array([0, 0, 1, 3, 0, 2, 4, 3])
    array = pa.array([[], *stored], kind).slice(1)
    found = carry.ids(feature, carry.repeated(array, rows))
    values, lengths = found.cut(0, len(rows))
    ids, counts = carry.ids(feature, array.take(pa.array(rows))).cut(0, len(rows))
    assert (values.tolist(), lengths.tolist()) == (ids.tolist(), counts.tolist())
    assert lengths.tolist() == [2, 2, 0, 1, 2, 0, 0, 1]
