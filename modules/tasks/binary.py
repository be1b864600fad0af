"""Labels of 0 and 1."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from livetrain.modules.metrics import binary, lists
from livetrain.modules.metrics.histogram import Probabilities
from livetrain.modules.metrics.lengths import by_length
from livetrain.modules.tasks.kind import Array, Metric, Needs, Redrawn, TaskKind
from livetrain.modules.tasks.lists import metrics as list_metrics
from livetrain.modules.tasks.registry import register_task

_LEAST = 1e-6  # of a rate, whose entropy would be 0


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
        "auc": Metric("AUC", 1, headline=True, needs=Needs.BOTH, least=0.0),
        "auc_error": Metric("AUC error at most", shown=".1e", needs=Needs.BOTH),
        "gauc": Metric("GAUC", 1, grouped=True, headline=True, needs=Needs.BOTH_IN_A_GROUP, least=0.0),
        "uauc": Metric("UAUC", 1, grouped=True, needs=Needs.BOTH_IN_A_GROUP, least=0.0),
        "log_loss": Metric("log loss", -1),
        "ne": Metric("NE", -1, needs=Needs.BOTH),
        "pcoc": Metric("PCOC", needs=Needs.ABOVE_0),
        "positives": Metric("positives", shown=",.0f"),
    }
    leading = ordered_by = "auc"
    top: tuple[int, ...] | None = None  # lengths of the lists that are measured, if any are

    @staticmethod
    def fits(labels: Array) -> Array:
        return (labels == 0) | (labels == 1)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")

    def base_loss(self, rate: float) -> float:
        """Return the loss of the logit at which sigmoid gives the rate; of a plain binary task the label's entropy.

        Example:
            >>> round(Binary().base_loss(0.01), 3), round(Binary().base_loss(0.5), 3)
            (0.056, 0.693)
        """
        if self.by_group or self.outputs > 1:  # of a kind of one's own, whose loss asks for more
            return self.untrained
        rate = min(max(rate, _LEAST), 1 - _LEAST)
        logits = torch.full((2,), math.log(rate / (1 - rate)), dtype=torch.float64)
        losses = self.loss(logits, torch.tensor([0.0, 1.0], dtype=torch.float64))
        return float((1 - rate) * losses[0] + rate * losses[1])

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

    def measure_lists(self, top: Sequence[int]) -> None:
        self.top = tuple(top)
        self.metrics = {**self.metrics, **list_metrics(top)}

    def grouped(self, labels: np.ndarray, logits: np.ndarray, groups: np.ndarray) -> dict[str, float]:
        within = _Within(labels, logits, groups, self.top)
        return within.figures(np.ones(len(within.values))) | within.counts()

    def redrawn(self, labels: np.ndarray, logits: np.ndarray, units: np.ndarray, grouped: bool) -> Redrawn:
        within = _Within(labels, logits, units, self.top) if grouped else None
        counts = binary.Redrawn(labels, logits, units)

        def figures(times: np.ndarray) -> dict[str, float]:
            return counts.figures(times) | (within.figures(times) if within else {})

        return figures

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


class _Within:
    """What is measured within groups, of which the figures are means.

    Attributes:
        values: (G, 1 + M) each group's AUC and metrics of lists, by rising group id; nan where it has none.
    """

    def __init__(self, labels: np.ndarray, logits: np.ndarray, groups: np.ndarray, top: tuple[int, ...] | None) -> None:
        runs = binary.group_runs(labels, logits, groups)
        aucs, self._rows = binary.group_aucs(runs)
        self._names = [] if top is None else lists.names(top)
        measured = lists.by_group(runs, top or ())[:, : len(self._names)]
        self.values = np.column_stack([aucs, measured])
        if np.isnan(logits).any():
            self.values[:] = np.nan

    def figures(self, times: np.ndarray) -> dict[str, float]:
        """Return the means over groups of which each was drawn so often, (G,)."""
        means = [binary.mean(column, times) for column in self.values.T]
        gauc = binary.mean(self.values[:, 0], times * self._rows)
        return {"gauc": gauc, "uauc": means[0], **dict(zip(self._names, means[1:], strict=True))}

    def counts(self) -> dict[str, float]:
        """Return how many groups' lists were measured, and how many were left out."""
        if not self._names:
            return {}
        left_out = int(np.isnan(self.values[:, 1]).sum())
        return {"lists": float(len(self.values) - left_out), "lists_left_out": float(left_out)}
