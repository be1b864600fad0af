"""Whether a checkpoint can be loaded under a recipe, or a run go on under it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from livetrain.configs.errors import BadInput
from livetrain.configs.load import dump_recipe
from livetrain.configs.schema import Recipe
from livetrain.trainers.data.read.columns import IdKind
from livetrain.trainers.runtime.run_folder import recipe_in

# What may be otherwise when a run goes on: where and when things happen, and what is written of them. All else decides
# what is trained, or which checkpoint is the best.
_FREE = (
    *("name", "export", "wandb", "fusion", "follow", "data.threads", "data.prefetch", "gradients.measure_every"),
    *("train.checkpoint_every", "train.keep", "train.copies", "train.log_every", "train.profile"),
    *("cluster.workers", "cluster.device", "cluster.address", "cluster.cpus_per_worker", "cluster.max_failures"),
    *("cluster.timeout_s", "cluster.topology", "evaluate.bootstrap"),
    "evaluate.memory",  # which gives the same figures, but for what bounded memory rounds
)
# What a model and its optimizers' state are read into.
_SHAPE = ("features", "tables", "model", "tasks", "gradients.kind", "optimizers.sparse.kind", "optimizers.dense.kind")
_BY_PLACE = ("features", "tasks")  # a network's columns and towers lie in their order
_WHERE_ROWS_LIE = ("sharding", "memory", "cache")  # of a table


def check_same(path: Path, recipe: Recipe, resume: bool, mend: str | None = None) -> None:
    """Raise BadInput, naming the first difference, where a checkpoint cannot be loaded under `recipe`.

    Args:
        path: the checkpoint.
        recipe: the run's recipe.
        resume: whether the run is to go on as it was: then all that decides what it learns must be the same.
        mend: what helps, for the message.
    """
    before, now = _tree(recipe_in(path)), _tree(recipe)
    if resume:
        for tree in (before, now):
            for key in _FREE:
                _take(tree, key)
    else:
        for table in (*before["tables"].values(), *now["tables"].values()):
            if table["optimizer"]:
                table["optimizer"] = {"kind": table["optimizer"]["kind"]}
        before, now = ({key: _take(tree, key) for key in _SHAPE} for tree in (before, now))
    for section in _BY_PLACE:
        if before[section].keys() == now[section].keys() and list(before[section]) != list(now[section]):
            order = _short(", ".join(before[section]))
            raise BadInput(
                f"{path}: this checkpoint's layers lie in the order of its {section}, {order}, and the recipe has "
                f"another; {mend or 'put that order back'}"
            )
    if (different := _first_difference(before, now)) is not None:
        key, old, new = different
        if mend is None:
            mend = "use that recipe, or another run name" if resume else "put that back into the run's config.yaml"
            if resume and key == "data.batch_size":  # perhaps said per worker, and these are others now
                mend = f"give data.batch_size={old}, which goes on on any number of workers, or another run name"
        raise BadInput(
            f"{path}: this checkpoint was written with {key}={_short(old)}, but the recipe says {_short(new)}; {mend}"
        )


def check_ids(trained: Mapping[str, str], found: Mapping[str, IdKind], recipe: Recipe, name: str) -> None:
    """Raise BadInput where rows hold strings as ids and what was trained knows integers, or the reverse.

    Args:
        trained: of each feature what its ids were in training; nothing where that is not known.
        found: of each feature what its ids are in the rows.
        recipe: names the features.
        name: of the rows.
    """
    for feature, kind in found.items():
        if (before := trained.get(feature, kind)) != kind:
            raise BadInput(
                f"features.{feature}: column '{recipe.column(feature)}' of {name} holds {kind}, but "
                f"{before} in training, so their ids have nothing in common; store {before}"
            )


def _tree(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as mappings, but for where rows lie; the metric that picks checkpoints is named."""
    tree = yaml.safe_load(dump_recipe(recipe))
    tree["train"]["select"] = recipe.select()
    for table in tree["tables"].values():
        for where in _WHERE_ROWS_LIE:
            del table[where]
    return tree


def _take(tree: dict[str, Any], dotted: str) -> Any:
    """Remove a dotted key and return what stood there."""
    *above, last = dotted.split(".")
    for part in above:
        tree = tree[part]
    return tree.pop(last, None)


def _first_difference(before: Any, now: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """Return where two trees differ first, as (dotted key, before, now), or None."""
    if before == now:
        return None
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*before, *(n for n in now if n not in before)]:
            below = f"{key}.{name}" if key else name
            if (found := _first_difference(before.get(name), now.get(name), below)) is not None:
                return found
    return key, before, now


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
