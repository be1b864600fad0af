"""Items by an inverted table, beside sums by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetrain.trainers.recall.inverted import Inverted, Request


def by_hand(table: dict, request: list[tuple[int, float]], allowed: np.ndarray, first: bool) -> dict[int, float]:
    known = [(key, weight) for key, weight in request if key in table]
    worth: dict[int, float] = {}
    for key, weight in known[:1] if first else known:
        for item, score in table[key].items():
            if allowed[item]:
                worth[item] = worth.get(item, 0) + weight * score
    return worth


NUMBERS = st.integers(1, 8).map(float)  # sums of them are exact
TABLES = st.dictionaries(st.integers(-9, 9), st.dictionaries(st.integers(0, 6), NUMBERS, max_size=4), max_size=5)
REQUESTS = st.lists(st.lists(st.tuples(st.integers(-9, 9), NUMBERS), max_size=4), min_size=1, max_size=4)


@given(TABLES, REQUESTS, st.lists(st.booleans(), min_size=7, max_size=7), st.booleans(), st.integers(1, 9))
def test_scores_are_sums_over_the_keys(table, requests, allowed, first, count):
    keys = sorted(table)
    entries = [sorted(table[key].items()) for key in keys]
    index = Inverted(
        np.array(keys, np.int64),
        np.cumsum([0, *map(len, entries)]),
        np.array([item for own in entries for item, _ in own], np.int32),
        np.array([score for own in entries for _, score in own], np.float32),
        count=7,
        first=first,
    )
    flat = [pair for own in requests for pair in own]
    query = Request(
        np.array([key for key, _ in flat], np.int64),
        np.array([len(own) for own in requests]),
        np.array([weight for _, weight in flat], np.float32),
    )
    places, scores = index.search(query, count, np.array(allowed))
    for own, found, told in zip(requests, places, scores, strict=True):
        worth = by_hand(table, own, np.array(allowed), first)
        wanted = sorted(worth.items(), key=lambda pair: (-pair[1], pair[0]))[:count]
        assert found.tolist() == [item for item, _ in wanted] + [-1] * (count - len(wanted))
        assert told.tolist() == [score for _, score in wanted] + [-np.inf] * (count - len(wanted))


def test_files_hold_the_table(tmp_path):
    made = Inverted(np.array([3, 8]), np.array([0, 2, 3]), np.array([0, 1, 1]), np.array([1.0, 2.0, 5.0]), 4)
    made.write(tmp_path)
    query = Request(np.array([3, 8]), np.array([2]), np.array([1.0, 0.5]))
    read = Inverted.read(tmp_path, 4, first=False)
    for one, other in zip(made.search(query, 3, None), read.search(query, 3, None), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (tmp_path / "table.places.bin").stat().st_size == 3 * 4


def test_an_empty_table_finds_nothing():
    none = Inverted(np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), 4)
    places, scores = none.search(Request(np.array([3]), np.array([1]), np.ones(1)), 2, None)
    assert places.tolist() == [[-1, -1]]
    assert scores.tolist() == [[pytest.approx(-np.inf)] * 2]
