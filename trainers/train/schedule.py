"""The learning rates' factor, step by step."""

import math

from livetrain.configs.schema import Recipe


def factor(step: int, total: int, recipe: Recipe) -> float:
    """Return the learning rates' factor at a step (0-based): linear warm-up, then constant, linear or cosine."""
    schedule = recipe.optimizers.schedule
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.decay == "constant":
        return 1.0
    done = (step - schedule.warmup_steps) / max(total - schedule.warmup_steps, 1)
    shape = 1 - done if schedule.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return schedule.final + (1 - schedule.final) * shape
