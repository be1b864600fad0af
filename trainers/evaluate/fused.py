"""How well one score of several tasks ranks, by each task's labels: beside each task's own score and their product."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from livetrain.configs import formula
from livetrain.configs.schema import FUSED, Recipe
from livetrain.modules.fusion import Fused
from livetrain.modules.tasks.registry import kinds

PRODUCT = "product"
Figures = dict[str, dict[str, dict[str, float]]]  # score -> task -> metric -> value


class Predicted(NamedTuple):
    """What a model predicts for n rows, of T tasks."""

    predictions: dict[str, Tensor]  # (n,) float32 by task
    labels: np.ndarray  # (n, T) float32; NaN = not known
    groups: np.ndarray  # (n,) int64
    share: float  # of all groups, that these are of


def figures(predicted: Predicted, recipe: Recipe, scores: dict[str, Tensor], tasks: list[str]) -> Figures:
    """Return the metrics of groups of some scores, each by the labels of some tasks.

    Args:
        predicted: the rows.
        recipe: the run.
        scores: (n,) by name.
        tasks: whose labels judge.
    """
    found: Figures = {name: {} for name in scores}
    places, known_kinds = list(recipe.tasks), kinds(recipe.tasks, recipe.evaluate.top)
    for task in tasks:
        kind, labels = known_kinds[task], predicted.labels[:, places.index(task)]
        known = ~np.isnan(labels)
        for name, score in scores.items():
            of = kind.grouped(labels[known], score.float().numpy()[known], predicted.groups[known])
            found[name][task] = {metric: value for metric, value in of.items() if kind.metrics[metric].better}
    return found


def beside(predicted: Predicted, recipe: Recipe) -> dict[str, Tensor]:
    """Return what a fused score is compared with: each task of the formula alone, and the product of them all."""
    assert recipe.fusion is not None
    tasks = list(recipe.answered)
    used = [name for name in formula.named(recipe.fusion.steps(tasks)) if name in recipe.answered]
    single = {task: predicted.predictions[task] for task in used}
    product = torch.stack([score.double() for score in single.values()]).prod(0)
    return {PRODUCT: product} | single


def compared(predicted: Predicted, recipe: Recipe, weights: dict[str, float]) -> Figures:
    """Return the figures of a fused score and of all that it is compared with."""
    assert recipe.fusion is not None
    fused = Fused(recipe.fusion, list(recipe.answered), weights)(predicted.predictions)
    return figures(predicted, recipe, {FUSED: fused} | beside(predicted, recipe), list(recipe.judged()))


def lines(found: Figures, by: str) -> list[str]:
    """Return the figures of a metric as lines of a table: a score each, by task.

    Example:
        >>> lines({"fused": {"click": {"gauc": 0.61}}, "product": {"click": {"gauc": 0.6}}}, "gauc")
        ['gauc      click', 'fused    0.6100', 'product  0.6000']
    """
    tasks = list(next(iter(found.values())))
    wide, narrow = max(len(name) for name in [by, *found]), [max(len(task), 6) for task in tasks]
    out = [" ".join([by.ljust(wide + 1), *(task.rjust(size) for task, size in zip(tasks, narrow, strict=True))])]
    for name, own in found.items():
        cells = [f"{own[task][by]:.4f}" if by in own.get(task, {}) else "-" for task in tasks]
        out.append(" ".join([name.ljust(wide + 1), *(c.rjust(s) for c, s in zip(cells, narrow, strict=True))]))
    return out
