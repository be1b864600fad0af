"""Labels of 0 and 1."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from livetrain.modules.metrics import binary
from livetrain.modules.metrics.histogram import Probabilities
from livetrain.modules.metrics.lengths import by_length
from livetrain.modules.tasks.kind import Array, Metric, Needs, TaskKind
from livetrain.modules.tasks.registry import register_task


@register_task("binary")
class Binary(TaskKind):
    """A label of 0 or 1: binary cross-entropy, and its probability.

    loss = -y log sigmoid(z) - (1 - y) log(1 - sigmoid(z)),  prediction = sigmoid(z)
    """

    wanted = "0 or 1"
    output = "probability"
    odds = True
    untrained = math.log(2)
    metrics = {
        "auc": Metric("AUC", 1, headline=True, needs=Needs.BOTH),
        "auc_error": Metric("AUC error at most", shown=".1e", needs=Needs.BOTH),
        "gauc": Metric("GAUC", 1, grouped=True, headline=True, needs=Needs.BOTH_IN_A_GROUP),
        "uauc": Metric("UAUC", 1, grouped=True, needs=Needs.BOTH_IN_A_GROUP),
        "log_loss": Metric("log loss", -1),
        "ne": Metric("NE", -1, needs=Needs.BOTH),
        "pcoc": Metric("PCOC", needs=Needs.ABOVE_0),
        "positives": Metric("positives", shown=",.0f"),
    }
    leading = ordered_by = "auc"

    @staticmethod
    def fits(labels: Array) -> Array:
        return (labels == 0) | (labels == 1)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")

    def forward(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits)

    def figures(self, labels: np.ndarray, logits: np.ndarray, groups: np.ndarray | None = None) -> dict[str, float]:
        return {
            "auc": binary.auc(labels, logits),
            **({} if groups is None else self.grouped(labels, logits, groups)),
            "log_loss": binary.log_loss(labels, logits),
            "ne": binary.normalised_entropy(labels, logits),
            "pcoc": binary.pcoc(labels, logits),
            "positives": float(np.count_nonzero(labels)),
        }

    def grouped(self, labels: np.ndarray, logits: np.ndarray, groups: np.ndarray) -> dict[str, float]:
        return dict(zip(("gauc", "uauc"), binary.gauc_and_uauc(labels, logits, groups), strict=True))

    def curves(self, labels: np.ndarray, logits: np.ndarray, buckets: np.ndarray | None) -> dict[str, list[Any]]:
        if np.isnan(logits).any():
            return super().curves(labels, logits, buckets)
        scores, positives, negatives = binary.count_by_score(labels, logits)

        def counts(place: int) -> tuple[np.ndarray, np.ndarray]:
            return binary.count_by_score(labels[buckets == place], logits[buckets == place])[1:]

        return {
            "calibration": binary.calibration(binary.sigmoid(scores), positives, negatives),
            "auc_by_length": [] if buckets is None else by_length(counts),
        }

    def counts(self) -> Probabilities:
        return Probabilities()

    def order(self, labels: np.ndarray, predictions: np.ndarray) -> float:
        return binary.auc(labels, predictions)
