"""What kinds of tasks whose labels are numbers of 0 or more have in common."""

from typing import Any

import numpy as np
import torch

from livetrain.modules.metrics import numeric
from livetrain.modules.tasks.kind import Array, Metric, Needs, Redrawn, TaskKind

_LARGEST = torch.finfo(torch.float32).max


class Number(TaskKind):
    """A number of 0 or more. A kind adds its loss and its prediction."""

    wanted = "a number from 0 on"
    numeric = True
    metrics = {
        "xauc": Metric("xAUC", 1, headline=True, needs=Needs.APART, least=0.0),
        "xauc_error": Metric("xAUC error at most", shown=".1e", needs=Needs.APART),
        "mae": Metric("MAE", -1),
        "rmse": Metric("RMSE", -1),
        "pcoc": Metric("PCOC", needs=Needs.ABOVE_0),
    }
    leading = ordered_by = "xauc"

    @staticmethod
    def fits(labels: Array) -> Array:
        return (labels >= 0) & (labels <= _LARGEST)

    def predict(self, logits: np.ndarray) -> np.ndarray:
        """Return the predictions of (n,) logits."""
        return self(torch.from_numpy(logits)).numpy()

    def figures(self, labels: np.ndarray, logits: np.ndarray, groups: np.ndarray | None = None) -> dict[str, float]:
        return numeric.figures(labels, self.predict(logits))

    def redrawn(self, labels: np.ndarray, logits: np.ndarray, units: np.ndarray, grouped: bool) -> Redrawn:
        return numeric.redrawn(labels, self.predict(logits), units)

    def counts(self) -> "_Predicted":
        return _Predicted(self)

    def order(self, labels: np.ndarray, predictions: np.ndarray) -> float:
        return numeric.xauc(labels, predictions)


class _Predicted(numeric.Histogram):
    def __init__(self, kind: Number) -> None:
        super().__init__()
        self._kind = kind

    def add(self, labels: np.ndarray, logits: np.ndarray, buckets: np.ndarray) -> None:
        self.count(labels, self._kind.predict(logits))

    def curves(self, measured: bool) -> dict[str, list[Any]]:
        return {"calibration": [], "auc_by_length": []}
