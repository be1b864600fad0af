"""What is published as a server has it, kept by who publishes: so that a base is read once, and not for every delta."""

from typing import Any

from livetrain.trainers.export import publish
from livetrain.trainers.export.served import Served
from livetrain.trainers.runtime.place import open_place

ANEW = 30  # deltas after which all is read anew, as bits may go bad where no clock shows it


class Kept:
    """A server's model between two publications. It is lent to one delta at a time, which is tried on it.

    Who borrows it gives it back where that delta is published. In every other case it is gone, since it may hold what
    nobody was given, and the next delta is tried on one that is read from the place. So is it where the pointer is
    another's since, where a file of the base was written or removed since it was read, and after `ANEW` deltas.

    Args:
        where: folder or URI of the published versions.

    Raises:
        BadInput: no model can be published there.
    """

    def __init__(self, where: str) -> None:
        self._where, self._place = where, open_place(where)
        self._served: Served | None = None
        self._fence, self._lent = 0, 0
        self._files: dict[str, float] = {}

    def lend(self, pointer: dict[str, Any]) -> Served:
        """Return what a pointer names, and keep it no longer.

        What was published last is taken in from the place itself, as by every server.

        Raises:
            BadInput: as `Served`.
        """
        with publish.complaints(self._place, "read"):
            files = {name: at for name, at in self._place.listed(pointer["folder"]).items() if at is not None}
        served, self._served = self._served, None
        if served is None or pointer["fence"] != self._fence or files != self._files or self._lent >= ANEW:
            served = None  # before another one takes memory
            served, self._files, self._lent = Served(self._where, ("model.pt", "user.pt", "item.pt")), files, 0
        else:
            served.refresh()
        self._lent += 1
        return served

    def give_back(self, served: Served, pointer: dict[str, Any]) -> None:
        """Keep what was lent, once a pointer names the delta that was tried on it."""
        self._served, self._fence = served, pointer["fence"]

    def drop(self) -> None:
        """Let its memory go."""
        self._served = None
