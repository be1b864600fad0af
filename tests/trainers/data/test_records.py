"""The compiled passes and NumPy's, against records written the slow way."""

import functools
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers import compiler
from trainers.data.records import SOURCE, Block, Column, Compiled, Decoded, Plain, passes, running

WAYS = ["compiled", "plain"]


@functools.cache
def passes_by(way):
    return Compiled(compiler.shared_object(SOURCE)) if way == "compiled" else Plain()


@st.composite
def windows(draw):
    """A window; its rows: for each feature the ids of every row; and its reading order."""
    pieces = draw(st.lists(st.integers(0, 6), min_size=1, max_size=3).filter(sum))
    rows, counter = sum(pieces), iter(range(1, 10_000))
    ids, columns = [], []
    for _ in range(draw(st.integers(0, 3))):
        ids.append([])
        columns.append([])
        for size in pieces:
            ragged = draw(st.booleans())
            lengths = [draw(st.integers(0, 4)) if ragged else 1 for _ in range(size)]
            lists = [[next(counter) for _ in range(length)] for length in lengths]
            ids[-1] += lists
            values = np.array([value for part in lists for value in part], np.int64)
            columns[-1].append(Column(values, running(np.array(lengths, np.int64)) if ragged else None))
    limits = np.array([draw(st.integers(1, 4)) for _ in columns], np.int64)
    plain = np.stack([np.array([draw(st.integers(-1, 1)) * next(counter) for _ in range(rows)]) for _ in range(2)])
    order = draw(st.none() | st.permutations(range(rows)).map(np.array))
    marks = np.array(sorted({0, rows, *draw(st.lists(st.integers(0, rows), max_size=3))}))
    return Decoded(np.cumsum([0, *pieces]), columns, limits, plain, order, marks), ids


def record(window, ids, k):
    """Return a step's record."""
    rows = range(window.marks[k], window.marks[k + 1])
    rows = list(rows) if window.order is None else [int(window.order[i]) for i in rows]
    lists = [[own[row][-limit:] for row in rows] for own, limit in zip(ids, window.limits, strict=True)]
    cut = [sum(len(own[row]) > limit for row in rows) for own, limit in zip(ids, window.limits, strict=True)]
    found = [len(rows), sum(int(window.plain[0, row] < 0) for row in rows)]
    found += [sum(map(len, own)) for own in lists] + cut
    found += [int(column[row]) for column in window.plain for row in rows]
    found += [len(part) for own in lists for part in own]
    return found + [value for own in lists for part in own for value in part]


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=60, deadline=None)
@given(drawn=windows())
def test_pack(way, drawn):
    window, ids = drawn
    records, at = passes_by(way).pack(window)
    expected = [record(window, ids, k) for k in range(len(window.marks) - 1)]
    assert at.tolist() == running(np.array([len(one) for one in expected])).tolist()
    assert records.tolist() == [number for one in expected for number in one]


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=40, deadline=None)
@given(drawn=windows(), others=st.integers(0, 3), width=st.integers(0, 3))
def test_join(way, drawn, others, width):
    """Any step of the same window, taken once and again: what it holds lies side by side, column by column."""
    window, ids = drawn
    steps, rows = len(window.marks) - 1, window.plain.shape[1]
    floats = np.arange(rows * width, dtype=np.float32).reshape(rows, width)
    records, at = passes_by(way).pack(window)
    numbers = [(1 + other) % steps for other in range(others)] + [0]
    blocks = [Block(7 - k, at, records, window.marks, floats) for k in numbers]
    head, plain, found, dense = passes_by(way).join(7, blocks, 2, len(ids))

    parts = [record(window, ids, k) for k in numbers]
    first = 2 + 2 * len(ids)
    sizes = [[part[0]] * (2 + len(ids)) + part[2 : 2 + len(ids)] for part in parts]
    cut = [np.split(part[first:], np.cumsum(size)[:-1]) for part, size in zip(parts, sizes, strict=True)]
    columns = [np.concatenate(column).astype(int).tolist() for column in zip(*cut, strict=True)]
    assert head.tolist() == np.sum([part[:first] for part in parts], axis=0).tolist()
    assert plain.tolist() == columns[:2]
    assert found.tolist() == [value for column in columns[2:] for value in column]
    expected = np.concatenate([floats[window.marks[k] : window.marks[k + 1]] for k in numbers])
    assert np.array_equal(dense.numpy(), expected)


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
