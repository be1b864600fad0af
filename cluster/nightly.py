"""A night's retraining: the recipe's days moved on, a run that begins with an earlier night's, a model for the servers.

A night is a function of the day that its test split ends with, and every step of it is done once: the command that is
started again, after a kill or by a scheduler that is not sure, goes on where it was and repeats nothing.
"""

import math
import shutil
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from pyarrow import fs

from cluster import launch
from cluster.alone import alone
from configs.errors import BadInput, NotNow, may_pass, without_credentials
from configs.schema import Days, Recipe
from trainers import checkpoint, export, manifest, preflight, publish
from trainers.data.files import NoPartition, open_filesystem, shown

Say = Callable[[str], None]
SPLITS = preflight.SPLITS


def newest_day(recipe: Recipe) -> str:
    """Return the last day for which the data have a partition.

    Raises:
        NotNow: they have none.
    """
    system, root = open_filesystem(recipe.data.path)
    selector = fs.FileSelector(root, allow_not_found=True)
    days = [i.base_name[5:] for i in system.get_file_info(selector) if i.base_name.startswith("date=")]
    if not days:
        raise NotNow(f"data.path: {shown(system, root)} has no partition date=YYYY-MM-DD; prepare a day first")
    return max(days)


def moved(recipe: Recipe, day: str) -> Recipe:
    """Return the recipe with all its days moved alike, so that test ends with `day`, and the night's name.

    Raises:
        BadInput: the recipe names no days, or `day` is none.
    """
    if recipe.data.days is None:
        raise BadInput("data.days: a nightly run moves the recipe's days on, and it names none; add data.days")
    try:
        by = date.fromisoformat(day) - date.fromisoformat(recipe.data.days.of("test")[-1])
    except ValueError:
        raise BadInput(f"--day: '{day}' is no day; write it as 2022-05-08") from None

    def shift(first_to_last: str) -> str:
        return "..".join(str(date.fromisoformat(end) + timedelta(by.days)) for end in first_to_last.split(".."))

    days = Days(**{split: shift(getattr(recipe.data.days, split)) for split in SPLITS})
    data = recipe.data.model_copy(update={"days": days})
    return recipe.model_copy(update={"data": data, "name": f"{recipe.name}-{day}"})


def earlier(runs: Path, name: str, day: str) -> Path | None:
    """Return the newest night of a recipe before a day that was good enough to be exported.

    Args:
        runs: folder of run folders.
        name: the recipe's, without a day.
        day: as 2022-05-08.
    """
    nights = [path.parents[1] for path in runs.glob(f"{name}-????-??-??/export/{manifest.MANIFEST}")]
    before = [night for night in nights if night.name[-10:] < day and _has_best(night)]
    return max(before, key=lambda night: night.name[-10:], default=None)


def _has_best(night: Path) -> bool:
    try:
        export.find_checkpoint(night, "best")
    except BadInput:
        return False
    return True


def night(
    recipe: Recipe, runs: Path, day: str | None, where: str, tolerance: float, keep: int, cold: bool, say: Say
) -> dict[str, Any] | None:
    """Train, judge and publish one night.

    The new model is published unless the one that is published now is better by more than `tolerance` on the night's
    test days, by the metric that picks checkpoints.

    Args:
        recipe: with a name and with days, which say how long each split is and how they follow one another.
        runs: folder of run folders, where the nights before lie too.
        day: the test split's last; None is the newest of the data.
        where: folder or URI of the published versions.
        tolerance: of the metric.
        keep: published versions that stay, and nights whose checkpoints do.
        cold: begin anew, without last night's weights.
        say: told what was done.

    Returns:
        The pointer to the published model, or None where it is worse than the one before.

    Raises:
        NotNow: another night of the recipe is at work, a day of the data is not there yet, or a storage failed.
        BadInput: what `launch.train` and `publish` raise it for; a later version is published already.
    """
    try:
        day = day or newest_day(recipe)
        tonight = moved(recipe, day)
        runs = preflight.run_folder(runs.resolve(), "")
        busy = f"{runs}: another night of {recipe.name} is at work there; wait for its end, or end it"
        with alone(runs / f".{recipe.name}.night", busy):
            return _night(recipe, tonight, runs, day, where, tolerance, keep, cold, say)
    except BadInput as error:
        if isinstance(error, NoPartition) or may_pass(error):
            raise NotNow(str(error)) from error
        raise


