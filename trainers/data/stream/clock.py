"""How far a stream is: the newest time of each partition, and the watermark that follows from all of them.

Whether a message is late is a function of its partition alone (see `intake`): it is older by more than `lateness` than
the newest before it there. So the same partitions give the same samples however fast, in whatever turns and after
however many kills they are read. The watermark is the lowest of the partitions' newest times, less `lateness`: nothing
that is older will be taken any more.
"""

from dataclasses import dataclass
from typing import Any

FOREVER = 1 << 62  # ms: the watermark where every partition has ended


@dataclass
class Partition:
    """One partition of a topic.

    Args:
        next: offset of the first message that was not read, as its source understands it; None is the beginning.
        newest: the latest time of its messages so far, ms; None before the first.
        quiet: since when it was asked again and again and had nothing, s of this machine's clock; None where it had.
        heard: when it last had nothing.
        silent: it has said nothing for so long that it is not waited for.
        ended: it will say nothing more.
    """

    next: Any = None
    newest: int | None = None
    quiet: float | None = None
    heard: float = 0.0
    silent: bool = False
    ended: bool = False

    def asked(self, now: float, sure: bool) -> None:
        """Note that it had nothing; not `sure` where it was not asked, or somebody else had the turn."""
        if sure:
            self.quiet, self.heard = now if self.quiet is None else self.quiet, now
        else:
            self.quiet = None

    def took(self, newest: int | None, following: Any) -> None:
        """Note that messages came; `newest` is None where none of them counts: then it has said nothing."""
        self.next = following
        if newest is not None:
            self.newest = newest if self.newest is None else max(newest, self.newest)
            self.quiet, self.silent = None, False


Place = tuple[str, str]
"""A table that a topic feeds, and the name of a partition."""


class Clock:
    """The partitions of a stream.

    Args:
        lateness: ms.
        hold: ms; a partition that is further ahead of the slowest is not read, so that what waits stays bounded.
    """

    def __init__(self, lateness: int, hold: int):
        self.partitions: dict[Place, Partition] = {}
        self._lateness, self._hold, self._reached = lateness, hold, -1

    def idle(self, seconds: float) -> list[Place]:
        """Leave partitions out that were asked for so long and had nothing; return the new ones."""
        found = []
        for place, each in self.partitions.items():
            if not (each.silent or each.ended or each.quiet is None) and each.heard - each.quiet > seconds:
                each.silent = True
                found.append(place)
        return found

    def watermark(self) -> int | None:
        """Return the time, ms, before which nothing will be taken any more; None while nobody can tell.

        A partition that has not spoken yet holds it back until it is silent. Where all are, the newest time counts.
        """
        waited = [each for each in self.partitions.values() if not each.silent and not each.ended]
        if any(each.newest is None for each in waited):
            return self._known()
        times = [each.newest for each in waited if each.newest is not None]
        if not times and all(each.ended for each in self.partitions.values()):
            self._reached = FOREVER
        elif not times:
            spoken = [each.newest for each in self.partitions.values() if each.newest is not None]
            self._reached = max([self._reached, *(time - self._lateness for time in spoken)])
        else:
            self._reached = max(self._reached, min(times) - self._lateness)
        return self._known()

    def _known(self) -> int | None:
        return None if self._reached < 0 else self._reached

    def readable(self) -> set[Place]:
        """Return the partitions that are to be read next: all but those that are far ahead of the slowest."""
        waited = [p.newest for p in self.partitions.values() if not p.silent and not p.ended and p.newest is not None]
        slowest = min(waited, default=None)
        return {
            place
            for place, each in self.partitions.items()
            if not each.ended
            and (slowest is None or each.newest is None or each.newest - slowest <= self._hold or each.silent)
        }
