"""Items by an inverted table, beside sums by hand."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from livetrain.modules.recall.fitted import Table
from livetrain.trainers.recall.inverted import Request, SearchedTable


def by_hand(table: dict, request: list[tuple[int, float]], allowed: np.ndarray, rest: dict) -> dict[int, float]:
    worth: dict[int, float] = {}
    left = 1.0
    for key, weight in request:
        for item, score in table.get(key, {}).items():
            if allowed[item]:
                worth[item] = worth.get(item, 0) + left * weight * score
        left *= rest[key] if key in table else 1
    return worth


NUMBERS = st.integers(1, 8).map(float)  # sums of them are exact
TABLES = st.dictionaries(st.integers(-9, 9), st.dictionaries(st.integers(0, 6), NUMBERS, max_size=4), max_size=5)
REQUESTS = st.lists(st.lists(st.tuples(st.integers(-9, 9), NUMBERS), max_size=4), min_size=1, max_size=4)
RESTS = st.lists(st.sampled_from([1.0, 0.25]), min_size=19, max_size=19)


@given(TABLES, REQUESTS, st.lists(st.booleans(), min_size=7, max_size=7), RESTS, st.integers(1, 9))
def test_scores_are_sums_over_the_keys(table, requests, allowed, rests, count):
    keys = sorted(table)
    entries = [sorted(table[key].items()) for key in keys]
    rest = {key: rests[key + 9] for key in range(-9, 10)}
    index = SearchedTable(
        Table(
            keys=np.array(keys, np.int64),
            offsets=np.cumsum([0, *map(len, entries)]),
            items=np.arange(7),
            places=np.array([item for own in entries for item, _ in own], np.int32),
            scores=np.array([score for own in entries for _, score in own], np.float32),
            rest=np.array([rest[key] for key in keys] if min(rests) < 1 else [], np.float32),
        )
    )
    flat = [pair for own in requests for pair in own]
    query = Request(
        np.array([key for key, _ in flat], np.int64),
        np.array([len(own) for own in requests]),
        np.array([weight for _, weight in flat], np.float32),
    )
    places, scores = index.search(query, count, np.array(allowed))
    for own, found, told in zip(requests, places, scores, strict=True):
        worth = by_hand(table, own, np.array(allowed), rest)
        best = sorted(worth.values(), reverse=True)[:count]
        np.testing.assert_allclose(told, best + [-np.inf] * (count - len(best)), rtol=1e-5)
        assert (found[len(best) :] == -1).all()
        np.testing.assert_allclose([worth[item] for item in found[: len(best)]], best, rtol=1e-5)
        assert len({*found[: len(best)].tolist()}) == len(best)


TABLE = Table(
    keys=np.array([3, 8]),
    offsets=np.array([0, 2, 3]),
    items=np.array([40, 50, 60]),
    places=np.array([0, 1, 1], np.int32),
    scores=np.array([1, 2, 5], np.float32),
    rest=np.zeros(0, np.float32),
)


def test_files_hold_the_table(tmp_path):
    SearchedTable(TABLE).write(tmp_path)
    query = Request(np.array([3, 8]), np.array([2]), np.array([1.0, 0.5]))
    read = SearchedTable.read(tmp_path, TABLE.items)
    for one, other in zip(SearchedTable(TABLE).search(query, 3, None), read.search(query, 3, None), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (tmp_path / "table.places.bin").stat().st_size == 3 * 4


def test_an_empty_table_finds_nothing(tmp_path):
    parts = {name: getattr(TABLE, name)[:0] for name in ("keys", "places", "scores", "rest")}
    SearchedTable(TABLE._replace(offsets=np.zeros(1, np.int64), **parts)).write(tmp_path)
    none = SearchedTable.read(tmp_path, TABLE.items)
    places, scores = none.search(Request(np.array([3]), np.array([1]), np.ones(1)), 2, None)
    assert places.tolist() == [[-1, -1]]
    assert np.isneginf(scores).all()
