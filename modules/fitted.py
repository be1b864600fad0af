"""The contract of a model that is fitted in one go rather than trained by steps, and that scores rows of every task.

Its kinds differ by what they learn; the run around them, the figures, the file that scores, nights and publishing are
the same. Kinds that find items are `livetrain.modules.recall.fitted.Fitted`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import nn

from livetrain.configs.registry import MODELS
from livetrain.configs.schema import ModelConfig, Recipe

State = dict[str, np.ndarray]  # what a fit has learned, by name: the files of its checkpoint
Inputs = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]


class Rows(NamedTuple):
    """Some rows of a split, in the order of its files, and so in time order where its partitions are days."""

    inputs: Inputs  # ids, lengths and dense by feature, as an exported file takes them
    labels: torch.Tensor  # (n, T) float32 of the T tasks; NaN = not known
    weights: torch.Tensor  # (n, T) float32, of rows in a task's loss; 0 where its label is not known
    block: int  # rows of a lower block are strictly earlier: a partition, or a part of the only one


Pass = Callable[[], Iterator[Rows]]  # reads a split once more


class FittedModel:
    """What all models that are fitted have in common.

    Args:
        config: the recipe's section `model`.
        recipe: the run.

    Attributes:
        recipe: the run.
        incremental: whether a fit may go on from what an earlier one has learned, which `fit` then gets as `before`; a
            subclass may set it.
        notes: what the last fit has to say; the run's log tells it.

    Raises:
        BadInput: the config does not fit the recipe.
    """

    def __init__(self, config: Any, recipe: Recipe) -> None:
        self.recipe, self.incremental = recipe, False
        self.notes: list[str] = []


class FittedRanker(FittedModel):
    """A kind of model that is fitted and scores rows. A subclass is registered by `register_fitted_ranker`.

    Args:
        config: the recipe's section `model`, a `FittedRankerConfig`.
        recipe: the run.

    Attributes:
        needs: package of the extra `trees`, without which there is no fit; None of a kind that needs none.
    """

    needs: ClassVar[str | None] = None

    def fit(self, train: Pass, valid: Pass, folder: Path, before: State | None = None) -> State:
        """Return what there is to learn of the training split.

        Args:
            train: reads the training split, as often as it is called.
            valid: reads the validation split, by which a fit may choose when to stop.
            folder: for files that are needed until the fit is done; it is removed then.
            before: what an earlier fit has learned, of an `incremental` kind that begins with it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no fit")

    def module(self, state: State) -> nn.Module:
        """Return what scores rows, of what `fit` has learned.

        torch.jit.script must accept it. It is called with ids, lengths and dense by feature, as an exported file is,
        and returns task -> (B,) float32 logits, of which the tasks' kinds make predictions.
        """
        raise NotImplementedError(f"{type(self).__name__} has no module")

    def sizes(self, state: State) -> dict[str, int]:
        """Return what result.json tells of how large the model is, by name; nothing by default."""
        return {}


def register_fitted_ranker(kind: str, config: type[ModelConfig]) -> Callable[[type[FittedRanker]], type[FittedRanker]]:
    """Make the decorated `FittedRanker` that of ``model.kind: kind``.

    Args:
        kind: the name in recipes.
        config: subclass of configs.schema.FittedRankerConfig, whose fields are the keys of the recipe's section
            `model`.

    Raises:
        TypeError: the class is no `FittedRanker`.
    """

    return MODELS.entering(kind, config, FittedRanker, "livetrain.FittedRanker")


def fitted(recipe: Recipe) -> Any:
    """Return the recipe's model if it is one that is fitted, and None if it is a network.

    Raises:
        BadInput: the recipe does not fit the model.
    """
    return MODELS.owner(recipe.model.kind)(recipe.model, recipe) if recipe.model.fitted else None
