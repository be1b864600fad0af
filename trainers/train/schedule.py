"""The learning rates' factor, by batch and by step."""

import math

from livetrain.configs.schema import Recipe
from livetrain.configs.schema.optimizers import Schedule


def factor(step: int, total: int, recipe: Recipe) -> float:
    """Return what every learning rate is multiplied by at a step (0-based).

    That is the square root of the batch over `optimizers.rates_for_batch`, where that is given, times the schedule: a
    linear warm-up, then constant, linear or cosine.

    The square root keeps what Adam and Adagrad make of noise: with s times the rows a step's mean gradient has a noise
    of 1/sqrt(s), and there are 1/s of the steps (Malladi et al. 2022, On the SDEs and Scaling Rules for Adaptive
    Gradient Algorithms; benchmarks/results/batch.md measures it).

    Example:
        >>> from livetrain.configs.load import load_recipe
        >>> changes = {"rates_for_batch": 1536, "schedule": {"warmup_steps": 2, "decay": "constant"}}
        >>> recipe = load_recipe("configs/recipes/din_ml1m.yaml", optimizers=changes, data={"batch_size": 4 * 1536})
        >>> [factor(step, 10, recipe) for step in range(3)]
        [1.0, 2.0, 2.0]
    """
    meant = recipe.optimizers.rates_for_batch
    return _course(step, total, recipe.optimizers.schedule) * math.sqrt(recipe.data.batch_size / meant if meant else 1)


def ending(recipe: Recipe) -> float:
    """Return the factor with which a run of a recipe ends, and who goes on with it begins.

    Example:
        >>> from livetrain.configs.load import load_recipe
        >>> changes = {"schedule": {"decay": "cosine", "final": 0.2}}
        >>> ending(load_recipe("configs/recipes/din_ml1m.yaml", optimizers=changes))
        0.2
    """
    last = recipe.optimizers.schedule.warmup_steps + 1
    return factor(last, last, recipe)


def _course(step: int, total: int, schedule: Schedule) -> float:
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.decay == "constant":
        return 1.0
    done = (step - schedule.warmup_steps) / max(total - schedule.warmup_steps, 1)
    shape = 1 - done if schedule.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return schedule.final + (1 - schedule.final) * shape
