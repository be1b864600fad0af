"""A night's retraining: the recipe's days moved on, a run that begins with an earlier night's, a model for the servers.

A night is a function of the day that its test split ends with, and every step of it is done once: the command that is
started again, after a kill or by a scheduler that is not sure, goes on where it was and repeats nothing.
"""

import contextlib
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from livetrain.cluster import launch
from livetrain.cluster.alone import alone
from livetrain.cluster.days import check_whole, moved, newest_day
from livetrain.configs.errors import BadInput, NotNow, may_pass, without_credentials
from livetrain.configs.schema import Recipe, WarmStart
from livetrain.modules.fitted import fitted
from livetrain.trainers.data.read.files import NoPartition
from livetrain.trainers.evaluate.selection import selectable
from livetrain.trainers.export import export, publish
from livetrain.trainers.runtime import manifest, run_folder
from livetrain.trainers.runtime.run_folder import find_checkpoint
from livetrain.trainers.train import preflight

Say = Callable[[str], None]


def earlier(runs: Path, name: str, day: str, published: dict[str, Any] | None) -> Path | None:
    """Return the newest night of a recipe before a day that was good enough to be exported, and not taken back since.

    Args:
        runs: folder of run folders.
        name: the recipe's, without a day.
        day: as 2022-05-08.
        published: the pointer to the published model.
    """
    nights = [path.parents[1] for path in runs.glob(f"{name}-????-??-??/export/{manifest.MANIFEST}")]
    bad = {each.get("run") for each in published["versions"] if each.get("rejected")} if published is not None else ()
    before = [n for n in nights if n.name[-10:] < day and n.name not in bad and _has_best(n)]
    return max(before, key=lambda night: night.name[-10:], default=None)


