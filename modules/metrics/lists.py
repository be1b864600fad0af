"""Metrics of lists: each group's rows, such as a request's, ranked by score, with the mean over the groups.

Rows of a group with equal scores have no order, so a figure is its expected value over all their orders, each as likely
as the others: a model that tells nothing apart is worth what a random order is worth, however its rows are stored.
The closed forms for ties are those of McSherry and Najork, "Computing information retrieval performance measures
efficiently in the presence of tied scores", ECIR 2008; for HR@k they follow in the same way.

A group's rows fall into blocks of equal scores, best first. A block of m rows, p of them positive, stands behind o
rows, B of them positive; P are positive in the group, H(n) = 1 + 1/2 + ... + 1/n, and D(n) is the sum of
1/log2(1 + r) for r = 1..n:

    HR@k      1 - prod C(m - p, c) / C(m, c)                         c = rows of the block within the first k
    recall@k  sum p c / m / P
    NDCG@k    sum p / m (D(min(o + m, k)) - D(min(o, k))) / D(min(P, k))
    MAP       sum p / m ((B + 1 - s (o + 1)) (H(o + m) - H(o)) + s m) / P            s = (p - 1) / (m - 1)
    MRR       sum C(m - x, p - 1) / C(m, p) / (o + x) for x = 1..m - p + 1           of the first block with p > 0

A group without a positive has no such figure: it is left out of the means, and counted.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln

from livetrain.modules.metrics.binary import Runs

AT_EACH = ("hr", "recall", "ndcg")  # figures of the first k rows
PREFIX = "list_"  # of the figures' names


def names(top: Sequence[int]) -> list[str]:
    """Return the names of the figures of lists of these lengths, as `list_ndcg_10`."""
    return [f"{PREFIX}mrr", f"{PREFIX}map", *(f"{PREFIX}{name}_{k}" for k in top for name in AT_EACH)]


def by_group(runs: Runs, top: Sequence[int]) -> np.ndarray:
    """Return the figures of each group.

    Args:
        runs: the groups' rows.
        top: lengths k of lists.

    Returns:
        (G, M) float64 by rising group id, in the order of `names`; nan where a group has no positive.

    Example:
        >>> from livetrain.modules.metrics.binary import group_runs
        >>> runs = group_runs([1, 0, 0, 1], [0.5, 0.5, 0.1, 0.9], [7, 7, 7, 8])
        >>> dict(zip(names([1]), by_group(runs, [1])[0].tolist()))
        {'list_mrr': 0.75, 'list_map': 0.75, 'list_hr_1': 0.5, 'list_recall_1': 0.5, 'list_ndcg_1': 0.5}
    """
    found = np.full((len(runs.first), len(names(top))), np.nan)
    if not len(found):
        return found
    # Best score first: the runs from the end, whose groups then fall.
    p, m = runs.positives[::-1], (runs.positives + runs.negatives)[::-1]
    number = np.diff(runs.first, append=len(m))[::-1]  # runs of each group
    start = np.cumsum(number) - number
    o, before = _within(m, start, number), _within(p, start, number)
    total = np.add.reduceat(p, start)
    positive = total > 0
    largest = int((o + m).max())
    harmonic, gains = _running(1 / np.arange(1, largest + 1)), _running(1 / np.log2(np.arange(2, largest + 2)))
    share = p / m
    slope = (p - 1) / np.maximum(m - 1, 1)
    precision = share * ((before + 1 - slope * (o + 1)) * (harmonic[o + m] - harmonic[o]) + slope * m)
    columns = [_first(p, m, o, before), np.add.reduceat(precision, start) / np.maximum(total, 1)]
    columns[0] = np.add.reduceat(columns[0], start)
    for k in top:
        c = np.clip(k - o, 0, m)
        gain = gains[np.minimum(o + m, k)] - gains[np.minimum(o, k)]
        columns += [
            1 - np.multiply.reduceat(_all_missed(p, m, c), start),
            np.add.reduceat(share * c, start) / np.maximum(total, 1),
            np.add.reduceat(share * gain, start) / gains[np.minimum(np.maximum(total, 1), k)],
        ]
    found[positive] = np.stack(columns, axis=1)[positive]
    return found[::-1]


def _within(sizes: np.ndarray, start: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Return what stands before each run in its group: (K,) sums of sizes."""
    before = np.cumsum(sizes) - sizes
    return before - np.repeat(before[start], number)


def _running(terms: np.ndarray) -> np.ndarray:
    """Return the sums of the first 0, 1, ... terms."""
    return np.concatenate([[0.0], np.cumsum(terms)])


def _log_choose(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    return gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0)


def _all_missed(p: np.ndarray, m: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return the chance that c rows, drawn from blocks of m with p positives, hold no positive."""
    chance = np.where(c > m - p, 0.0, 1.0)
    some = np.flatnonzero((p > 0) & (c > 0) & (c <= m - p))
    p, m, c = p[some], m[some], c[some]
    chance[some] = np.exp(_log_choose(m - p, c) - _log_choose(m, c))
    return chance


def _first(p: np.ndarray, m: np.ndarray, o: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return the expected 1 / rank of a group's first positive at the run that holds it, and 0 at the others."""
    mean = np.zeros(len(p))
    some = np.flatnonzero((p > 0) & (before == 0))
    p, m, o = p[some], m[some], o[some]
    places = m - p + 1  # where the first may stand
    start = np.cumsum(places) - places
    x = np.arange(places.sum()) - np.repeat(start, places) + 1
    p, m, o = (np.repeat(part, places) for part in (p, m, o))
    chance = np.exp(_log_choose(m - x, p - 1) - _log_choose(m, p))
    if len(some):
        mean[some] = np.add.reduceat(chance / (o + x), start)
    return mean
