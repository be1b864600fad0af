"""Which checkpoint is the best: by the metric that a recipe selects by, or by another where the data leave it open.

A split whose labels are all of one class has no AUC; its evaluations are then compared by log loss.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.schema import Recipe
from livetrain.modules.tasks.kind import Metric, Needs
from livetrain.modules.tasks.registry import kinds

if TYPE_CHECKING:
    from livetrain.trainers.data.read.statistics import Statistics


def parts(name: str) -> tuple[str, str, str]:
    """Return (slice, task, metric) of ``<slice>.<task>.<metric>``, or of ``<task>.<metric>``, whose slice is empty."""
    *before, task, metric = name.split(".")
    return ".".join(before), task, metric


def metric_of(recipe: Recipe, name: str) -> Metric:
    """Return what a recipe's metric ``<task>.<metric>`` or ``<slice>.<task>.<metric>`` is."""
    _, task, metric = parts(name)
    return kinds(recipe.tasks, recipe.evaluate.top)[task].metrics[metric]


def stand_in(recipe: Recipe, metric: str) -> str:
    """Return what picks in the place of an undefined metric: of the same task and slice the one that asks least."""
    of = metric.rpartition(".")[0]
    kind = kinds(recipe.tasks)[parts(metric)[1]]
    always = (name for name, one in kind.metrics.items() if one.better and one.needs is Needs.KNOWN)
    return f"{of}.{next(always, kind.leading)}"


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
    if best is None or before is None:
        return True
    if by != before:
        return by == recipe.select()
    sign = metric_of(recipe, by).better
    return sign * metrics[by] > sign * best[by]


def undefined(recipe: Recipe, task: str, statistics: "Statistics") -> list[str]:
    """Return which of the metrics ``<task>.<metric>`` that could pick a checkpoint no evaluation on a split will have.

    Args:
        recipe: the run.
        task: one of its tasks.
        statistics: of the split.
    """
    own = [name for name in selectable(recipe) if parts(name)[1] == task]
    unknown, only = statistics.unknown.get(task) == 1, statistics.single.get(task)
    return [name for name in own if unknown or not metric_of(recipe, name).needs.met(only)]


def selectable(recipe: Recipe) -> dict[str, int]:
    """Return the metrics of an evaluation that can be best: 1 where more is, -1 where less is."""
    return {name: better for name, better in written(recipe).items() if better}


def written(recipe: Recipe) -> dict[str, int]:
    """Return the metrics that an evaluation may write: as `selectable`, and 0 where neither is better."""
    return {
        f"{of}{task}.{name}": metric.better
        for of in ("", *(f"{name}." for name in recipe.evaluate.slices))
        for task, kind in kinds(recipe.tasks, recipe.evaluate.top).items()
        for name, metric in kind.metrics.items()
        if recipe.evaluate.group_by or not metric.grouped
    }


def _defined(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def check_select(recipe: Recipe) -> None:
    """Raise BadInput where train.select is no metric that a run will have."""
    names, wanted = selectable(recipe), recipe.select()
    if wanted in names:
        return
    if wanted in selectable(
        recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"group_by": "x"})})
    ):
        raise BadInput(f"train.select: '{wanted}' is measured within groups; name their column in evaluate.group_by")
    raise BadInput(f"train.select: no run of this recipe has a metric '{wanted}'{nearest(wanted, names)}")