def _has_best(night: Path) -> bool:
    try:
        find_checkpoint(night, "best")
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
        NotNow: another night of the recipe is at work, a day of the data is not there yet or not whole, or a storage
            failed.
        BadInput: what `launch.train` and `publish` raise it for; a later version is published already; the published
            one is not as its manifest says.
    """
    with asked_later():
        tonight = moved(recipe, day or newest_day(recipe))
        own = tonight.export.model_copy(update={"after_training": False})  # a night exports what it publishes, below
        tonight = tonight.model_copy(update={"export": own})
        runs = preflight.run_folder(runs.resolve(), "")
        busy = f"{runs}: another night of {recipe.name} is at work there; wait for its end, or end it"
        assert recipe.name is not None  # the command gives it one
        with alone(runs / f".{recipe.name}.night", busy):
            return _night(recipe.name, tonight, runs, where, tolerance, keep, cold, say)


@contextlib.contextmanager
def asked_later() -> Iterator[None]:
    """Make what another try may find mended, data that come later or a storage that failed, a NotNow."""
    try:
        yield
    except BadInput as error:
        if isinstance(error, NoPartition) or may_pass(error):
            raise NotNow(str(error)) from error
        raise


def _night(
    name: str, tonight: Recipe, runs: Path, where: str, tolerance: float, keep: int, cold: bool, say: Say
) -> dict[str, Any] | None:
    assert tonight.data.days is not None  # see `moved`, which also names it
    assert tonight.name is not None
    day = tonight.data.days.of("test")[-1]  # as 2022-05-08, however it was written
    run, before = runs / tonight.name, publish.replaced(where, day)
    damaged = None
    if before is not None:
        again, damaged = before.get("run") == tonight.name, publish.damage(where, before)
        if damaged is not None and not again:
            raise BadInput(
                f"{damaged}; publish it again with --day {before['version']}, or go back by `livetrain rollback`"
            )
        if again and damaged is None:
            say(f"{tonight.name} is published already, as {before['folder']}")
            return before
    check_whole(tonight)
    _check_comparable(tonight, runs, before, where)
    if not launch.complete(tonight, run):
        begin = tonight.train.warm_start
        if (night := earlier(runs, name, day, before)) is not None:
            begin = WarmStart(run=str(night))  # of the nights' own model: what a recipe maps is of another one
        if (model := fitted(tonight)) is not None and not model.incremental:
            begin = None
        if (begun := _begun(run)) is not None:  # a killed night goes on as it began
            begin = begun.train.warm_start
        train = tonight.train.model_copy(update={"warm_start": None if cold else begin})
        launch.train(tonight.model_copy(update={"train": train}), runs)
    metric = f"test.{tonight.select()}"
    result = run_folder.finished(run)
    assert result is not None  # it was trained above, or before
    figure = result[metric]
    say(f"{tonight.name}: {metric} {_digits(figure)}")
    if damaged is not None:
        say(f"{damaged}; it is published again")
    elif before is not None and not _good_enough(figure, tonight, runs, before, tolerance, say):
        _prune(runs, name, keep, before)
        return None
    if manifest.read(run / "export") is None:
        export.export(run)
    pointer = publish.publish(run / "export", where, day, keep, run=tonight.name, metric=metric, value=figure)
    _prune(runs, name, keep, pointer)
    say(f"published as {pointer['folder']}, fence {pointer['fence']}, in {where}")
    return pointer


def nights(days: list[str], where: str, one: Callable[[str], dict[str, Any] | None], say: Say) -> dict[str, Any] | None:
    """Make up for the nights of some days, in their order. What is settled is left out, the first failure the end.

    Args:
        days: in order, each as 2022-05-08.
        where: folder or URI of the published versions.
        one: does the `night` of a day.
        say: told what is left out, begun and failed.

    Returns:
        The pointer to the published model, or None where the last night's is worse.
    """
    with asked_later():
        pointer = publish.current(where)
    done = publish.settled(pointer) if pointer is not None else ""
    missed = [day for day in days if day > done]
    if len(missed) < len(days):
        say(f"nights up to {days[len(days) - len(missed) - 1]} are left out: those up to {done} are settled")
    for number, day in enumerate(missed, 1):
        say(f"night {number} of {len(missed)}: {day}")
        try:
            pointer = one(day)
        except Exception:
            say(f"the night of {day} failed, and {len(missed) - number} after it were not begun; start again to go on")
            raise
    return pointer


def _begun(run: Path) -> Recipe | None:
    """Return the recipe under which a night was begun, or None where there is nothing of it to go on with."""
    try:
        return run_folder.recipe_of(run)
    except BadInput:
        return None


def _prune(runs: Path, name: str, keep: int, published: dict[str, Any]) -> None:
    """Delete the checkpoints of all nights but the newest `keep` and those that stay published; all else stays."""
    spare = {each.get("run") for each in published["versions"]}
    found = sorted(runs.glob(f"{name}-????-??-??"), key=lambda night: night.name[-10:])
    for night in found[:-keep]:
        if night.name not in spare:
            shutil.rmtree(night / "checkpoints", ignore_errors=True)


def _published_run(runs: Path, before: dict[str, Any]) -> Path | None:
    """Return the run of the published model, or None where it is gone."""
    run = runs.resolve() / str(before.get("run"))
    return run if (run / "config.yaml").exists() else None


def _check_comparable(tonight: Recipe, runs: Path, before: dict[str, Any] | None, where: str) -> None:
    """Raise BadInput where the published model has no metric to compare the night's with."""
    old = _published_run(runs, before) if before is not None else None
    if old is not None and tonight.select() not in selectable(run_folder.recipe_of(old)):
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
    sign = selectable(tonight)[tonight.select()]
    if theirs is None or math.isnan(theirs):
        say(f"{metric} of {old.name} is undefined on the same days, so the published model is not compared")
        return True
    worse = math.nan if figure is None else sign * (theirs - figure)
    if worse <= tolerance:
        say(f"the published model, {old.name}, has {_digits(theirs)} on the same days")
        return True
    say(f"not published: {old.name} has {_digits(theirs)} on the same days, better by more than {tolerance}")
    return False


def _digits(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
