"""Growing the trees of a task by LightGBM, and what a checkpoint keeps of them."""

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import Field

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import FittedRankerConfig, Recipe
from livetrain.configs.values import Count, Positive, PositiveOrZero, Share, whole
from livetrain.modules.fitted import State
from livetrain.modules.trees.columns import Column
from livetrain.modules.trees.trees import Forest, Trees, forest
from livetrain.trainers.trees.encode import Encoded

if TYPE_CHECKING:
    from lightgbm import Booster, Dataset

BINARY, REGRESSION = "binary", "regression"  # kinds of tasks
_SIZES = {"trees": "roots", "leaves": "leaves"}
_PROVED = 4096  # rows on which the exported trees are compared with the library's own
_CLOSE = 1e-6


class BoostedConfig(FittedRankerConfig):
    """Boosted trees, a forest per task."""

    trees: Count = Field(500, description="trees of a task at most; fewer where valid stops to improve")
    leaves: Annotated[int, *whole(2, 4096)] = Field(31, description="of a tree at most")
    rate: Positive = Field(0.05, description="what a tree adds of what it has learned")
    leaf_rows: Count = Field(50, description="rows of a leaf at least")
    columns_share: Share = Field(0.7, description="of the columns that each tree may split, drawn by train.seed")
    rows_share: Share = Field(0.8, description="of the rows that each tree is grown on, likewise")
    l2: PositiveOrZero = Field(1.0, description="regularisation of the leaves")
    patience: Count = Field(50, description="trees without a better figure on valid after which a task's are enough")
    categories: Annotated[int, *whole(0, 4096)] = Field(
        64, description="ids that a feature has at most to be a category; others become statistics of earlier rows"
    )
    prior: PositiveOrZero = Field(20.0, description="rows with the mean of all that an id's mean label leans on")


def check(recipe: Recipe, *kinds: str) -> None:
    """Raise BadInput where a task is of none of these kinds."""
    for name, task in recipe.tasks.items():
        if task.kind not in kinds:
            raise BadInput(
                f"tasks.{name}.kind: '{recipe.model.kind}' learns tasks of kind {' and '.join(kinds)}, and not "
                f"'{task.kind}'; change the kind, or leave the task out"
            )


def library() -> Any:
    """Return LightGBM.

    Raises:
        BadInput: it is not installed.
    """
    try:
        import lightgbm
    except ImportError:
        raise BadInput(
            "model.kind: boosted trees are grown by LightGBM, which is not installed; pip install 'livetrain[trees]'"
        ) from None
    return lightgbm


class Grower:
    """The data of a fit, binned once for all tasks.

    LightGBM holds a byte of each number, and besides 12 bytes of each row; the matrices stay on disk.

    Args:
        config: how trees are grown.
        recipe: the run.
        columns: what they split.
        train: the training split.
        valid: the validation split.
        rows: how many of the first training rows the trees are grown on.
    """

    def __init__(
        self, config: BoostedConfig, recipe: Recipe, columns: list[Column], train: Encoded, valid: Encoded, rows: int
    ) -> None:
        lightgbm = library()
        self._config, self._recipe, self._columns = config, recipe, columns
        self._train, self._valid, self._rows = train, valid, rows
        self._common: dict[str, Any] = {
            "verbosity": -1,
            "seed": recipe.train.seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": torch.get_num_threads(),
            "max_bin": 255,
        }
        coded = [place for place, column in enumerate(columns) if column.categories]
        # Free names: LightGBM refuses some letters.
        names = [f"c{place}" for place in range(len(columns))]
        make: Any = lightgbm.Dataset
        self._data: Dataset = make(
            train.numbers[:rows],
            feature_name=names,
            categorical_feature=coded,
            params=self._common,
            free_raw_data=False,
        )
        self._data.construct()
        self._held_out: Dataset = make(valid.numbers, reference=self._data, free_raw_data=False)

    def grow(self, task: int, trees: int, before: str | None = None) -> "Booster":
        """Return a task's trees.

        Args:
            task: its place.
            trees: that are grown at most.
            before: the text of trees that these go on from.

        Returns:
            Its trees up to the best by the validation split; all, where that judges nothing.
        """
        lightgbm, config = library(), self._config
        odds = [*self._recipe.tasks.values()][task].kind == BINARY
        for data, rows, size in ((self._data, self._train, self._rows), (self._held_out, self._valid, None)):
            labels = rows.labels[:size, task].copy()
            data.set_label(labels if odds else np.log1p(labels))  # a regression's loss is of the logarithm
            data.set_weight(rows.weights[:size, task].copy())
        seen = np.unique(self._valid.labels[self._valid.weights[:, task] > 0, task])
        judged = len(seen) > (1 if odds else 0)  # labels of one class have no AUC: then nothing tells when to stop
        settings = self._common | {
            "objective": "binary" if odds else "regression",
            "metric": "auc" if odds else "l2",
            "num_leaves": config.leaves,
            "learning_rate": config.rate,
            "min_data_in_leaf": config.leaf_rows,
            "feature_fraction": config.columns_share,
            "bagging_fraction": config.rows_share,
            "bagging_freq": 1 if config.rows_share < 1 <= int(config.rows_share * self._rows) else 0,
            "lambda_l2": config.l2,
        }
        grown = lightgbm.train(
            settings,
            self._data,
            trees,
            valid_sets=[self._held_out] if judged else None,
            init_model=None if before is None else lightgbm.Booster(model_str=before),
            callbacks=[lightgbm.early_stopping(config.patience, verbose=False)] if judged else None,
        )
        if not judged:
            grown.best_iteration = grown.num_trees()
        return grown

    def forest(self, booster: "Booster") -> Forest:
        """Return a booster's best trees as arrays, which are proved to say what the library does.

        Raises:
            RuntimeError: they do not.
        """
        found = forest(booster.dump_model(num_iteration=booster.best_iteration)["tree_info"], self._columns)
        rows = np.array(self._valid.numbers[:_PROVED])
        wanted = booster.predict(rows, raw_score=True, num_iteration=booster.best_iteration)
        own = Trees(found, self._columns)(torch.from_numpy(rows)).numpy()
        if len(rows) and (apart := float(np.abs(own - wanted).max())) > _CLOSE:
            raise RuntimeError(f"the trees' arrays differ from LightGBM by {apart:.1e}, and nothing is kept of them")
        return found


def text(booster: "Booster") -> np.ndarray:
    """Return a booster's best trees as LightGBM's text, as bytes."""
    return np.frombuffer(booster.model_to_string(num_iteration=booster.best_iteration).encode(), np.uint8)


def kept(task: str, found: Forest, bias: float) -> State:
    """Return a task's trees as arrays of a checkpoint."""
    return {f"{part}.{task}": array for part, array in found._asdict().items()} | {f"bias.{task}": np.array([bias])}


def trees_of(task: str, state: State, columns: list[Column]) -> Trees:
    """Return what scores a task's rows, of a checkpoint's arrays."""
    found = Forest(**{part: np.array(state[f"{part}.{task}"]) for part in Forest._fields})
    return Trees(found, columns, float(state[f"bias.{task}"][0]))


def sizes(recipe: Recipe, state: State) -> dict[str, int]:
    """Return how many trees and leaves all tasks have."""
    return {part: sum(len(state[f"{name}.{task}"]) for task in recipe.tasks) for part, name in _SIZES.items()}
