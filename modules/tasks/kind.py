"""The contract of a kind of task: its labels, its loss, what its logit predicts, and the metrics that judge it.

training:             network -> the task's outputs -> Heads -> loss
evaluation, serving:  network -> the task's outputs -> Heads -> logit -> metrics and prediction

Nearly every kind has one output, which is its logit.
"""

import math
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from torch import Tensor, nn

from livetrain.configs.schema import Task

Array = TypeVar("Array", Tensor, np.ndarray)
Redrawn = Callable[[np.ndarray], dict[str, float]]


class Needs(StrEnum):
    """What labels a split must have for a metric to be defined."""

    KNOWN = "a row whose label is known"
    APART = "labels that differ"
    BOTH = "rows of both classes"
    BOTH_IN_A_GROUP = "a group with rows of both classes"
    ABOVE_0 = "a label above 0"
    POSITIVE = "a positive row"

    def met(self, only: float | None) -> bool:
        """Return whether a split may have them whose known labels are all `only`; None: they differ."""
        if only is None or self is Needs.KNOWN:
            return True
        return self in (Needs.ABOVE_0, Needs.POSITIVE) and only > 0


class Metric(NamedTuple):
    """One figure of an evaluation.

    Attributes:
        title: as tables and plots call it.
        better: 1 where more is better, -1 where less is; 0 where neither, so that it picks no checkpoint.
        grouped: it needs evaluate.group_by.
        headline: it stands at the head of a report.
        shown: format of its value.
        needs: what a split must have; a checkpoint is picked by one that asks for least where others are undefined.
        least: that it can be.
    """

    title: str
    better: int = 0
    grouped: bool = False
    headline: bool = False
    shown: str = ".4f"
    needs: Needs = Needs.KNOWN
    least: float = -math.inf


class Counts(Protocol):
    """What evaluate.memory: bounded keeps of a task: sums over rows, which ranks add up."""

    counts: np.ndarray
    sums: np.ndarray

    def add(self, labels: np.ndarray, logits: np.ndarray, buckets: np.ndarray) -> None:
        """Take in rows, as `TaskKind.figures` and `TaskKind.curves` get them."""

    def figures(self) -> dict[str, float]:
        """Return what `TaskKind.figures` does, without those of groups, and how far each can be from it."""

    def curves(self, measured: bool) -> dict[str, list[Any]]:
        """Return what `TaskKind.curves` does; `measured`: lengths were given."""


class TaskKind(nn.Module):
    """A kind of task. A subclass is registered by modules.tasks.registry.register_task and overrides what differs.

    Args:
        task: the recipe's section.

    Attributes:
        config: class that checks the recipe's section, whose further keys are the kind's own.
        wanted: which labels it has, in words.
        output: what it predicts, in words.
        numeric: labels are any numbers rather than 0 and 1.
        odds: sigmoid(logit) is the probability that the label is 1, so that `negatives_kept` and chains hold.
        towers: it learns from networks with two towers, and from no others.
        only_positives: rows with label 0 teach nothing by themselves.
        by_group: rows are compared with those of their group: it has a `group_loss` instead of a `loss`, its config is
            a `GroupTask`, and a row that is trained on alone teaches nothing.
        follows: a network answers nothing for it: its logit is that of the task `of`, and its config is a `Follower`.
        outputs: how many numbers a network answers for it; a kind with several has a `score`.
        untrained: the loss of knowing nothing; 0 where it depends on the labels' size.
        metrics: name -> metric of everything that an evaluation writes.
        leading: the metric that says most; it picks the best checkpoint unless train.select names another.
        ordered_by: metric of `order`.
    """

    config = Task
    wanted = output = ""
    numeric = odds = towers = only_positives = by_group = follows = False
    outputs = 1
    untrained = 0.0
    metrics: dict[str, Metric] = {}
    leading = ordered_by = ""

    def __init__(self, task: Task | None = None) -> None:
        super().__init__()

    @staticmethod
    def fits(labels: Array) -> Array:
        """Return which labels, of any shape, are of this kind."""
        raise NotImplementedError

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return each row's loss, of the labels' shape.

        Args:
            logits: of the labels' shape; (B, outputs) of a kind with several outputs.
            labels: (B,), or of any shape where there is one output.
        """
        raise NotImplementedError

    def base_loss(self, rate: float) -> float:
        """Return the loss of a model that answers the same for every row and knows the labels' mean; 0 if unknown."""
        return self.untrained

    def group_loss(self, logits: Tensor, labels: Tensor, weights: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the N rows of a *global* batch add to the loss and to what it is divided by, (N,) both.

        The task's loss is the sum of the first over that of the second. A row of weight w counts as w rows would, and
        a row of weight 0 changes nothing.

        Args:
            logits: (N,), or (N, outputs).
            labels: (N,).
            weights: (N,), 0 or more; 0 of padding and where the label is not known.
            groups: (N,) int64.
        """
        raise NotImplementedError

    def score(self, outputs: Tensor) -> Tensor:
        """Return the logit (B,) that several outputs (B, outputs) make. torch.jit.script must accept it."""
        return outputs

    def forward(self, logits: Tensor) -> Tensor:
        """Return the predictions; of one shape. torch.jit.script must accept it."""
        raise NotImplementedError

    def figures(self, labels: np.ndarray, logits: np.ndarray, groups: np.ndarray | None = None) -> dict[str, float]:
        """Return the metrics of n rows.

        Args:
            labels: (n,).
            logits: (n,) float32.
            groups: (n,) int64 group of each row, where evaluate.group_by is given.
        """
        raise NotImplementedError

    def grouped(self, labels: np.ndarray, logits: np.ndarray, groups: np.ndarray) -> dict[str, float]:
        """Return the `grouped` metrics alone; none by default."""
        return {}

    def measure_lists(self, top: Sequence[int]) -> None:
        """Have the lists of groups measured too, up to these lengths; kinds that do not rank have none."""

    def redrawn(self, labels: np.ndarray, logits: np.ndarray, units: np.ndarray, grouped: bool) -> Redrawn | None:
        """Return the figures that have an interval, as a function of how often each unit of rows was drawn.

        Args:
            labels: (n,).
            logits: (n,).
            units: (n,) place of each row's unit, from 0 to the U units that there are.
            grouped: the units are the groups, whose figures are wanted too.

        Returns:
            (U,) float64 times -> figures, as `figures` gives them of rows that are there so often, groups as groups of
            their own; None where the kind has none.
        """
        return None

    def curves(self, labels: np.ndarray, logits: np.ndarray, buckets: np.ndarray | None) -> dict[str, list[Any]]:
        """Return the points of plots; none by default.

        Args:
            labels: (n,).
            logits: (n,).
            buckets: (n,) place of each row's history length in modules.metrics.lengths.LENGTH_NAMES, if known.
        """
        return {"calibration": [], "auc_by_length": []}

    def counts(self) -> Counts:
        """Return an empty store for evaluate.memory: bounded."""
        raise NotImplementedError

    def order(self, labels: np.ndarray, predictions: np.ndarray) -> float:
        """Return how well predictions order the rows: the metric `ordered_by`."""
        raise NotImplementedError
