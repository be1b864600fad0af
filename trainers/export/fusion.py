"""The weights of a run's fused score: where they lie, and what they make of predictions.

<run>/fusion.json   the formula, its weights, the points that were tried, and the figures; see cluster.fusing
"""

import json
from pathlib import Path
from typing import Any

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.modules.fusion import Fused
from livetrain.trainers.runtime import run_folder

NAME = "fusion.json"


def found_in(run: Path) -> dict[str, Any] | None:
    """Return what a run's file says of its fused score; None where weights were not searched yet.

    Raises:
        BadInput: the file is damaged.
    """
    try:
        found = json.loads((run / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("weights"), dict) or "score" not in found:
        raise BadInput(f"{run / NAME}: is damaged; `livetrain fuse {run}` writes it anew")
    return found


def weights_in(run: Path, recipe: Recipe) -> dict[str, float] | None:
    """Return the weights of a run's fused score; None where it has none, or they were not searched yet.

    Raises:
        BadInput: they are of another formula than the recipe's.
    """
    found = None if recipe.fusion is None else found_in(run)
    if found is None or recipe.fusion is None:
        return None
    if found["score"] != recipe.fusion.score or found["weights"].keys() != recipe.fusion.weights.keys():
        raise BadInput(
            f"{run / NAME}: its weights are of another formula than the recipe's fusion.score; `livetrain fuse {run}` "
            "searches them anew"
        )
    return found["weights"]


def fused_of(run: Path, recipe: Recipe, path: Path) -> Fused | None:
    """Return what makes a fused score of a checkpoint's predictions; None where the run has none.

    Raises:
        BadInput: the weights are of another formula, or were searched on another checkpoint's predictions.
    """
    weights = weights_in(run, recipe)
    if recipe.fusion is None or weights is None:
        return None
    found, step = found_in(run), run_folder.content(path)["step"]
    if weights and found is not None and found["step"] != step:
        raise BadInput(
            f"{path}: the weights of the fused score were searched on the predictions of step {found['step']:,}, not "
            "of this checkpoint; take the best one, or a recipe without fusion"
        )
    return Fused(recipe.fusion, list(recipe.answered), weights)
