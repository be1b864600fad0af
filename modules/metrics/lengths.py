"""AUC by the length of a row's history."""

from collections.abc import Callable
from typing import Any

import numpy as np

from livetrain.modules.metrics import binary

LENGTH_EDGES = np.array([0, 5, 10, 20, 50, 100])  # last length of each bucket but the last
LENGTH_NAMES = ("0", "1-5", "6-10", "11-20", "21-50", "51-100", ">100")


def bucket(lengths: np.ndarray) -> np.ndarray:
    """Return each length's place in LENGTH_NAMES, int8."""
    return np.searchsorted(LENGTH_EDGES, lengths, side="left").astype(np.int8)


def by_length(counts: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> list[dict[str, Any]]:
    """Return AUC, rows and positives of every bucket of history lengths that has both classes.

    Args:
        counts: place of a bucket -> positives and negatives at each of its scores, rising.
    """
    points = []
    for place, name in enumerate(LENGTH_NAMES):
        positives, negatives = counts(place)
        if positives.any() and negatives.any():
            hits, rows = int(positives.sum()), int(positives.sum() + negatives.sum())
            auc = binary.auc_from_counts(positives, negatives)
            points.append({"length": name, "auc": auc, "rows": rows, "positives": hits})
    return points
