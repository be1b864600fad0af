"""The night that a stream is followed from: the newest that was good enough, and not taken back since."""

import json
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa

from livetrain.cluster.nightly import earlier
from livetrain.configs.errors import BadInput, NotNow
from livetrain.configs.schema import Recipe
from livetrain.trainers.data.read.files import open_filesystem
from livetrain.trainers.data.write import layout
from livetrain.trainers.export import publish
from livetrain.trainers.runtime import run_folder

_END = "9999-99-99"


def newest(recipe: Recipe, runs: Path, nights: str | None) -> Path:
    """Return the folder of the newest night of a recipe that was exported.

    Args:
        recipe: with a name.
        runs: folder of run folders.
        nights: where the nights are published; None: whether one was taken back is not known.

    Raises:
        NotNow: there is none.
        BadInput: `nights` cannot be read.
    """
    assert recipe.name is not None  # the command gives it one
    found = earlier(runs, recipe.name, _END, publish.current(nights) if nights is not None else None)
    if found is None:
        raise NotNow(
            f"--runs: {runs} has no night of {recipe.name} that was published and has its best checkpoint; run "
            "`livetrain nightly` first"
        )
    return found


def day_of(night: Path) -> str:
    """Return the day of a night's run, by which its line is named."""
    return night.name[-len("2022-05-08") :]


def first_second(night: Recipe) -> int:
    """Return the first second after the days that a night has learned from, in s since 1970."""
    assert night.data.days is not None  # no night is without
    after = date.fromisoformat(night.data.days.of("train")[-1]) + timedelta(1)
    return (after - date(1970, 1, 1)).days * 86_400 - _offset(night)


def _offset(night: Recipe) -> int:
    """Return how many seconds the days of the data begin before those of UTC, as dataset.json says."""
    filesystem, root = open_filesystem(night.data.path)
    try:
        with filesystem.open_input_stream(f"{root}/{layout.MANIFEST}") as file:
            return int(json.loads(file.read()).get("utc_offset_s", 0))
    except (FileNotFoundError, ValueError, AttributeError):
        return 0
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"data.path: {layout.MANIFEST} cannot be read ({error}); restore it") from error


def line_recipe(recipe: Recipe, night: Path) -> Recipe:
    """Return what a line is trained by: the night's own recipe, where and when things happen being the given one's.

    Args:
        recipe: the command's.
        night: a run folder.

    Raises:
        BadInput: the night's recipe cannot be followed.
    """
    found = run_folder.recipe_of(night)
    if found.fusion is not None:
        raise BadInput(
            f"fusion: its weights in {night.name} were searched on one checkpoint's predictions; "
            "follow a night of a recipe without it"
        )
    ends = found.optimizers.schedule
    if ends.decay != "constant" and not ends.final:
        raise BadInput(
            f"optimizers.schedule.final: the rates of {night.name} end at 0, and the follower goes on with those that "
            "a night ends with, so it would learn nothing; train a night with one above 0"
        )
    train = found.train.model_copy(
        update={"warm_start": None, "checkpoint_every": None, "profile": None, "copies": None}
    )
    export = found.export.model_copy(update={"after_training": False})
    return found.model_copy(
        update={
            "name": f"{recipe.name}-follow-{day_of(night)}",
            "follow": recipe.follow,
            "cluster": recipe.cluster,
            "wandb": None,
            "train": train,
            "export": export,
        }
    )
