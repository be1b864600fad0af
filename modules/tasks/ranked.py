"""What kinds have in common whose score orders rows and is no probability."""

from typing import Any

import numpy as np
from torch import Tensor

from livetrain.modules.metrics.histogram import Probabilities
from livetrain.modules.tasks.binary import Binary
from livetrain.modules.tasks.kind import Redrawn

_RANKING = ("auc", "auc_error", "gauc", "uauc", "positives")  # what such a score can be asked


class Ranked(Binary):
    """A label of 0 or 1 whose rows are to be ordered: the prediction is the score itself. A kind adds its loss."""

    output = "score, by which rows are ranked"
    odds = False
    untrained = 0.0
    metrics = {name: Binary.metrics[name] for name in _RANKING}

    def forward(self, logits: Tensor) -> Tensor:
        return logits

    def figures(self, labels: np.ndarray, logits: np.ndarray, groups: np.ndarray | None = None) -> dict[str, float]:
        figures = super().figures(labels, logits, groups)
        return {name: figure for name, figure in figures.items() if name in self.metrics}

    def redrawn(self, labels: np.ndarray, logits: np.ndarray, units: np.ndarray, grouped: bool) -> Redrawn:
        figures = super().redrawn(labels, logits, units, grouped)
        return lambda times: {name: one for name, one in figures(times).items() if name in self.metrics}

    def curves(self, labels: np.ndarray, logits: np.ndarray, buckets: np.ndarray | None) -> dict[str, list[Any]]:
        return super().curves(labels, logits, buckets) | {"calibration": []}

    def counts(self) -> "_Scores":
        return _Scores()


class _Scores(Probabilities):
    def figures(self) -> dict[str, float]:
        return {name: figure for name, figure in super().figures().items() if name in _RANKING}

    def curves(self, measured: bool) -> dict[str, list[Any]]:
        return super().curves(measured) | {"calibration": []}