def _night(
    recipe: Recipe,
    tonight: Recipe,
    runs: Path,
    day: str,
    where: str,
    tolerance: float,
    keep: int,
    cold: bool,
    say: Say,
) -> dict[str, Any] | None:
    run, before = runs / tonight.name, publish.replaced(where, day)
    if before is not None and before.get("run") == tonight.name:
        say(f"{tonight.name} is published already, as {before['folder']}")
        return before
    _check_comparable(tonight, runs, before, where)
    if not launch.complete(tonight, run):
        begin = earlier(runs, recipe.name, day) or tonight.train.warm_start
        if (begun := _begun(run)) is not None:  # a killed night goes on as it began
            begin = begun.train.warm_start
        begin = None if cold else begin
        train = tonight.train.model_copy(update={"warm_start": begin and str(begin)})
        launch.train(tonight.model_copy(update={"train": train}), runs)
    metric = f"test.{tonight.select()}"
    figure = launch.finished(run)[metric]
    say(f"{tonight.name}: {metric} {_shown(figure)}")
    if before is not None and not _good_enough(figure, tonight, runs, before, tolerance, say):
        _prune(runs, recipe.name, keep, spare=before.get("run"))
        return None
    if manifest.read(run / "export") is None:
        export.export(run)
    pointer = publish.publish(run / "export", where, day, keep, run=tonight.name, metric=metric, value=figure)
    _prune(runs, recipe.name, keep, spare=tonight.name)
    say(f"published as {pointer['folder']}, fence {pointer['fence']}, in {where}")
    return pointer


def _begun(run: Path) -> Recipe | None:
    """Return the recipe under which a night was begun, or None where there is nothing of it to go on with."""
    try:
        return checkpoint.recipe_of(run)
    except BadInput:
        return None


def _prune(runs: Path, name: str, keep: int, spare: str | None) -> None:
    """Delete the checkpoints of all nights but the newest `keep` and the published one; what else they left stays."""
    nights = sorted(runs.glob(f"{name}-????-??-??"), key=lambda night: night.name[-10:])
    for night in nights[:-keep]:
        if night.name != spare:
            shutil.rmtree(night / "checkpoints", ignore_errors=True)


def _published_run(runs: Path, before: dict[str, Any]) -> Path | None:
    """Return the run of the published model, or None where it is gone."""
    run = runs.resolve() / str(before.get("run"))
    return run if (run / "config.yaml").exists() else None


def _check_comparable(tonight: Recipe, runs: Path, before: dict[str, Any] | None, where: str) -> None:
    """Raise BadInput where the published model has no metric to compare the night's with."""
    old = _published_run(runs, before) if before is not None else None
    if old is not None and tonight.select() not in preflight.selectable(checkpoint.recipe_of(old)):
        raise BadInput(
            f"--publish: {old.name}, which is published in {without_credentials(where)}, has no {tonight.select()}; "
            "choose another place"
        )


def _good_enough(
    figure: float | None, tonight: Recipe, runs: Path, before: dict[str, Any], tolerance: float, say: Say
) -> bool:
    """Return whether the night's model may replace the published one, judged on the night's test days."""
    old = _published_run(runs, before)
    if old is None:
        say(f"the run {before.get('run')} is gone, so the published model is not compared")
        return True
    metric = f"test.{tonight.select()}"
    mend = f"put it back from a copy, or remove {old}, and the published model is not compared"
    theirs = launch.evaluate(old, "test", "best", tonight.data.days, mend)[metric]
    sign = preflight.selectable(tonight)[tonight.select()]
    if theirs is None or math.isnan(theirs):
        return True
    worse = math.nan if figure is None else sign * (theirs - figure)
    if worse <= tolerance:
        say(f"the published model, {old.name}, has {_shown(theirs)} on the same days")
        return True
    say(f"not published: {old.name} has {_shown(theirs)} on the same days, better by more than {tolerance}")
    return False


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
