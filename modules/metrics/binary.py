"""Metrics of binary predictions on plain numpy arrays, in float64.

Every function takes labels of 0 and 1 and scores (or logits) of the same length, one entry per row, in any order. A
metric that the data leave undefined (no rows, or one class where two are needed) is nan, and so is every metric of
scores that hold a nan: a diverged model has no AUC. Infinite scores are scores like any other.

AUC and calibration see their rows only through the positives and negatives at each distinct score, so that rows counted
into bins give them just as well: `count_by_score` counts exactly, a histogram counts approximately.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


def _arrays(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    positive, scores = np.asarray(labels) > 0.5, np.asarray(scores)
    if positive.ndim != 1 or positive.shape != scores.shape:
        raise ValueError(f"labels {positive.shape} and scores {scores.shape} must be one entry per row")
    return positive, scores


def _starts(values: np.ndarray) -> np.ndarray:
    """Return (n,) bool: whether a sorted array's entry differs from the one before it."""
    start = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=start[1:])
    return start


def count_by_score(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count positives and negatives at each distinct score.

    Returns:
        (K,) distinct scores, rising, and (K,) int64 positives and negatives.
    """
    positive, scores = _arrays(labels, scores)
    if not len(scores):
        return scores, np.zeros(0, np.int64), np.zeros(0, np.int64)
    order = np.argsort(scores)
    scores = scores[order]
    first = np.flatnonzero(_starts(scores))
    positives = np.add.reduceat(positive[order], first, dtype=np.int64)
    return scores[first], positives, np.diff(first, append=len(scores)) - positives


def auc_from_counts(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Return the area under the ROC curve of rows counted by rising score.

    AUC = sum_k pos_k (neg_before_k + neg_k / 2) / (P N): the share of (positive, negative) pairs in the right order, a
    tied pair counting half (Mann-Whitney's U over P N).

    Args:
        positives: (K,) positives at each score.
        negatives: (K,) negatives at each score.
    """
    positives, negatives = positives.astype(np.float64), negatives.astype(np.float64)
    pairs = positives.sum() * negatives.sum()
    if not pairs > 0:
        return float("nan")
    before = np.cumsum(negatives) - negatives
    return float((positives * (before + negatives / 2)).sum() / pairs)


def auc_error_bound(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Return how far `auc_from_counts` of binned rows can be from the AUC of the rows themselves.

    bound = sum_k pos_k neg_k / (2 P N). Only pairs within one bin have lost their order; each counted half, and is
    worth between 0 and 1. The bound is hard; where scores are dense the two sides nearly cancel, and the error is
    far less.
    """
    positives, negatives = positives.astype(np.float64), negatives.astype(np.float64)
    pairs = positives.sum() * negatives.sum()
    return float((positives * negatives).sum() / (2 * pairs)) if pairs > 0 else float("nan")


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the exact area under the ROC curve, ties averaged; nan with one class. O(n log n)."""
    positive, scores = _arrays(labels, scores)
    if np.isnan(scores).any():
        return float("nan")
    return auc_from_counts(*count_by_score(positive, scores)[1:])


class Runs(NamedTuple):
    """Rows counted by group and score: K runs of rows of one group and one score, both rising.

    Attributes:
        positives: (K,) int64.
        negatives: (K,) int64.
        first: (G,) the first run of each group.
        groups: (G,) ids of the groups, rising.
    """

    positives: np.ndarray
    negatives: np.ndarray
    first: np.ndarray
    groups: np.ndarray


def group_runs(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> Runs:
    """Count rows by group and score, for whatever is measured within groups.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,) any order-preserving score, without nan.
        groups: (n,) integer id of each row's group, as a user.
    """
    positive, scores = _arrays(labels, scores)
    groups = np.asarray(groups)
    if groups.shape != scores.shape:
        raise ValueError(f"groups {groups.shape} and scores {scores.shape} must be one entry per row")
    if not len(scores):
        return Runs(*[np.zeros(0, np.int64)] * 4)
    order = np.lexsort((scores, groups))
    new_group = _starts(groups[order])
    run = np.flatnonzero(new_group | _starts(scores[order]))  # (K,) first row of each run
    pos = np.add.reduceat(positive[order], run, dtype=np.int64)
    first = np.flatnonzero(new_group[run])
    return Runs(pos, np.diff(run, append=len(order)) - pos, first, groups[order[run[first]]])


def group_aucs(runs: Runs) -> tuple[np.ndarray, np.ndarray]:
    """Return the AUC of every group, ties averaged, and its rows.

    Returns:
        (G,) float64 AUCs, nan where a group lacks a class, and (G,) int64 rows, by rising group id.
    """
    pos, neg, start = runs.positives, runs.negatives, runs.first
    if not len(start):
        return np.zeros(0), np.zeros(0, np.int64)
    before = np.cumsum(neg) - neg
    before -= np.repeat(before[start], np.diff(start, append=len(pos)))
    wins = np.add.reduceat(pos * (2 * before + neg), start)  # twice U, an integer
    total_pos, total_neg = np.add.reduceat(pos, start), np.add.reduceat(neg, start)
    pairs = (total_pos * total_neg).astype(np.float64)
    pairs[pairs == 0] = np.nan
    return wins / (2 * pairs), total_pos + total_neg


def gauc_and_uauc(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> tuple[float, float]:
    """Return (GAUC, UAUC), sharing their one sort; see `gauc` and `uauc`."""
    if np.isnan(scores).any():
        return float("nan"), float("nan")
    aucs, rows = group_aucs(group_runs(labels, scores, groups))
    return mean(aucs, rows), mean(aucs, np.ones(len(aucs)))


def mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Return the weighted mean of the (n,) values that are defined; nan where none is."""
    defined = ~np.isnan(values)
    total = weights[defined].sum()
    return float((values[defined] * weights[defined]).sum() / total) if total > 0 else float("nan")


def gauc(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> float:
    """Return the AUC within groups, weighted by impressions.

    GAUC = sum_u n_u AUC_u / sum_u n_u over the groups u of n_u rows that have both classes.
    Zhou et al., Deep Interest Network for Click-Through Rate Prediction (KDD 2018), equation 8.
    """
    return gauc_and_uauc(labels, scores, groups)[0]


def uauc(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> float:
    """Return the unweighted mean of AUC over the groups that have both classes."""
    return gauc_and_uauc(labels, scores, groups)[1]


def _softplus(x: np.ndarray) -> np.ndarray:
    """Return log(1 + exp(x)) for any float64: no overflow, and exp(x) where that is tiny."""
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def sigmoid(logits: ArrayLike) -> np.ndarray:
    """Return 1 / (1 + exp(-z)) in float64, with full relative precision however small it is."""
    return np.exp(-_softplus(-np.asarray(logits, dtype=np.float64)))


def losses(labels: ArrayLike, logits: ArrayLike) -> np.ndarray:
    """Return each row's cross entropy in nats: log(1 + exp(-z)) for a positive, log(1 + exp(z)) for a negative."""
    positive, logits = _arrays(labels, logits)
    logits = logits.astype(np.float64)
    return _softplus(np.where(positive, -logits, logits))


def entropy(rate: float) -> float:
    """Return the entropy in nats of a coin that lands heads with probability `rate`; nan at 0, 1 and outside."""
    return float(-rate * np.log(rate) - (1 - rate) * np.log1p(-rate)) if 0 < rate < 1 else float("nan")


def log_loss(labels: ArrayLike, logits: ArrayLike) -> float:
    """Return the mean cross entropy in nats. It takes logits: a float32 probability rounds to 1 above a logit of 17."""
    each = losses(labels, logits)
    return float(each.mean()) if len(each) else float("nan")


def normalised_entropy(labels: ArrayLike, logits: ArrayLike) -> float:
    """Return the log loss over that of always predicting the base rate; below 1 is better than knowing the rate alone.

    He et al., Practical Lessons from Predicting Clicks on Ads at Facebook (ADKDD 2014), equation 1.
    """
    positive, logits = _arrays(labels, logits)
    return log_loss(positive, logits) / entropy(float(positive.mean())) if len(positive) else float("nan")


def pcoc(labels: ArrayLike, logits: ArrayLike) -> float:
    """Return predicted over observed positives, sum p / sum y: 1 is calibrated, above 1 predicts too much."""
    positive, logits = _arrays(labels, logits)
    return float(sigmoid(logits).sum() / positive.sum()) if positive.any() else float("nan")


def calibration(
    probabilities: np.ndarray, positives: np.ndarray, negatives: np.ndarray, bins: int = 20
) -> list[dict[str, float]]:
    """Return the points of a reliability plot, in bins of nearly equal row counts.

    Rows of one score share a bin, so the points do not depend on the order of rows; bins left empty are dropped.

    Args:
        probabilities: (K,) distinct predicted probabilities, rising.
        positives: (K,) positives at each.
        negatives: (K,) negatives at each.
        bins: largest number of points.

    Returns:
        Points by rising probability: `mean_p`, `mean_y` and `count`.
    """
    rows = positives + negatives
    total = int(rows.sum())
    if not total or np.isnan(probabilities).any():
        return []
    middle = np.cumsum(rows) - rows / 2
    bin_of = np.minimum((middle * bins / total).astype(np.int64), bins - 1)
    count = np.bincount(bin_of, rows, minlength=bins)
    sum_p = np.bincount(bin_of, rows * probabilities, minlength=bins)
    sum_y = np.bincount(bin_of, positives, minlength=bins)
    return [
        {"mean_p": float(sum_p[b] / count[b]), "mean_y": float(sum_y[b] / count[b]), "count": int(count[b])}
        for b in np.flatnonzero(count)
    ]


class Redrawn:
    """The figures of rows that are drawn again in whole units, as a bootstrap does, without a copy of any row.

    Args:
        labels: (n,) 0 or 1.
        logits: (n,).
        units: (n,) place of each row's unit, from 0 to U - 1.
    """

    def __init__(self, labels: ArrayLike, logits: ArrayLike, units: np.ndarray) -> None:
        positive, logits = _arrays(labels, logits)
        self._diverged = bool(np.isnan(logits).any())
        self._sums = np.stack(  # (4, U)
            [
                np.bincount(units, each)
                for each in (losses(positive, logits), sigmoid(logits), positive, np.ones(len(units)))
            ]
        )
        order = np.argsort(logits)
        self._positive, self._units = positive[order], units[order]
        self._first = np.flatnonzero(_starts(logits[order])) if len(order) else order

    def figures(self, times: np.ndarray) -> dict[str, float]:
        """Return `auc`, `log_loss`, `ne` and `pcoc`.

        Args:
            times: (U,) float64, how often each unit was drawn.
        """
        loss, predicted, hits, rows = (self._sums @ times).tolist()
        nan = float("nan")
        return {
            "auc": self._auc(times),
            "log_loss": loss / rows if rows else nan,
            "ne": loss / rows / entropy(hits / rows) if rows else nan,
            "pcoc": predicted / hits if hits else nan,
        }

    def _auc(self, times: np.ndarray) -> float:
        if self._diverged or not len(self._first):
            return float("nan")
        drawn = times[self._units]
        positives = np.add.reduceat(drawn * self._positive, self._first)
        return auc_from_counts(positives, np.add.reduceat(drawn, self._first) - positives)


def bootstrap(
    labels: ArrayLike, scores: ArrayLike, groups: ArrayLike | None = None, draws: int = 200, seed: int = 0
) -> tuple[float, float, float]:
    """Return the sampling error of the AUC: (standard deviation, 2.5 % point, 97.5 % point) over resampled data.

    Rows of one user are not independent; give `groups` to draw whole groups, which is the wider and honester error.
    A draw that lost a class is left out.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,) scores.
        groups: (n,) id of each row's group; None draws rows.
        draws: resamples.
        seed: of the draws; the same seed gives the same figures.
    """
    positive, scores = _arrays(labels, scores)
    if not len(scores) or np.isnan(scores).any():
        return float("nan"), float("nan"), float("nan")
    units = np.arange(len(scores)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    redrawn, number = Redrawn(positive, scores, units), int(units.max()) + 1
    generator = np.random.default_rng(seed)
    aucs = np.empty(draws)
    for draw in range(draws):
        times = np.bincount(generator.integers(0, number, number), minlength=number)
        aucs[draw] = redrawn.figures(times)["auc"]
    aucs = aucs[~np.isnan(aucs)]
    if len(aucs) < 2:
        return float("nan"), float("nan"), float("nan")
    low, high = np.percentile(aucs, [2.5, 97.5])
    return float(aucs.std(ddof=1)), float(low), float(high)
