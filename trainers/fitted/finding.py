"""What a run of a model that finds items fits, measures and tells."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.modules.fitted import State
from livetrain.modules.recall.fitted import Fitted, Rows
from livetrain.trainers.recall.measure import measure
from livetrain.trainers.recall.rows import rows_of
from livetrain.trainers.train.loop import Job

__all__ = ["fit", "measure", "sizes", "told"]


def fit(model: Fitted, job: Job, scratch: Path, before: State | None) -> State:
    """Return what a model learns of the training split; `scratch` is not used."""
    parts = rows_of(job.sources["train"], [model.key, *model.features], job.recipe)
    return model.fit(_some_positive(parts, model.key, job.recipe), before)


def sizes(model: Fitted, found: Any, state: State) -> dict[str, int]:
    """Return what result.json tells of how large the model is."""
    return {"keys": found.keys.numel(), "items": found.items.numel(), "scores": found.scores.numel()}


def told(sizes: dict[str, int]) -> str:
    """Return a line of the run's log on how large the model is."""
    return f"{sizes['keys']:,} keys lead to {sizes['items']:,} items, {sizes['scores']:,} scores"


def _some_positive(parts: Iterator[Rows], key: str, recipe: Recipe) -> Iterator[Rows]:
    """Yield a split's rows; raise BadInput at their end if none is positive and has an item: nothing is to be learned.

    So no kind comes to count what is not there.
    """
    found = False
    for part in parts:
        found = found or bool((part.label & (part.ids[key].lengths > 0)).any())
        yield part
    if not found:
        raise BadInput(
            f"data.path: the training split has no positive rows of task '{next(iter(recipe.tasks))}' with an item that"
            " can be read; add days that have some, or mend its files"
        )
