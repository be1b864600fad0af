"""What `livetrain watch` shows, as JSON that its page draws, and as text that Prometheus reads."""

import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from livetrain.configs.errors import BadInput
from livetrain.trainers.observe.prometheus import exposition
from livetrain.trainers.runtime.manifest import finite
from livetrain.trainers.watch.follower import WatchedFollower
from livetrain.trainers.watch.stream import WatchedStream

Watched = WatchedStream | WatchedFollower


class Board:
    """Streams and followers, looked at together.

    Args:
        watched: in the order in which they are shown.
    """

    def __init__(self, watched: Sequence[Watched]) -> None:
        self._watched = watched
        self._failed: dict[str, str] = {}
        self._lock = threading.Lock()

    def look(self, wholly: bool = False) -> None:
        """See what is new; what cannot be read is told on the page, and tried again the next time.

        Args:
            wholly: also where it is much; by default so much that the page need not wait for long.
        """
        for each in self._watched:
            with self._lock:
                self._failed.pop(each.name, None)
                try:
                    while each.look() and wholly:
                        pass
                except BadInput as error:
                    self._failed[each.name] = str(error)

    def summary(self) -> str:
        """Return in a line what is wrong, or that nothing is."""
        alarms = self.data()["alarms"]
        return "; ".join(f"ALARM: {each['of']}: {each['what']}" for each in alarms) or "no alarm"

    def data(self) -> dict[str, Any]:
        """Return what is shown: `time` (s since 1970), `alarms`, and `parts`: of each the facts, plots and tables."""
        now = time.time()
        with self._lock:
            alarms = [
                {"of": name, "what": "cannot be read", "text": text} for name, text in sorted(self._failed.items())
            ]
            parts = []
            for each in self._watched:
                alarms += [{"of": each.name, **asdict(alarm)} for alarm in each.alarms(now)]
                shown = {"plots": [asdict(plot) for plot in each.plots()], "tables": [asdict(t) for t in each.tables()]}
                parts.append({"name": each.name, "facts": list(each.facts(now)), **shown})
        return finite({"time": now, "alarms": alarms, "parts": parts})

    def metrics(self) -> str:
        """Return the newest figures in Prometheus' text format."""
        now = time.time()
        with self._lock:
            gauges = [gauge for each in self._watched for gauge in each.gauges(now)]
            many = sum(len(list(each.alarms(now))) for each in self._watched) + len(self._failed)
        return exposition([*gauges, ("livetrain_watch_alarms", "Alarms that are raised now", {}, float(many))])
