"""Metrics of binary predictions from bins of their logits, in the same memory for any number of rows."""

from typing import Any

import numpy as np

from livetrain.modules.metrics import binary
from livetrain.modules.metrics.lengths import LENGTH_NAMES, by_length

BINS = 2**16  # of a histogram of logits
LIMIT = 16.0  # logits beyond it fall in the histogram's end bins; sigmoid(16) = 1 - 1e-7


class Probabilities:
    """A binary task's histogram of logits by label and history length, and sums: 7 MiB.

    Attributes:
        counts: (lengths, 2, BINS) int64; ranks add theirs up.
        sums: losses and probabilities, (2,) float64, likewise.
    """

    def __init__(self) -> None:
        self.counts = np.zeros((len(LENGTH_NAMES), 2, BINS), np.int64)
        self.sums = np.zeros(2)

    def add(self, labels: np.ndarray, logits: np.ndarray, buckets: np.ndarray) -> None:
        """Count rows: (n,) labels of 0 and 1, logits, and places of their history lengths in LENGTH_NAMES."""
        logits, labels = logits.astype(np.float64), labels.astype(np.int64)
        self.sums += binary.losses(labels, logits).sum(), binary.sigmoid(logits).sum()
        heights = (np.clip(logits, -LIMIT, LIMIT) + LIMIT) * (BINS / (2 * LIMIT))
        bins = np.minimum(np.nan_to_num(heights).astype(np.int64), BINS - 1)
        places = np.ravel_multi_index((buckets, labels, bins), self.counts.shape)
        np.add.at(self.counts.reshape(-1), places, 1)  # one index: the fast path of add.at

    def figures(self) -> dict[str, float]:
        """Return `auc` with its bound `auc_error`, and `log_loss`, `ne`, `pcoc`, `positives`, which are exact."""
        negatives, positives = self.counts.sum(axis=0)
        rows, hits = int(self.counts.sum()), int(positives.sum())
        loss, predicted = (float(x) for x in self.sums)
        diverged = np.isnan(self.sums).any()
        return {
            "auc": float("nan") if diverged else binary.auc_from_counts(positives, negatives),
            "auc_error": float("nan") if diverged else binary.auc_error_bound(positives, negatives),
            "log_loss": loss / rows if rows else float("nan"),
            "ne": loss / rows / binary.entropy(hits / rows) if rows else float("nan"),
            "pcoc": predicted / hits if hits else float("nan"),
            "positives": float(hits),
        }

    def curves(self, measured: bool) -> dict[str, Any]:
        """Return the points of `calibration` and, where lengths were `measured`, of `auc_by_length`."""
        if np.isnan(self.sums).any():
            return {"calibration": [], "auc_by_length": []}
        negatives, positives = self.counts.sum(axis=0)
        middles = binary.sigmoid((np.arange(BINS) + 0.5) * (2 * LIMIT / BINS) - LIMIT)
        return {
            "calibration": binary.calibration(middles, positives, negatives),
            "auc_by_length": by_length(lambda place: (self.counts[place, 1], self.counts[place, 0]))
            if measured
            else [],
        }
