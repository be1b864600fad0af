import itertools

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


def numbers(order, epoch, shard):
    """The numbers of the shard's rows in reading order, where every row group has 64 rows."""
    rows = []
    for window in order.windows(epoch, [shard])[0]:
        stored = [np.arange(piece.start, piece.stop) + 64 * piece.group for piece in window.pieces]
        rows.append(np.concatenate(stored)[order.permutation(epoch, shard, window)])
    return np.concatenate(rows)


def make(sizes, shards=4, per_shard=2, window=3, most=5, run=8, seed=1, shuffle=True, files=None):
    return Order(
        sizes,
        [0] * len(sizes) if files is None else files,
        shards=shards,
        batch_size=shards * per_shard,
        window=window,
        most=most,
        run=run,
        seed=seed,
        shuffle=shuffle,
    )


@given(
    sizes,
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 20),
    st.booleans(),
    st.integers(0, 3),
)
def test_every_row_once(sizes, shards, per_shard, window, most, run, shuffle, epoch):
    files = np.arange(len(sizes)) // 3
    order = make(sizes, shards, per_shard, window, most, run, shuffle=shuffle, files=files)
    streams = [stream(order, epoch, shard) for shard in range(shards)]
    everything = [(group, row) for group, size in enumerate(sizes) for row in range(size)]
    assert sorted(row for rows in streams for row in rows) == everything
    assert [order.rows_of(shard) for shard in range(shards)] == [len(rows) for rows in streams]
    assert max(map(len, streams)) == order.length == -(-sum(sizes) // shards)
    assert (order.steps - 1) * per_shard < order.length <= order.steps * per_shard


@given(sizes, st.integers(1, 9), st.integers(1, 12), st.integers(1, 12), st.booleans())
def test_windows_tile_the_interval(sizes, shards, window, most, shuffle):
    order = make(sizes, shards, window=window, most=most, shuffle=shuffle)
    for shard in range(shards):
        windows = list(order.windows(0, [shard])[0])
        rows = [w.stop - w.start for w in windows]
        assert [(w.number, w.of) for w in windows] == [(number, len(windows)) for number in range(len(windows))]
        assert [w.start for w in windows] == [0, *(w.stop for w in windows)][: len(windows)]
        assert rows == [sum(piece.stop - piece.start for piece in w.pieces) for w in windows]
        assert all(piece.start < piece.stop <= sizes[piece.group] for w in windows for piece in w.pieces)
        assert max(rows, default=0) - min(rows, default=0) <= 1
        assert all(count <= most for count in rows)
        if len(windows) > 2 and most >= 2 * window:
            assert min(rows) >= window
        assert len(windows) <= 2 or order.rows_of(shard) > 2 * most


@given(sizes, st.integers(1, 20), st.integers(0, 3))
def test_runs_are_row_groups_that_follow_one_another_in_a_file(sizes, run, epoch):
    files = np.arange(len(sizes)) // 4
    order = make(sizes, shards=1, run=run, files=files)
    runs = {order.run(group) for group in range(len(sizes))}
    assert sorted(group for found in runs for group in found) == list(range(len(sizes)))
    for found in runs:
        assert len(set(files[found])) == 1
        assert len([group for group in found if sizes[group]]) <= 1 or sum(sizes[found.start : found.stop - 1]) < run
    groups = [
        group for window in order.windows(epoch, [0])[0] for group in dict.fromkeys(p.group for p in window.pieces)
    ]
    for before, after in itertools.pairwise(dict.fromkeys(groups)):
        within = order.run(before) == order.run(after)
        assert not within or not any(sizes[before + 1 : after]), "a run is read from one end to the other"


@given(sizes, st.integers(1, 9), st.integers(1, 12))
def test_file_order_without_shuffling(sizes, shards, window):
    order = make(sizes, shards, window=window, shuffle=False)
    rows = [row for shard in range(shards) for row in stream(order, 3, shard)]
    assert rows == sorted(rows)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.integers(0, 3))
