"""What a follower is asked for, and the words by which its rank 0 tells all ranks what is next."""

import json
from dataclasses import dataclass
from pathlib import Path

from livetrain.cluster.stream.windows import Increment, Shed
from livetrain.configs.schema import Follow, Recipe
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.train.loop import Job

CURRENT = "line.json"  # in the follower's folder: the line that is published


@dataclass(frozen=True)
class Asked:
    """What a follower is asked for.

    Attributes:
        recipe: with a name and a section `follow`.
        runs: folder of run folders, where the nights lie.
        run: the follower's own there.
        every: s that an increment is long.
        nights: where the nights are published, or None.
        once: end when all that is closed is learned.
    """

    recipe: Recipe
    runs: Path
    run: Path
    every: int
    nights: str | None
    once: bool

    @property
    def follow(self) -> Follow:
        assert self.recipe.follow is not None  # the command sees to it
        return self.recipe.follow

    def line(self, day: str) -> Path:
        """Return the folder of the line of a night."""
        return self.run / day


@dataclass(frozen=True)
class Begin:
    """A line begins, or goes on: beside the one that there is, or in its place."""

    job: Job
    night: Path
    since: int
    beside: bool


@dataclass(frozen=True)
class Take:
    """A line judges and learns an increment."""

    place: int
    increment: Increment
    source: Source | None
    save: bool


@dataclass(frozen=True)
class LeaveOut:
    """A line leaves minutes out."""

    place: int
    left: Shed


@dataclass(frozen=True)
class End:
    """All that is closed is learned."""


Word = Begin | Take | LeaveOut | End | None  # None: nothing is to be done, and rank 0 is still there


def current(run: Path) -> str | None:
    """Return the day of the line that is published, or None before there is one."""
    try:
        found = json.loads((run / CURRENT).read_bytes())
        return str(found["line"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
