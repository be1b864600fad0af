"""Which checkpoint is the best: by the metric that a recipe selects by, or by another where the data leave it open.

A split whose labels are all of one class has no AUC; its evaluations are then compared by log loss.
"""

import math
from collections.abc import Mapping
from typing import Any

from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.schema import Recipe
from livetrain.modules.tasks.kinds import kinds
from livetrain.trainers.data.read.source import Statistics
from livetrain.trainers.evaluate.evaluation import RANKING
from livetrain.trainers.evaluate.retrieval import AT

# What may pick the best checkpoint, and whether more or less of it is better: of a binary task, of a numeric one, and
# of one of retrieval, beside those of a binary one that do not ask for a probability.
SELECTABLE = {"auc": 1, "gauc": 1, "uauc": 1, "log_loss": -1, "ne": -1}
SELECTABLE_NUMBERS = {"xauc": 1, "mae": -1, "rmse": -1}
SELECTABLE_ITEMS = {f"{metric}_{k}": 1 for metric in ("recall", "ndcg") for k in AT}
_SIGNS = SELECTABLE | SELECTABLE_NUMBERS | SELECTABLE_ITEMS

_BOTH, _BOTH_IN_ONE, _APART = "rows of both classes", "a group with rows of both classes", "labels that differ"
_NEEDS = {
    "auc": _BOTH,
    "auc_error": _BOTH,
    "ne": _BOTH,
    "gauc": _BOTH_IN_ONE,
    "uauc": _BOTH_IN_ONE,
    "xauc": _APART,
    "xauc_error": _APART,
    "pcoc": "a label above 0",
    **dict.fromkeys(SELECTABLE_ITEMS, "a positive row"),
}


def needs(metric: str) -> str:
    """Return what a split must have for a metric, with or without its task in front, to be defined."""
    return _NEEDS.get(metric.rpartition(".")[2], "a row whose label is known")


def stand_in(recipe: Recipe, metric: str) -> str:
    """Return what picks in the place of a metric ``<task>.<metric>`` that is undefined: the one that asks for least."""
    task = metric.rpartition(".")[0]
    kind = kinds(recipe.tasks)[task]
    return f"{task}.{'mae' if kind.numeric else f'recall_{AT[-1]}' if kind.retrieval else 'log_loss'}"


def picks(recipe: Recipe, metrics: Mapping[str, Any]) -> str | None:
    """Return the metric that speaks for an evaluation: the selected one or its stand-in; None if both are undefined.

    Args:
        recipe: the run.
        metrics: of the evaluation, on valid/. Undefined ones are nan, and null once they went through a log.
    """
    return next(
        (name for name in (recipe.select(), stand_in(recipe, recipe.select())) if _defined(metrics.get(name))), None
    )


def is_better(recipe: Recipe, metrics: Mapping[str, Any], best: Mapping[str, Any] | None) -> bool:
    """Tell whether an evaluation picks a new best checkpoint: its metrics against the best one's so far."""
    by, before = picks(recipe, metrics), picks(recipe, best) if best is not None else None
    if before is None:
        return True
    if by != before:
        return by == recipe.select()
    sign = _SIGNS[by.rpartition(".")[2]]
    return sign * metrics[by] > sign * best[by]


def undefined(recipe: Recipe, task: str, statistics: Statistics) -> list[str]:
    """Return which of the metrics ``<task>.<metric>`` that could pick a checkpoint no evaluation on a split will have.

    Args:
        recipe: the run.
        task: one of its tasks.
        statistics: of the split.
    """
    kind, only = kinds(recipe.tasks)[task], statistics.single.get(task)
    if statistics.unknown.get(task) == 1:
        lacking = set(_SIGNS)
    elif only is None:
        lacking = set()
    else:
        lacking = set(_NEEDS) if only == 0 or not kind.retrieval else set(_NEEDS) - set(SELECTABLE_ITEMS)
    own = [name.rpartition(".") for name in selectable(recipe)]
    return [f"{of}.{metric}" for of, _, metric in own if of == task and metric in lacking]


def selectable(recipe: Recipe) -> dict[str, int]:
    """Return the metrics ``<task>.<metric>`` of an evaluation that can be best: 1 where more is, -1 where less is."""
    grouped = ("gauc", "uauc")
    known = {m: sign for m, sign in SELECTABLE.items() if recipe.evaluate.group_by or m not in grouped}
    ranking = {m: sign for m, sign in known.items() if m in RANKING}
    return {
        f"{task}.{metric}": sign
        for task, kind in kinds(recipe.tasks).items()
        for metric, sign in (
            SELECTABLE_NUMBERS if kind.numeric else ranking | SELECTABLE_ITEMS if kind.retrieval else known
        ).items()
    }


def _defined(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def check_select(recipe: Recipe) -> None:
    """Raise BadInput where train.select is no metric that a run will have."""
    names = selectable(recipe)
    if recipe.select() not in names:
        hint = nearest(recipe.select(), names)
        raise BadInput(f"train.select: no run of this recipe has a metric '{recipe.select()}'{hint}")
