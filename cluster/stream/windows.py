"""Which minutes an increment has: a function of event time alone, so that a training that was killed finds it again.

Increment k of --every E is what happened from k E to (k + 1) E, in seconds since 1970. It is there once the stream has
closed a minute that ends then or later.
"""

import time
from dataclasses import dataclass

from livetrain.configs.duration import written
from livetrain.configs.errors import BadInput, NotNow, may_pass
from livetrain.trainers.data.read import minutes as stream
from livetrain.trainers.data.read.minutes import Minute

_LOOKS, _MOST_S = 60, 10.0  # looks at the stream in the time of an increment, and the most seconds between two


@dataclass(frozen=True)
class Increment:
    """What is learned in one go.

    Attributes:
        start, end: s since 1970; `end` is no part of it.
        minutes: with samples, in their order.
        rows: of them.
    """

    start: int
    end: int
    minutes: tuple[Minute, ...]

    @property
    def rows(self) -> int:
        return sum(minute.rows for minute in self.minutes)

    def __str__(self) -> str:
        return f"{moment(self.start)} to {moment(self.end)}"


@dataclass(frozen=True)
class Shed:
    """Minutes that are left out, as the training has fallen behind: all up to `end` that were not learned."""

    start: int
    end: int
    minutes: int
    rows: int


def moment(second: int) -> str:
    """Return a time of the stream as people read it.

    Example:
        >>> moment(1_796_040_420)
        '2026-11-30 12:07'
    """
    return time.strftime("%Y-%m-%d %H:%M" + (":%S" if second % 60 else ""), time.gmtime(second))


def increment(minutes: list[Minute], taken: int, every: int) -> Increment | None:
    """Return the first increment that is closed and not taken, or None.

    Where the stream has no minute for it, as it began later, that is the first one of which it has some.

    Args:
        minutes: closed ones, in their order.
        taken: s since 1970, up to which all is learned.
        every: s that an increment is long.
    """
    ahead = [minute for minute in minutes if minute.start >= taken]
    if not ahead:
        return None
    start = max(taken, ahead[0].start // every * every)
    end = (start // every + 1) * every
    if ahead[-1].end < end:
        return None
    return Increment(start, end, tuple(each for each in ahead if each.start < end and each.rows))


def shed(minutes: list[Minute], taken: int, every: int, after: int | None) -> Shed | None:
    """Return what is left out where the newest minute ends more than `after` seconds behind what is learned.

    That is every whole increment that ends so long before it.
    """
    ahead = [minute for minute in minutes if minute.start >= taken]
    if after is None or not ahead:
        return None
    end = (ahead[-1].end - after) // every * every
    left = [minute for minute in ahead if minute.start < end]
    return Shed(taken, end, len(left), sum(minute.rows for minute in left)) if left else None


class Stream:
    """The closed minutes of a stream's folder, read as they come.

    Args:
        path: the folder or URI.
        every: s that an increment is long.
        taken: s since 1970, before which nothing is asked for.

    Raises:
        BadInput: there is no stream there, or `every` is no whole number of its minutes.
    """

    def __init__(self, path: str, every: int, taken: int) -> None:
        self.path, self.every = path, every
        try:
            each = stream.about(path)["every_s"]
        except NotNow as error:
            raise NotNow(f"follow.path: {error}") from error
        if every % each:
            raise BadInput(
                f"--every: {written(every)} is no multiple of the {written(each)} of the stream in {path}; give one"
            )
        self.minutes: list[Minute] = []
        self.newest: int | None = None  # end of the newest closed minute
        self.came = time.monotonic()  # when that was seen
        self._after = stream.name_of(taken - 1)
        self.failed: str | None = None  # why the last look saw nothing
        self._due = 0.0

    def look(self) -> None:
        """See what has closed since, unless that was seen just now: it takes a listing of a day.

        A storage that fails for a moment is asked again the next time.
        """
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + min(self.every / _LOOKS, _MOST_S)
        try:
            found = stream.closed(self.path, self._after)
        except BadInput as error:
            if not may_pass(error):
                raise
            self.failed = str(error)
            return
        self.failed = None
        if found:
            self.minutes += found
            self._after, self.newest, self.came = found[-1].name, found[-1].end, time.monotonic()

    def forget(self, taken: int) -> None:
        """Let go of minutes that nobody asks for any more."""
        self.minutes = [minute for minute in self.minutes if minute.start >= taken]

    def again(self, taken: int) -> None:
        """Begin anew at an earlier time, for a line of another night."""
        self.minutes, self._after, self._due = [], stream.name_of(taken - 1), 0.0
        self.look()
