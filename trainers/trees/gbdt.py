"""Gradient-boosted decision trees, one forest per task (LightGBM: Ke et al., NeurIPS 2017)."""

import math
from pathlib import Path
from typing import Literal

from pydantic import Field

from livetrain.configs.schema import Recipe
from livetrain.configs.values import CountOrZero
from livetrain.modules.fitted import Pass, State, register_fitted_ranker
from livetrain.trainers.trees import boost, encode
from livetrain.trainers.trees.forests import Forests

_TEXT = "lightgbm."


class GBDTConfig(boost.BoostedConfig):
    """Boosted trees, a forest per task."""

    kind: Literal["gbdt"] = "gbdt"
    more_trees: CountOrZero = Field(
        0, description="trees of a task that a run which begins with an earlier one adds to it; 0: each is fitted anew"
    )


@register_fitted_ranker("gbdt", GBDTConfig)
class GBDT(Forests):
    """logit_k(row) = ln(share kept of the negatives) + sum over the trees of task k of the leaf that the row comes to.

    Args:
        config: see `GBDTConfig`.
        recipe: the run.

    Raises:
        BadInput: a task is of a kind that trees do not learn.
    """

    def __init__(self, config: GBDTConfig, recipe: Recipe) -> None:
        super().__init__(config, recipe)
        boost.check(recipe, boost.BINARY, boost.REGRESSION)
        self.config, self.incremental = config, config.more_trees > 0

    def fit(self, train: Pass, valid: Pass, folder: Path, before: State | None = None) -> State:
        boost.library()
        self.notes, config, recipe = [], self.config, self.recipe
        categories = encode.categories_of(recipe, train, config.categories, before)
        columns, rows, held_out = encode.encode(recipe, train, valid, folder, categories, config.prior)
        grower = boost.Grower(config, recipe, columns.columns, rows, held_out, len(rows.blocks))
        state = encode.kept(columns, categories)
        for place, (name, task) in enumerate(recipe.tasks.items()):
            earlier = None if before is None else bytes(before[_TEXT + name]).decode()
            grown = grower.grow(place, config.trees if earlier is None else config.more_trees, earlier)
            bias = math.log(task.negatives_kept)  # 0 of a regression, which has no negatives
            state |= boost.kept(name, grower.forest(grown), bias) | {_TEXT + name: boost.text(grown)}
            self.notes.append(f"{name}: {grown.best_iteration:,} trees")
        self.notes.append(encode.told(columns))
        return state
