"""The weights of a run's fused score: where they lie, and what they make of predictions.

<run>/fusion.json   the formula, its weights, the points that were tried, and the figures; see cluster.fusing
"""

import json
from pathlib import Path
from typing import Any

from livetrain.configs.schema import Recipe
from livetrain.modules.fusion import Fused

NAME = "fusion.json"


def found_in(run: Path) -> dict[str, Any] | None:
    """Return what a run's file says of its fused score; None where weights were not searched yet."""
    try:
        return json.loads((run / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def weights_in(run: Path) -> dict[str, float] | None:
    """Return the weights of a run's fused score; None where they were not searched yet."""
    found = found_in(run)
    return None if found is None else found["weights"]


def fused_of(run: Path, recipe: Recipe) -> Fused | None:
    """Return what makes a run's fused score of predictions; None where it has none."""
    weights = weights_in(run)
    if recipe.fusion is None or weights is None:
        return None
    return Fused(recipe.fusion, list(recipe.answered), weights)
