"""Pairs of items that the same users had: counted, weighted and cut to the best, a block of items at a time."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import sparse

_PAIRS = 2**22  # that are in memory at once, at about 50 bytes each
_LEAST = np.float32(1e-30)  # that a pair counts: 0 would be no entry


class Sequences(NamedTuple):
    """The events of users, one user after the other, each user's oldest first; a user has an item once.

    Attributes:
        user: (n,) int64, rising from 0 without gaps.
        item: (n,) int32 place of the event's item among all items.
        fresh: (n,) bool; a pair counts where one of its two events is fresh.
        time: (n,) float64 seconds; nan where it is not known.
        weight: (users,) float32, what a pair of each user counts.
    """

    user: np.ndarray
    item: np.ndarray
    fresh: np.ndarray
    time: np.ndarray
    weight: np.ndarray


Counted = tuple[slice, list[sparse.csr_array]]  # n items, and (n, N) matrices of them


def cosine_counts(
    events: Sequences, items: int, step: float = 1.0, half_life: float | None = None, common: bool = False
) -> Iterator[Counted]:
    """Yield, for one block of items after the other, the weighted pairs.

    c_ij = sum over users with i and j of w_u step^(d - 1) 2^(-|t_i - t_j| / half_life),  d = steps between i and j

    Args:
        events: whose pairs count.
        items: N, the number of items.
        step: see above.
        half_life: seconds; None: times do not count. A time that is not known does not either.
        common: count the users of each pair too.

    Yields:
        A slice of n items and their rows of c, (n, N) float32; with `common` those of the numbers of users besides.
    """
    begins = np.flatnonzero(np.diff(events.user, prepend=-1))
    lengths = np.diff(begins, append=len(events.user))
    order = np.argsort(events.item, kind="stable")
    ends = np.concatenate([[0], np.cumsum(np.bincount(events.item, minlength=items))])
    work = np.concatenate([[0], np.cumsum(lengths[events.user[order]])])  # pairs of the events up to each
    if step == 1 and half_life is None:
        yield from _products(events, items, work[ends], common)
        return
    longest = int(lengths.max(initial=1))
    powers = np.power(np.float32(step), np.arange(max(longest, 1), dtype=np.float32))  # of d - 1, from d = 1 on
    for block in _blocks(work[ends]):
        count = block.stop - block.start
        found = [sparse.csr_array((count, items), dtype=np.float32) for _ in range(1 + common)]
        for piece in _blocks(work[ends[block.start] : ends[block.stop] + 1]):
            left = order[ends[block.start] :][piece]
            user = events.user[left]
            others = lengths[user]
            one = np.repeat(left, others)
            other = np.arange(len(one)) + np.repeat(begins[user] - np.cumsum(others) + others, others)
            apart = np.abs(one - other)
            counts = (apart > 0) & (events.fresh[one] | events.fresh[other])
            one, other, apart = one[counts], other[counts], apart[counts]
            value = events.weight[events.user[one]] * powers[apart - 1]
            if half_life is not None:
                ages = np.nan_to_num(np.abs(events.time[one] - events.time[other]))
                value = value * np.exp2(-ages / half_life).astype(np.float32)
            at = (events.item[one] - block.start, events.item[other])
            for place, values in enumerate([np.maximum(value, _LEAST), np.ones(len(one), np.float32)][: 1 + common]):
                found[place] = found[place] + sparse.coo_array((values, at), shape=(count, items)).tocsr()
        yield block, found


def _products(events: Sequences, items: int, work: np.ndarray, common: bool) -> Iterator[Counted]:
    """Yield what `cosine_counts` does where all pairs of a user count the same: products of sparse matrices.

    A pair counts where the first event is fresh, or else the second one:  c = F^T W X + (X - F)^T W F, with X the
    users' items and F the fresh ones. No pair is laid out, and memory is that of the pairs of a block that are there.

    Args:
        events, items, common: as of `cosine_counts`.
        work: (N + 1,) pairs of the items up to each.
    """
    shape = len(events.weight), items

    def of_users(kept: np.ndarray) -> sparse.csr_array:
        ones = np.ones(int(kept.sum()), np.float32)
        return sparse.csr_array((ones, (events.user[kept], events.item[kept])), shape=shape)

    fresh, older = of_users(events.fresh), of_users(~events.fresh)
    pairs = [(fresh.T.tocsr(), (fresh + older).tocsr())]
    if older.nnz:
        pairs.append((older.T.tocsr(), fresh))
    weights = [events.weight, np.ones_like(events.weight)][: 1 + common]
    for block in _blocks(work):
        found = []
        for weight in weights:
            parts = [(_scaled(left[block], weight) @ right).tocsr() for left, right in pairs]
            found.append(_without_diagonal(parts[0] if len(parts) == 1 else parts[0] + parts[1], block.start))
        yield block, found


def _scaled(matrix: sparse.csr_array, weight: np.ndarray) -> sparse.csr_array:
    """Return a matrix with each column times its weight."""
    return sparse.csr_array((matrix.data * weight[matrix.indices], matrix.indices, matrix.indptr), shape=matrix.shape)


def swing_counts(events: Sequences, items: int, alpha: float, common: bool = False) -> Iterator[Counted]:
    """Yield, for one block of items after the other, Swing's scores.

    s_ij = sum over users u < v with i and j of w_u w_v / (alpha + |I_u and I_v|)

    Every pair of users counts once. Arguments and yields as of `cosine_counts`; `fresh` and times do not count.

    Source: Yang et al., "Large scale product graph construction for recommendation in e-commerce", 2010.05525.
    """
    users = len(events.weight)
    ones = np.ones(len(events.user), np.float32)
    had = sparse.csr_array((ones, (events.user, events.item)), shape=(users, items))
    order = np.lexsort((events.user, events.item))
    ends = np.concatenate([[0], np.cumsum(np.bincount(events.item, minlength=items))])
    later = ends[1:][events.item[order]] - np.arange(len(order)) - 1  # users of the same item behind each
    sizes = np.diff(had.indptr)[events.user[order]]
    work = np.concatenate([[0], np.cumsum(later * sizes)])
    transposed = had.T.tocsr()
    for block in _blocks(work[ends]):
        count = block.stop - block.start
        found = sparse.csr_array((count, items), dtype=np.float32)
        for piece in _blocks(work[ends[block.start] : ends[block.stop] + 1]):
            first = np.arange(ends[block.start], ends[block.stop])[piece]
            others = later[first]
            one = np.repeat(first, others)
            other = np.arange(len(one)) + np.repeat(first + 1 - np.cumsum(others) + others, others)
            if not len(one):
                continue
            own, their = events.user[order[one]], events.user[order[other]]
            both = had[own].multiply(had[their]).tocsr()  # (pairs of users, N)
            weight = events.weight[own] * events.weight[their] / (alpha + np.asarray(both.sum(1)).ravel())
            item = events.item[order[one]] - block.start
            pairs = sparse.csr_array((weight.astype(np.float32), (item, np.arange(len(one)))), shape=(count, len(one)))
            found = found + pairs @ both
        counted = [found, (transposed[block.start : block.stop] @ had).tocsr() if common else found][: 1 + common]
        yield block, [_without_diagonal(part, block.start) for part in counted]


def best(counts: sparse.csr_array, scores: np.ndarray, most: int) -> np.ndarray:
    """Return which entries are among the `most` of their row with the largest scores, (nnz,) bool.

    Of equal scores the one with the least column is the better one.
    """
    kept = np.ones(len(scores), bool)
    for row in np.flatnonzero(np.diff(counts.indptr) > most):
        own = slice(counts.indptr[row], counts.indptr[row + 1])
        values = scores[own]
        least = np.partition(values, len(values) - most)[len(values) - most]
        kept[own] = values > least
        ties = np.flatnonzero(values == least)
        ties = ties[np.argsort(counts.indices[own][ties], kind="stable")]
        kept[own.start + ties[: most - int(kept[own].sum())]] = True
    return kept


def taken(counts: sparse.csr_array, kept: np.ndarray) -> sparse.csr_array:
    """Return a matrix with some of its entries alone."""
    ends = np.concatenate([[0], np.cumsum(kept)])[counts.indptr]
    return sparse.csr_array((counts.data[kept], counts.indices[kept], ends), shape=counts.shape)


def _without_diagonal(counts: sparse.csr_array, first: int) -> sparse.csr_array:
    """Return rows of a square matrix, from the first one given on, without the diagonal's entries."""
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr)) + first
    return taken(counts, counts.indices != rows)


def _blocks(work: np.ndarray) -> Iterator[slice]:
    """Yield slices of what has so much work up to each of its parts, each of `_PAIRS` at most, or of one part."""
    start, last = 0, len(work) - 1
    while start < last:
        stop = max(int(np.searchsorted(work, work[start] + _PAIRS, side="right")) - 1, start + 1)
        yield slice(start, min(stop, last))
        start = stop