def test_runs_stay_together(lengths, epoch):
    rows, begins = sum(lengths), np.cumsum([0, *lengths])[:-1]
    order = make([rows], shards=1, window=rows, most=rows)
    (window,) = order.windows(epoch, [0])[0]
    found = order.permutation(epoch, 0, window, begins).tolist()
    wanted = {begin: list(range(begin, begin + length)) for begin, length in zip(begins, lengths, strict=True)}
    taken = []
    while len(taken) < rows:
        taken += wanted.pop(found[len(taken)])
    assert found == taken
    assert np.array_equal(order.permutation(epoch, 0, window, np.arange(rows)), order.permutation(epoch, 0, window))


def test_windows_of_an_interval_are_as_large_as_they_may_be():
    def count(rows, window, most):
        return len(list(make([rows], shards=1, window=window, most=most).windows(0, [0])[0]))

    assert count(1999, window=1000, most=10_000) == 1
    assert count(2000, window=1000, most=10_000) == 2
    assert count(20_000, window=1000, most=10_000) == 2  # both are held at once, so no more of them
    assert count(20_001, window=1000, most=10_000) == 20
    assert count(20_001, window=1000, most=100) == 201


def test_epochs_seeds_and_shards_are_ordered_differently():
    one = make([50] * 20, shards=2, window=100, most=100)
    other = make([50] * 20, shards=2, window=100, most=100, seed=2)
    orders = [stream(one, 0, 0), stream(one, 1, 0), stream(other, 0, 0), stream(one, 0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    first = list(one.windows(0, [0])[0])[:2]
    assert not np.array_equal(one.permutation(0, 0, first[0]), one.permutation(0, 0, first[1]))
    assert not np.array_equal(one.permutation(0, 0, first[0]), one.permutation(0, 1, first[0]))
    assert stream(one, 0, 0) == stream(make([50] * 20, shards=2, window=100, most=100), 0, 0)


def test_order_looks_mixed():
    """Row numbers at distance 1 in the stream are as uncorrelated as the window allows."""
    order = make([100] * 100, shards=1, window=10_000, most=10_000)
    rows = np.array([group * 100 + row for group, row in stream(order, 0, 0)])
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(np.arange(10_000), rows)[0, 1]) < 0.05
    groups = [group for group, _ in stream(make([1] * 200, shards=1, window=1, most=1, run=1), 0, 0)]
    assert abs(np.corrcoef(np.arange(200), groups)[0, 1]) < 0.3


@pytest.mark.parametrize(("run", "least", "most"), [(128, 0.7, 1.3), (8192, 0, 0.2)])
def test_a_batch_of_sorted_rows_is_as_mixed_as_its_shards_allow(run, least, most):
    """The mean place of a batch's rows in the split, which is sorted by time, spreads sqrt(b) times as far as in a full
    shuffle, as b rows of a shard lie near one another; hardly at all where shards cut a run among them."""
    shards, each, size, groups = 64, 8, 64, 4096
    order = make([size] * groups, shards, each, window=64, most=64, run=run, files=np.arange(groups) // 128)
    found = np.array([numbers(order, 0, shard) for shard in range(shards)])
    assert np.array_equal(np.sort(found.reshape(-1)), np.arange(groups * size))
    means = found.reshape(shards, -1, each).mean((0, 2)) / (groups * size)
    full = 1 / np.sqrt(12 * shards * each)  # the deviation of the mean of that many numbers drawn from 0 to 1
    assert least < means.std() / (np.sqrt(each) * full) < most


def test_order_is_what_it_was():
    """A checkpoint's position means the same rows after an upgrade."""
    order = make([3, 4, 5], shards=2, window=4, most=4, run=4, seed=7)
    assert stream(order, 2, 0) == [(0, 0), (0, 2), (0, 1), (1, 2), (1, 1), (1, 0)]


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_ranks_share_the_shards(world):
    order = make([5], shards=6)
    assert [shard for rank in range(world) for shard in order.owned(rank, world)] == list(range(6))


def test_shards_must_divide():
    with pytest.raises(BadInput, match=r"6 shards do not divide among 4 workers; 1, 2, 3, 6 would"):
        make([5], shards=6).owned(0, 4)
