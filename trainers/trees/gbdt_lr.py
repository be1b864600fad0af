"""Boosted trees whose leaves are the inputs of a logistic regression (He et al., ADKDD 2014).

https://doi.org/10.1145/2648584.2648589
"""

import math
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from scipy import optimize, special

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.configs.values import Positive, Share
from livetrain.modules.fitted import Pass, State, register_fitted_ranker
from livetrain.trainers.trees import boost, encode
from livetrain.trainers.trees.encode import Encoded
from livetrain.trainers.trees.forests import Forests

_STEP = 65_536  # rows whose leaves are asked for at a time


class GBDTLRConfig(boost.BoostedConfig):
    """A logistic regression on the leaves of boosted trees."""

    kind: Literal["gbdt_lr"] = "gbdt_lr"
    later: Share = Field(
        0.3,
        description="of the training rows, the latest ones, which the regression is fitted on and the trees are not",
    )
    penalties: Annotated[list[Positive], Field(min_length=1, max_length=16)] = Field(
        [1.0, 10.0, 100.0, 1000.0],
        description="λ of λ/2 |w|² beside the sum of the rows' losses: each is tried, and the one kept whose log loss "
        "on valid is least",
    )


@register_fitted_ranker("gbdt_lr", GBDTLRConfig)
class GBDTLR(Forests):
    """logit(row) = b + sum over the trees of w[leaf that the row comes to], by task.

    The trees are grown on the training split's earlier rows and the weights are fitted on those after them: a tree has
    seen the labels of its own rows, so that of these its leaves would say too much. A leaf's weight stands where the
    tree's own value stood, so that what scores is a forest like any other.

    Args:
        config: see `GBDTLRConfig`.
        recipe: the run.

    Raises:
        BadInput: a task is no probability.
    """

    def __init__(self, config: GBDTLRConfig, recipe: Recipe) -> None:
        super().__init__(config, recipe)
        boost.check(recipe, boost.BINARY)
        if config.later == 1:
            raise BadInput("model.later: all rows leave none to grow trees on; give a smaller share, such as 0.3")
        self.config = config

    def fit(self, train: Pass, valid: Pass, folder: Path, before: State | None = None) -> State:
        boost.library()
        self.notes, config, recipe = [], self.config, self.recipe
        categories = encode.categories_of(recipe, train, config.categories, None)
        columns, rows, held_out = encode.encode(recipe, train, valid, folder, categories, config.prior)
        cut = _cut(rows.blocks, config.later)
        grower = boost.Grower(config, recipe, columns.columns, rows, held_out, cut)
        state = encode.kept(columns, categories)
        for place, (name, task) in enumerate(recipe.tasks.items()):
            grown = grower.grow(place, config.trees)
            forest = grower.forest(grown)
            counts = forest.counts()
            leaves = _leaves(grown, rows, cut, folder / "later.u16")
            judged = _leaves(grown, held_out, 0, folder / "judged.u16")
            tried = {}
            begin = (forest.value[forest.leaves], 0.0)
            for penalty in sorted(config.penalties, reverse=True):
                begin = regression(leaves, counts, *_column(rows, cut, place), penalty, begin)
                tried[_loss(judged, counts, *_column(held_out, 0, place), begin), penalty] = begin
            (_, penalty), (weights, bias) = min(tried.items())
            value = np.zeros_like(forest.value)
            value[forest.leaves] = weights
            state |= boost.kept(name, forest._replace(value=value), bias + math.log(task.negatives_kept))
            self.notes.append(
                f"{name}: {len(counts):,} trees of {cut:,} rows, {len(weights):,} leaves weighed on the "
                f"{leaves.shape[1]:,} rows after them, penalty {penalty:g}"
            )
        self.notes.append(encode.told(columns))
        return state


