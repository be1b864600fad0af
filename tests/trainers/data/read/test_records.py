"""The compiled passes and NumPy's, against records written the slow way."""

import functools
import logging
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livetrain.trainers.data.read.records import SOURCE, Column, Columns, Compiled, Plain, Slice, passes, running
from livetrain.trainers.runtime import compiler

WAYS = ["compiled", "plain"]


@functools.cache
def passes_by(way):
    return Compiled(compiler.shared_object(SOURCE)) if way == "compiled" else Plain()


class Drawn(NamedTuple):
    """A window, and what each of its rows holds: the number, further integers, ids of each feature, floats."""

    slices: list[Slice]
    limits: np.ndarray
    order: np.ndarray | None
    marks: np.ndarray
    rows: list[tuple[list[int], list[list[int]], list[float]]]

    def pack(self, way, first):
        return passes_by(way).pack(first, self.slices, self.limits, self.order, self.marks)

    def read(self, k):
        """Return a step's rows."""
        places = range(self.marks[k], self.marks[k + 1])
        return [self.rows[place if self.order is None else self.order[place]] for place in places]


@st.composite
def windows(draw):
    features, others = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    widths = draw(st.lists(st.integers(0, 3), max_size=3))  # of the columns of floats; 0: one per row, without an axis
    counter, slices, rows = iter(range(1, 100_000)), [], []
    for stored in draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)):
        start = draw(st.integers(0, stored - 1))
        stop = draw(st.integers(start + 1, stored))
        first = draw(st.sampled_from([-1, 0, 50]))
        ids, columns = [], []
        for _ in range(features):
            ragged = draw(st.booleans())
            lengths = np.array([draw(st.integers(0, 4)) if ragged else 1 for _ in range(stored)])
            values = np.array([next(counter) for _ in range(lengths.sum())], np.int64)
            column, own = Column(values), np.arange(stored)
            if ragged:
                own = np.array([draw(st.integers(0, stored - 1)) for _ in own])  # rows may share their values
                offsets = running(lengths)
                column = Column(values, offsets[:-1][own], offsets[1:][own])
            lists = np.split(values, np.cumsum(lengths)[:-1])
            ids.append([lists[row].tolist() for row in own])
            columns.append(column)
        plain = [
            np.array([draw(st.sampled_from([-1, 1])) * next(counter) for _ in range(stored)]) for _ in range(others)
        ]
        floats = [
            np.array([[next(counter) for _ in range(max(w, 1))] for _ in range(stored)], np.float32) for w in widths
        ]
        floats = [column[:, 0].copy() if w == 0 else column for column, w in zip(floats, widths, strict=True)]
        slices.append(Slice(Columns(first, columns, plain, floats), start, stop))
        for row in range(start, stop):
            numbers = [-1 if first < 0 else first + row, *(int(column[row]) for column in plain)]
            rows.append(
                (
                    numbers,
                    [own[row] for own in ids],
                    [float(number) for column in floats for number in np.atleast_1d(column[row])],
                )
            )
    limits = np.array([draw(st.integers(1, 4)) for _ in range(features)], np.int64)
    order = draw(st.none() | st.permutations(range(len(rows))).map(np.array))
    marks = np.array(sorted({0, len(rows), *draw(st.lists(st.integers(0, len(rows)), max_size=3))}))
    return Drawn(slices, limits, order, marks, rows)


def head(rows, limits):
    """Return what the record of some rows begins with."""
    lists = list(zip(*(ids for _, ids, _ in rows), strict=True)) if rows else [()] * len(limits)
    kept = [sum(min(len(part), limit) for part in own) for own, limit in zip(lists, limits, strict=True)]
    cut = [sum(len(part) > limit for part in own) for own, limit in zip(lists, limits, strict=True)]
    return [len(rows), sum(numbers[0] < 0 for numbers, _, _ in rows), *kept, *cut]


def columns_of(rows, limits):
    """Return the rows' integers column by column: plain ones, lengths, ids."""
    kept = [[part[-limit:] for part, limit in zip(ids, limits, strict=True)] for _, ids, _ in rows]
    plain = zip(*(numbers for numbers, _, _ in rows), strict=True)
    lists = list(zip(*kept, strict=True))
    found = [*(list(column) for column in plain), *([len(part) for part in own] for own in lists)]
    return found + [[value for part in own for value in part] for own in lists]


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=60, deadline=None)
@given(window=windows())
def test_pack(way, window):
    block = window.pack(way, 7)
    expected = [
        head(rows, window.limits) + [value for column in columns_of(rows, window.limits) for value in column]
        for rows in map(window.read, range(len(window.marks) - 1))
    ]
    assert (block.first, block.marks.tolist()) == (7, window.marks.tolist())
    assert block.at.tolist() == running(np.array([len(one) for one in expected])).tolist()
    assert block.records.tolist() == [number for one in expected for number in one]
    floats = [floats for k in range(len(window.marks) - 1) for _, _, floats in window.read(k)]
    assert block.floats.tolist() == floats


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=40, deadline=None)
@given(window=windows(), others=st.integers(0, 3))
def test_join(way, window, others):
    """Any step of the same window, taken once and again: what it holds lies side by side, column by column."""
    numbers = [(1 + other) % (len(window.marks) - 1) for other in range(others)] + [0]
    blocks = [window.pack(way, 7 - k) for k in numbers]
    rows = [row for k in numbers for row in window.read(k)]
    plains = len(rows[0][0])
    found = passes_by(way).join(7, blocks, plains, len(window.limits))
    columns = columns_of(rows, window.limits)
    assert found.head.tolist() == head(rows, window.limits)
    assert found.plain.tolist() == columns[:plains]
    assert found.ids.tolist() == [value for column in columns[plains:] for value in column]
    assert found.floats.tolist() == [floats for _, _, floats in rows]


def test_without_a_compiler(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    passes.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert isinstance(passes(), Plain)
        assert isinstance(passes(), Plain)
    assert len(caplog.messages) == 1
    assert "reading without compiled passes" in caplog.messages[0]
    passes.cache_clear()
