"""Labels of 0 and 1 whose positives are to be found among all items."""

from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from livetrain.modules.metrics.histogram import Probabilities
from livetrain.modules.tasks.binary import Binary
from livetrain.modules.tasks.kind import Metric, Needs, Redrawn
from livetrain.modules.tasks.registry import register_task

AT = (10, 50, 100)  # lengths of the lists that are measured
_RANKING = ("auc", "auc_error", "gauc", "uauc", "positives")  # what a score that is no probability can be asked


@register_task("retrieval")
class Retrieval(Binary):
    """A label of 0 or 1 whose positives are to be found among all items: softmax over the items of a batch.

    loss = -log sigmoid(z) = softplus(-z), of positives only,  prediction = the score itself

    In training z is the logit of the row's item against all others of the batch, s_i - log sum_{j != i} e^s_j: then
    sigmoid(z) is its softmax. The prediction ranks items and is no probability. What is found among all items
    trainers.evaluate.retrieval measures.
    """

    output = "score, by which items are ranked"
    odds = False
    towers = only_positives = True
    untrained = 0.0
    metrics = {
        **{name: Binary.metrics[name] for name in _RANKING},
        **{f"recall_{k}": Metric(f"recall@{k}", 1, headline=k == AT[-1], needs=Needs.POSITIVE) for k in AT},
        **{f"ndcg_{k}": Metric(f"NDCG@{k}", 1, needs=Needs.POSITIVE) for k in AT},
        "items": Metric("items", shown=",.0f"),
        "queries": Metric("rows ranked", shown=",.0f"),
    }
    leading = f"recall_{AT[-1]}"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return each row's loss, were its label 1; all of one shape."""
        return F.softplus(-logits)

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