def _cut(blocks: np.ndarray, later: float) -> int:
    """Return where the rows after the trees' begin: where a block does, nearest to a share of the rows from the end.

    Raises:
        BadInput: all rows are of one block.
    """
    begins = np.flatnonzero(np.diff(blocks)) + 1
    if not len(begins):
        raise BadInput("data.path: the training split's rows cannot be parted in earlier and later ones; give it more")
    return int(begins[np.abs(begins - (1 - later) * len(blocks)).argmin()])


def _leaves(grown: "boost.Booster", rows: Encoded, first: int, path: Path) -> np.ndarray:
    """Return the leaves of the rows from `first` on, (T, n) uint16, tree by tree, in a file that is mapped."""
    trees, size = grown.best_iteration, len(rows.numbers) - first
    found = np.memmap(path, np.uint16, "w+", shape=(trees, size))
    for start in range(0, size, _STEP):
        part = np.array(rows.numbers[first + start : first + start + _STEP])
        found[:, start : start + len(part)] = np.reshape(
            grown.predict(part, pred_leaf=True, num_iteration=trees), (len(part), trees)
        ).T
    return found


def _column(rows: Encoded, first: int, task: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a task's labels and weights of the rows from `first` on, float64."""
    return rows.labels[first:, task].astype(np.float64), rows.weights[first:, task].astype(np.float64)


def _logits(leaves: np.ndarray, counts: np.ndarray, weights: np.ndarray, bias: float) -> np.ndarray:
    firsts, logits = np.cumsum(counts) - counts, np.full(leaves.shape[1], bias)
    for tree, (first, count) in enumerate(zip(firsts, counts, strict=True)):
        logits += weights[first : first + count][leaves[tree]]
    return logits


def _loss(
    leaves: np.ndarray, counts: np.ndarray, labels: np.ndarray, weights: np.ndarray, found: tuple[np.ndarray, float]
) -> float:
    """Return the sum of the rows' losses."""
    logits = _logits(leaves, counts, *found)
    return float(weights @ (np.logaddexp(0, logits) - labels * logits))


def regression(
    leaves: np.ndarray,
    counts: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    penalty: float,
    start: tuple[np.ndarray, float] | None = None,
) -> tuple[np.ndarray, float]:
    """Return the weights of leaves and the bias that minimise

        sum_i c_i log(1 + exp(-s_i z_i)) + penalty / 2 |w|²,  z_i = b + sum_t w[t, leaf_ti],  s_i = 1 or -1

    by L-BFGS. It is scikit-learn's LogisticRegression with C = 1 / penalty on the leaves as one-hot columns.

    Args:
        leaves: (T, n) the leaf of each row in each tree, from 0.
        counts: (T,) leaves of each tree.
        labels: (n,) float64, 0 or 1.
        weights: (n,) float64, c.
        penalty: λ.
        start: weights and bias to begin with.

    Returns:
        (sum of counts,) weights, tree by tree, and the bias.

    Example:
        >>> w, b = regression(np.array([[0, 0, 1, 1]]), np.array([2]), np.array([0.0, 0, 1, 1]), np.ones(4), 1.0)
        >>> w.round(3), round(b, 3)
        (array([-0.675,  0.675]), 0.0)
    """
    firsts = np.concatenate([[0], np.cumsum(counts)])

    def loss(given: np.ndarray) -> tuple[float, np.ndarray]:
        own, logits = given[:-1], _logits(leaves, counts, given[:-1], given[-1])
        wrong = weights * (special.expit(logits) - labels)
        slope = np.empty_like(given)
        for tree, first in enumerate(firsts[:-1]):
            slope[first : firsts[tree + 1]] = np.bincount(leaves[tree], wrong, counts[tree])
        slope[:-1] += penalty * own
        slope[-1] = wrong.sum()
        value = float(weights @ (np.logaddexp(0, logits) - labels * logits) + penalty / 2 * own @ own)
        return value, slope

    began = np.append(*(start or (np.zeros(firsts[-1]), 0.0)))
    found = optimize.minimize(loss, began, jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-10})
    return found.x[:-1], float(found.x[-1])
