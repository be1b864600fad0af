"""`livetrain follow`: a training between two nights, which learns minutes as they come and publishes the model.

<runs>/NAME-follow/              metrics.jsonl: what is said; line.json: the line that is published
<runs>/NAME-follow/2026-11-29/   the line of a night, a run folder: config.yaml, metrics.jsonl, checkpoints, export
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from livetrain.cluster import launch, places, ray_workers
from livetrain.cluster.alone import alone
from livetrain.cluster.nightly import asked_later
from livetrain.cluster.stream.following import Following
from livetrain.cluster.stream.publishing import Publisher, check
from livetrain.cluster.stream.windows import moment
from livetrain.cluster.stream.words import Asked
from livetrain.configs.errors import BadInput, may_pass
from livetrain.configs.schema import Recipe
from livetrain.trainers.observe.progress import Watcher
from livetrain.trainers.runtime import runlog, signals
from livetrain.trainers.runtime.run_folder import LOCK
from livetrain.trainers.train import preflight

_AGAIN_S = 30.0  # after which a follower goes on whose storage has failed


def follow(
    recipe: Recipe, runs: Path, where: str, every: int, nights: str | None = None, keep: int = 7, once: bool = False
) -> dict[str, Any]:
    """Follow the recipe's stream from its newest night on.

    Args:
        recipe: with a name, days and a section `follow`.
        runs: folder of run folders, where the nights lie.
        where: folder or URI of the versions that are published.
        every: seconds of events that are learned in one go.
        nights: where the nights are published, so that one that was taken back is not followed.
        keep: published versions that stay.
        once: end when all that is closed is learned and published.

    Returns:
        With `once`: `taken`, up to when all is learned, the `line` and its `step`.

    Raises:
        BadInput: the recipe, the stream or a place is wrong, or a minute is damaged and may not be left out.
        NotNow: another follower is at work; with `once` also that there is no night or no stream yet, or
            the stream's storage is away.
        RuntimeError: the workers failed more often than cluster.max_failures.
        KeyboardInterrupt: it was told to stop, and how it goes on.
    """
    if recipe.follow is None:
        raise BadInput(
            "follow: the recipe has no such section; say where the minutes are, as follow: {path: data/live}"
        )
    if recipe.data.days is None:
        raise BadInput("data.days: a follower begins with a night, and the recipe names no days; add data.days")
    with asked_later():
        check(where)
    runs = preflight.run_folder(runs.resolve(), "")
    run = preflight.run_folder(runs, f"{recipe.name}-follow")
    asked = Asked(recipe, runs, run, every, nights, once)
    busy = f"{run}: another follower of {recipe.name} is at work there; wait for its end, or end it"
    with alone(run / LOCK, busy):
        while True:
            try:
                return _follow(asked, where, keep)
            except BadInput as error:
                if once or not may_pass(error):
                    raise
                runlog.note(run, "note", text=f"waiting, and trying again every {_AGAIN_S:.0f} s: {error}")
                with Watcher(run), signals.saving(run):
                    time.sleep(_AGAIN_S)
            except KeyboardInterrupt as interrupt:
                raise type(interrupt)(
                    f"{run.name} was stopped; started again it goes on from its newest checkpoint"
                ) from None


def _follow(asked: Asked, where: str, keep: int) -> dict[str, Any]:
    run, cluster = asked.run, asked.recipe.cluster
    say = partial(_say, run)
    with Watcher(run), places.taken(run, places.TRAINING) as place, signals.saving(run):
        ray_workers.check_here(cluster)
        with Publisher(run, where, keep, say, beside=cluster.most > 0) as publisher:
            published = publisher.look if cluster.most == 0 else None
            found = launch.on_ranks(partial(_here, asked, published), asked.recipe, run, place)
        say(f"all is learned that was closed: up to {moment(found['taken'])}")
    return found


def _here(asked: Asked, published: Any, device: torch.device) -> dict[str, Any]:
    return Following(asked, device, published).run()


def _say(run: Path, text: str) -> None:
    runlog.note(run, "note", text=text)
