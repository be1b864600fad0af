"""What a page says of a training that follows a stream: figures of increments before they were learned, and its lag."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from livetrain.configs.duration import span
from livetrain.configs.errors import BadInput, NotNow
from livetrain.trainers.observe.report.page import Plot, Series, Table
from livetrain.trainers.observe.report.panels import finite_number, task_style
from livetrain.trainers.runtime import runlog
from livetrain.trainers.watch.alarms import Alarm
from livetrain.trainers.watch.words import figure

LINE = "line.json"  # names the line that is published
SPLIT = "stream"  # of the log's evaluations: an increment, judged before it was learned
_FIRST = ("auc", "pcoc", "log_loss")  # metrics that are shown before others
_BEHIND = 3  # increments that a follower may be behind the stream, or silent


def is_follower(path: Path) -> bool:
    """Return whether a folder is that of a follower, or of one of its lines."""
    return (path / LINE).exists() or (path / runlog.NAME).exists()


class WatchedFollower:
    """A follower's run: the line that is published, and those before it.

    Args:
        path: its folder.
        hours: of events that are shown.

    Raises:
        NotNow: it has no log yet.
    """

    def __init__(self, path: Path, hours: int) -> None:
        if not is_follower(path):
            raise NotNow(
                f"{path}: no stream.json, no {LINE} and no {runlog.NAME} is there; start what writes them first"
            )
        self.name, self._path, self._shown_s = path.name, path, 3600 * hours
        self._increments: list[dict[str, Any]] = []
        self._read: dict[Path, tuple[tuple[int, int], dict[float, dict[str, Any]]]] = {}  # a line's log, as it was last

    def look(self) -> bool:
        """Read the logs anew; return that there is no more to be read."""
        found: dict[float, dict[str, Any]] = {}
        for folder in self._lines():
            for end, increment in self._of_line(folder).items():
                found.setdefault(end, increment)  # what was published then: the older line's
        newest = max(found, default=0)
        self._increments = [found[end] for end in sorted(found) if end > newest - self._shown_s]
        return False

    def _of_line(self, folder: Path) -> dict[float, dict[str, Any]]:
        """Return the newest increments of a line by their ends; a log that has not changed is not read again."""
        log = folder / runlog.NAME
        about = log.stat() if log.exists() else None
        now = (about.st_size, about.st_mtime_ns) if about is not None else (0, 0)
        if folder not in self._read or self._read[folder][0] != now:
            found, judged = dict[float, dict[str, Any]](), dict[str, Any]()
            for line in runlog.read(folder):
                if line.get("kind") == "eval" and line.get("split") == SPLIT:
                    judged = line
                elif line.get("kind") == "increment" and isinstance(line.get("end"), int | float):
                    same = judged if judged.get("step") == line.get("step") else {}
                    found.setdefault(line["end"], {**same, **line})
                    judged = {}
            newest = max(found, default=0)
            self._read[folder] = now, {end: each for end, each in found.items() if end > newest - self._shown_s}
        return self._read[folder][1]

    def _lines(self) -> list[Path]:
        """Return the folders of the lines that are or were published, the oldest first."""
        try:
            current = str(json.loads((self._path / LINE).read_bytes())["line"])
        except FileNotFoundError:
            return [self._path]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{self._path / LINE} cannot be read ({error}); restore it") from None
        return [path for path in sorted(self._path.glob("????-??-??")) if path.name <= current]

    def facts(self, now: float) -> Iterator[tuple[str, str]]:
        """Yield what one looks for first."""
        if not self._increments:
            yield "learned", "nothing yet"
            return
        last = self._increments[-1]
        yield "learned up to", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(last["end"]))
        yield "behind the stream", span(finite_number(last.get("behind_s")) or 0)
        yield "newest word", f"{span(now - last['time'])} ago" if "time" in last else "-"

    def alarms(self, now: float) -> Iterator[Alarm]:
        """Yield what is wrong."""
        if not self._increments:
            return
        last = self._increments[-1]
        length = max(last["end"] - last.get("start", last["end"]), 60)
        for name in last.get("alarms") or ():
            value = finite_number(last.get(name))
            is_now = "" if value is None else f" is {value:.4f},"
            held = "" if last.get("open", True) else "; nothing is published until it is back"
            yield Alarm(f"drift of {name}", f"{name}{is_now} unlike the increments before{held}")
        if (behind := finite_number(last.get("behind_s")) or 0) > _BEHIND * length:
            yield Alarm(
                "lag of the training", f"it is {span(behind)} behind the stream; give it more workers, or let it shed"
            )
        if "time" in last and now - last["time"] > _BEHIND * length + 300:
            yield Alarm(
                "no increment",
                f"nothing was learned for {span(now - last['time'])}; see whether `livetrain follow` and the stream "
                "are at work",
            )

    def plots(self) -> Iterator[Plot]:
        """Yield the curves: of each metric by task, and by slice."""
        names: dict[str, list[str]] = {}
        for line in self._increments:
            for name in line:
                if "." in name and finite_number(line[name]) is not None:
                    metric = name.rpartition(".")[2]
                    if metric in _FIRST and name not in names.setdefault(metric, []):
                        names[metric].append(name)
        for metric in _FIRST:
            about = "each increment before it was learned"
            found = names.get(metric, [])
            whole = [name for name in found if name.count(".") == 1]
            parts = [name for name in found if name.count(".") > 1]
            for title, those in ((metric, whole), (f"{metric} by slice", parts)):
                if those:
                    yield self._plot(f"Prequential {title}", about, those, 1.0 if metric == "pcoc" else None)
        if self._increments:
            yield self._plot("Behind the stream", "seconds of events that are closed and not learned", ["behind_s"])

    def tables(self) -> Iterator[Table]:
        """Yield how full tables of ids are, and what became of ids since these tables' beginning."""
        tables = self._ids()
        if tables:
            columns = list(next(iter(tables.values())))
            rows = [[name, *(figure(table[column]) for column in columns)] for name, table in tables.items()]
            yield Table("Ids with rows of their own", ["table", *columns], rows)

    def gauges(self, now: float) -> Iterator[tuple[str, str, dict[str, str], float]]:
        """Yield name, help, tags and value of the newest figures, for Prometheus."""
        if not self._increments:
            return
        last, tags = self._increments[-1], {"run": self.name}
        yield (
            "livetrain_follow_lag_seconds",
            "Seconds of closed events not yet learned",
            tags,
            float(finite_number(last.get("behind_s")) or 0),
        )
        for name, value in last.items():
            if "." in name and name.rpartition(".")[2] in _FIRST and (number := finite_number(value)) is not None:
                yield (
                    "livetrain_follow_figure",
                    "A figure of the newest increment, before it was learned",
                    {**tags, "figure": name},
                    number,
                )
        for name, table in self._ids().items():
            for what, count in table.items():
                about = "A table of ids: its capacity, how many it holds, and what became of ids since its beginning"
                yield "livetrain_follow_ids", about, {**tags, "table": name, "what": what}, float(count)

    def _ids(self) -> dict[str, dict[str, int]]:
        """Return by table of ids what `trainers.train.ids.figures` said after the newest increment."""
        return self._increments[-1].get("tables", {}) if self._increments else {}

    def _plot(self, title: str, about: str, names: Sequence[str], level: float | None = None) -> Plot:
        series = []
        for number, name in enumerate(names[:6]):
            points = [
                (line["end"], value)
                for line in self._increments
                if (value := finite_number(line.get(name))) is not None
            ]
            label = "all" if name == "behind_s" else name.rpartition(".")[0]
            if points:
                series.append(
                    Series(label, [float(x) for x, _ in points], [y for _, y in points], **task_style(number))
                )
        return Plot(
            title, about, "time", "", series, level=level, key=len(names) > 1, missing="" if series else "no figure yet"
        )
