import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.read.order import Order

sizes = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)


def stream(order, epoch, shard):
    """The shard's (group, row) pairs in reading order."""
    rows = []
    for window in order.windows(epoch, [shard])[0]:
        stored = [(piece.group, row) for piece in window.pieces for row in range(piece.start, piece.stop)]
        permutation = order.permutation(epoch, shard, window)
        rows += stored if permutation is None else [stored[i] for i in permutation]
    return rows


def make(sizes, shards=4, per_shard=2, window=3, seed=1, shuffle=True):
    return Order(sizes, shards=shards, batch_size=shards * per_shard, window=window, seed=seed, shuffle=shuffle)


@given(sizes, st.integers(1, 9), st.integers(1, 4), st.integers(1, 12), st.booleans(), st.integers(0, 3))
def test_every_row_once(sizes, shards, per_shard, window, shuffle, epoch):
    order = make(sizes, shards, per_shard, window, shuffle=shuffle)
    streams = [stream(order, epoch, shard) for shard in range(shards)]
    everything = [(group, row) for group, size in enumerate(sizes) for row in range(size)]
    assert sorted(row for rows in streams for row in rows) == everything
    assert max(map(len, streams)) == order.length == -(-sum(sizes) // shards)
    assert (order.steps - 1) * per_shard < order.length <= order.steps * per_shard


@given(sizes, st.integers(1, 9), st.integers(1, 12), st.booleans())
def test_windows_tile_the_interval(sizes, shards, window, shuffle):
    order = make(sizes, shards, window=window, shuffle=shuffle)
    for windows in order.windows(0, range(shards)):
        assert [w.number for w in windows] == list(range(len(windows)))
        assert [w.start for w in windows] == [0, *(w.stop for w in windows)][: len(windows)]
        for w in windows:
            assert w.stop - w.start == sum(piece.stop - piece.start for piece in w.pieces)
            assert all(piece.start < piece.stop <= sizes[piece.group] for piece in w.pieces)
        for w in windows[:-1]:
            assert sum(piece.stop - piece.start for piece in w.pieces) >= window
            assert sum(piece.stop - piece.start for piece in w.pieces[:-1]) < window


@given(sizes, st.integers(1, 9), st.integers(1, 12))
def test_file_order_without_shuffling(sizes, shards, window):
    order = make(sizes, shards, window=window, shuffle=False)
    rows = [row for shard in range(shards) for row in stream(order, 3, shard)]
    assert rows == sorted(rows)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.integers(0, 3))
def test_runs_stay_together(lengths, epoch):
    rows, begins = sum(lengths), np.cumsum([0, *lengths])[:-1]
    order = make([rows], shards=1, window=rows)
    (window,) = order.windows(epoch, [0])[0]
    found = order.permutation(epoch, 0, window, begins).tolist()
    wanted = {begin: list(range(begin, begin + length)) for begin, length in zip(begins, lengths, strict=True)}
    taken = []
    while len(taken) < rows:
        taken += wanted.pop(found[len(taken)])
    assert found == taken
    assert np.array_equal(order.permutation(epoch, 0, window, np.arange(rows)), order.permutation(epoch, 0, window))


def test_a_row_group_belongs_to_one_window_of_a_shard():
    order = make([10] * 8, shards=2, window=25)
    for windows in order.windows(0, range(2)):
        assert [len(window.pieces) for window in windows] == [3, 1]


def test_epochs_seeds_and_shards_are_ordered_differently():
    one = make([50] * 20, shards=2, window=100)
    other = make([50] * 20, shards=2, window=100, seed=2)
    orders = [stream(one, 0, 0), stream(one, 1, 0), stream(other, 0, 0), stream(one, 0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    first = one.windows(0, [0])[0][:2]
    assert not np.array_equal(one.permutation(0, 0, first[0]), one.permutation(0, 0, first[1]))
    assert not np.array_equal(one.permutation(0, 0, first[0]), one.permutation(0, 1, first[0]))
    assert stream(one, 0, 0) == stream(make([50] * 20, shards=2, window=100), 0, 0)


def test_order_looks_mixed():
    """Row numbers at distance 1 in the stream are as uncorrelated as the window allows."""
    order = make([100] * 100, shards=1, window=10_000)
    rows = np.array([group * 100 + row for group, row in stream(order, 0, 0)])
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(np.arange(10_000), rows)[0, 1]) < 0.05
    groups = [window.pieces[0].group for window in make([1] * 200, shards=1, window=1).windows(0, [0])[0]]
    assert abs(np.corrcoef(np.arange(200), groups)[0, 1]) < 0.3


def test_order_is_what_it_was():
    """A checkpoint's position means the same rows after an upgrade."""
    order = make([3, 4, 5], shards=2, window=4, seed=7)
    assert stream(order, 2, 0) == [(0, 1), (2, 0), (0, 2), (0, 0), (2, 1), (2, 2)]


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_ranks_share_the_shards(world):
    order = make([5], shards=6)
    assert [shard for rank in range(world) for shard in order.owned(rank, world)] == list(range(6))


def test_shards_must_divide():
    with pytest.raises(BadInput, match=r"6 shards do not divide among 4 workers; 1, 2, 3, 6 would"):
        make([5], shards=6).owned(0, 4)
