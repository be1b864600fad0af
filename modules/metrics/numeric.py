"""Metrics of predicted numbers, as a watch time, on plain numpy arrays, in float64. Labels are 0 or more.

xAUC is to numbers what AUC is to classes: the share of the pairs of rows with different labels that the predictions put
in the right order, a tied pair counting half. Metrics that the data leave undefined are nan, and so is xAUC of
predictions that hold a nan.
"""

from collections.abc import Callable

import numpy as np

BINS = 512  # a side of the histogram of labels and predictions
_TOP = 16.0  # log(1 + x) beyond it falls in the last bin; e^16 s are 100 days


def _pairs(counts: np.ndarray) -> float:
    """Return the number of pairs within groups of these sizes."""
    counts = counts.astype(np.float64)
    return float((counts * (counts - 1) / 2).sum())


def _ranks(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each value's rank among the distinct ones, and how often each of these occurs."""
    _, rank, count = np.unique(values, return_inverse=True, return_counts=True)
    return rank, count


def _inversions(ranks: np.ndarray) -> float:
    """Count the pairs i < j with ranks[i] > ranks[j], in O(n log^2 n).

    Bit by bit from the top: of two ranks that agree in all higher bits and differ in this one, the larger has the bit.
    With rows kept in order within each group of equal higher bits, a 0 is inverted with every 1 before it in its group.
    """
    found = 0.0
    for bit in reversed(range(int(ranks.max(initial=0)).bit_length())):
        group, ones = ranks >> (bit + 1), (ranks >> bit) & 1
        before = np.cumsum(ones) - ones
        starts = np.flatnonzero(np.diff(group, prepend=-1))  # groups lie together, in rising order
        before -= np.repeat(before[starts], np.diff(starts, append=len(ranks)))
        found += float(before[ones == 0].sum())
        ranks = ranks[np.argsort(ranks >> bit, kind="stable")]
    return found


def xauc(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return the exact xAUC; nan where all labels are equal.

    Args:
        labels: (n,).
        predictions: (n,), any order-preserving score.
    """
    if np.isnan(predictions).any():
        return float("nan")
    (label, label_counts), (score, score_counts) = _ranks(labels), _ranks(predictions)
    pairs = _pairs(np.array([len(labels)])) - _pairs(label_counts)
    if not pairs > 0:
        return float("nan")
    both = label.astype(np.int64) * len(score_counts) + score
    tied = _pairs(score_counts) - _pairs(_ranks(both)[1])
    wrong = _inversions(score[np.argsort(both)])  # within equal labels scores rise, so none of their pairs counts
    return (pairs - wrong - tied / 2) / pairs


def figures(labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Return `xauc`, `mae`, `rmse` and `pcoc`, predicted over observed sum, of (n,) labels and predictions."""
    return {"xauc": xauc(labels, predictions)} | _means(_sums(labels, predictions))


def _sums(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Return rows, and sums of |error|, error^2, prediction and label, (5,) float64."""
    return np.array([each.sum() for each in _each(labels, predictions)])


def _each(labels: np.ndarray, predictions: np.ndarray) -> list[np.ndarray]:
    """Return what `_sums` adds up, of each row."""
    labels, predictions = labels.astype(np.float64), predictions.astype(np.float64)
    error = predictions - labels
    return [np.ones(len(labels)), np.abs(error), np.square(error), predictions, labels]


def redrawn(labels: np.ndarray, predictions: np.ndarray, units: np.ndarray) -> Callable[[np.ndarray], dict[str, float]]:
    """Return `mae`, `rmse` and `pcoc` as a function of how often each unit of rows was drawn, (U,).

    xAUC is not among them: it would take a sort of all rows for every draw.

    Args:
        labels: (n,).
        predictions: (n,).
        units: (n,) place of each row's unit, from 0 to U - 1.
    """
    by_unit = np.stack([np.bincount(units, each) for each in _each(labels, predictions)])
    return lambda times: _means(by_unit @ times)


def _means(sums: np.ndarray) -> dict[str, float]:
    rows, absolute, square, predicted, observed = sums.tolist()
    nan = float("nan")
    return {
        "mae": absolute / rows if rows else nan,
        "rmse": (square / rows) ** 0.5 if rows else nan,
        "pcoc": predicted / observed if observed else nan,
    }


class Histogram:
    """The same figures in 2 MiB for any number of rows: xAUC from counts by label and prediction, the rest exactly.

    Bins are equal steps of log(1 + x); label 0 has a bin of its own.

    Attributes:
        counts: (BINS, BINS) int64, by label and prediction; ranks add theirs up.
        sums: see `_sums`.
    """

    def __init__(self) -> None:
        self.counts = np.zeros((BINS, BINS), np.int64)
        self.sums = np.zeros(5)

    def count(self, labels: np.ndarray, predictions: np.ndarray) -> None:
        """Count rows: (n,) labels and predictions."""
        self.sums += _sums(labels, predictions)
        height = np.log1p(labels.astype(np.float64)) / _TOP
        label = np.where(labels > 0, 1 + np.minimum(height * (BINS - 1), BINS - 2).astype(np.int64), 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            height = np.log1p(np.maximum(predictions.astype(np.float64), 0)) / _TOP
        score = np.minimum(np.nan_to_num(height) * BINS, BINS - 1).astype(np.int64)
        self.counts += np.bincount(label * BINS + score, minlength=BINS * BINS).reshape(BINS, BINS)

    def figures(self) -> dict[str, float]:
        """Return what `figures` does, and `xauc_error`, which bounds how far xAUC is from that of the rows themselves.

        With N pairs in different label bins, T of them tied in their prediction's bin, and U pairs within one label bin
        other than 0, of which nobody knows the order:  error <= T / 2N + U / (N + U).
        """
        by_label = self.counts.sum(axis=1)
        pairs, lost = _pairs(by_label.sum(keepdims=True)) - _pairs(by_label), _pairs(by_label[1:])
        share = error = float("nan")
        if pairs > 0 and not np.isnan(self.sums).any():
            counts = self.counts.astype(np.float64)
            below = np.cumsum(counts, axis=0) - counts  # rows of lower labels, by prediction
            right = float((counts * (np.cumsum(below, axis=1) - below)).sum())
            tied = float((counts * below).sum())
            share, error = (right + tied / 2) / pairs, tied / (2 * pairs) + lost / (pairs + lost)
        return {"xauc": share, "xauc_error": error} | _means(self.sums)
