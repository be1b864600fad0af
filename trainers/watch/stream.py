"""What a page says of a stream: its curves, slices and alarms."""

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from livetrain.configs.duration import span
from livetrain.trainers.observe.report.page import Plot, Series, Table
from livetrain.trainers.observe.report.panels import task_style
from livetrain.trainers.watch import alarms
from livetrain.trainers.watch.alarms import Alarm
from livetrain.trainers.watch.effects import ROWS, STREAM, Measures
from livetrain.trainers.watch.store import Store
from livetrain.trainers.watch.words import figure

POINTS, VALUES = 240, 6  # of a curve, and curves of a slice, at most; the table has all
_MESSAGES = "messages"  # the one count of a stream that is of no fault
_AT_ONCE = 200  # minutes that are measured before the page is told of them
_RECENT_S = 900  # s of events that the tables' first figure is of


class WatchedStream:
    """A stream, measured as its minutes close.

    Args:
        path: its folder or URI.
        folder: for its metrics.
        measures: what is measured; None for what was.
        hours: of events that are shown.
        late: s behind the clock that are late; 0 for a stream that is replayed, which always is.

    Raises:
        NotNow: there is no stream (yet).
        BadInput: as of `Store`.
    """

    def __init__(self, path: str, folder: Path, measures: Measures | None, hours: int, late: int) -> None:
        self.name, self._late, self._shown_s = path, late, 3600 * hours
        self._store = Store(path, folder, measures)
        self._figures = pd.DataFrame()

    def look(self) -> bool:
        """Measure what has closed since the last look; return whether there is more than is done at once.

        Raises:
            BadInput: a minute cannot be read.
        """
        done = sum(1 for _ in itertools.islice(self._store.measure(), _AT_ONCE))
        self._take()
        return done == _AT_ONCE

    def _take(self) -> None:
        newest = self._store.newest()
        if newest is None:
            return
        least = newest - self._shown_s + self._store.every_s
        since = least if self._figures.empty else int(self._figures["start"].max()) + 1
        if since > newest:
            return  # as at most looks: to list what is kept takes long after weeks
        if (found := self._store.read(max(since, least))) is not None:
            more = found.to_pandas()
            more["start"] = found["start"].cast(pa.timestamp("s", "UTC")).cast(pa.int64()).to_numpy()
            kept = self._figures
            self._figures = pd.concat([kept[kept["start"] >= least] if len(kept) else kept, more], ignore_index=True)

    @property
    def end(self) -> int | None:
        """When the newest minute ends, s since 1970."""
        newest = self._store.newest()
        return None if newest is None else newest + self._store.every_s

    def facts(self, now: float) -> Iterator[tuple[str, str]]:
        """Yield what one looks for first."""
        if self.end is None:
            yield "newest minute", "none is closed yet"
            return
        yield "closed up to", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.end))
        yield "behind the clock", span(now - self.end)
        if len(self._figures):
            rows = self._figures[(self._figures["by"] == "") & (self._figures["measure"] == ROWS)]
            yield f"exposures, last {span(_RECENT_S)}", figure(rows[rows["start"] >= self.end - _RECENT_S]["sum"].sum())

    def alarms(self, now: float) -> Iterator[Alarm]:
        """Yield what is wrong."""
        if self.end is None:
            return
        if self._late and now - self.end > self._late + self._store.every_s:
            yield Alarm(
                "lag",
                f"the newest minute ended {span(now - self.end)} ago; see whether `livetrain stream` is at work, or "
                "its topics are behind",
            )
        if len(self._figures) and self._store.measures is not None:
            yield from alarms.silent(self._figures, self.end, self._store.measures.labels)
            yield from alarms.calibration(self._figures, self.end)

    def plots(self) -> Iterator[Plot]:
        """Yield the curves: of all rows, then by slice."""
        measures = self._store.measures
        if measures is None or self._figures.empty:
            return
        minute = span(self._store.every_s)
        shown = {name: "mean" for name in (*measures.labels, *measures.per)}
        yield self._plot(f"Exposures in {minute}", "how many were shown", [("", "", ROWS, "all")], "each")
        if dropped := self._dropped():
            about = "counted by the stream beside its samples"
            lines = [("", "", f"{STREAM}{words}", words) for words in dropped]
            yield self._plot(f"Put aside in {minute}", about, lines, "each")
        for name in shown:
            yield self._plot(name, self._about(name), [("", "", name, "all")], "mean")
        if measures.scores:
            lines = [("", "", name, name) for name in measures.scores]
            yield self._plot("Calibration", "score over outcome: 1 is right, above 1 promises too much", lines, "pcoc")
        for by in measures.by:
            values = self._values(by)
            for name in shown:
                lines = [(by, value, name, value) for value in values]
                yield self._plot(f"{name} by {by}", self._about(name), lines, "mean")
            for name in measures.scores:
                lines = [(by, value, name, value) for value in values]
                yield self._plot(f"Calibration of {name} by {by}", "score over outcome", lines, "pcoc")

    def tables(self) -> Iterator[Table]:
        """Yield the slices' figures, of the last 15 minutes and of all that is shown."""
        measures = self._store.measures
        if measures is None or self._figures.empty or self.end is None:
            return
        names, scored = [*measures.labels, *measures.per], list(measures.scores)
        columns = ["", "exposures", *names, *(f"PCOC of {name}" for name in scored)]
        whole, recent = self._figures, self._figures[self._figures["start"] >= self.end - _RECENT_S]
        for by in ("", *measures.by):
            rows = []
            for value in [""] if not by else self._values(by, 50):
                for when, part in ((f"last {span(_RECENT_S)}", recent), (f"last {span(self._shown_s)}", whole)):
                    if by and part is whole:
                        continue
                    sums = part[(part["by"] == by) & (part["value"] == value)].groupby("measure").sum(numeric_only=True)
                    rows.append([value if by else when, *_cells(sums, names, scored)])
            title = f"By {by}, last {span(_RECENT_S)}" if by else "All exposures"
            yield Table(title, columns, rows)

    def gauges(self, now: float) -> Iterator[tuple[str, str, dict[str, str], float]]:
        """Yield name, help, tags and value of the newest figures, for Prometheus."""
        tags = {"stream": self.name}
        if self.end is None:
            return
        yield "livetrain_stream_lag_seconds", "Seconds from the newest closed minute's end to now", tags, now - self.end
        if self._figures.empty:
            return
        for row in self._figures[self._figures["start"] == self._figures["start"].max()].itertuples():
            about = tags | {"measure": str(row.measure), "by": str(row.by), "value": str(row.value)}
            yield "livetrain_stream_sum", "Sum of a measure in the newest closed minute", about, float(row.sum)
            if row.mean is not None and np.isfinite(row.mean):
                yield "livetrain_stream_mean", "Mean of a measure in the newest closed minute", about, float(row.mean)
            if row.pcoc is not None and np.isfinite(row.pcoc):
                yield "livetrain_stream_pcoc", "Sum of scores over sum of labels in that minute", about, float(row.pcoc)

    def _about(self, name: str) -> str:
        assert self._store.measures is not None
        pair = self._store.measures.per.get(name)
        return f"{pair[0]} of each {pair[1]}" if pair else "mean of the exposures whose label is known"

    def _dropped(self) -> list[str]:
        counts = self._figures[self._figures["measure"].str.startswith(STREAM)].groupby("measure")["sum"].sum()
        words = [str(name).removeprefix(STREAM) for name, total in counts.items() if total > 0]
        return [each for each in words if each != _MESSAGES][:VALUES]

    def _values(self, by: str, most: int = VALUES) -> list[str]:
        """Return a slice's values, those with most rows first."""
        rows = self._figures[(self._figures["by"] == by) & (self._figures["measure"] == ROWS)]
        return [str(value) for value in rows.groupby("value")["sum"].sum().sort_values(ascending=False).index[:most]]

    def _plot(self, title: str, about: str, lines: Sequence[tuple[str, str, str, str]], form: str) -> Plot:
        """Return a plot of some (by, value, measure, label), in as many bins of time as can be seen."""
        start = self._figures["start"]
        every = self._store.every_s
        bins = max(1, -(-int(start.max() - start.min() + every) // (every * POINTS))) * every
        series = []
        for number, (by, value, measure, label) in enumerate(lines):
            these = self._figures["measure"].eq(measure) & self._figures["by"].eq(by) & self._figures["value"].eq(value)
            sums = self._figures[these].assign(at=start // bins * bins).groupby("at").sum(numeric_only=True)
            y = {
                "each": lambda of: of["sum"] / (bins // every),
                "mean": lambda of: of["sum"] / of["count"].where(of["count"] > 0),
                "pcoc": lambda of: of["score_sum"] / of["label_sum"].where(of["label_sum"] > 0),
            }[form](sums).dropna()
            if len(y):
                style = task_style(number)
                series.append(Series(label, [float(at) for at in y.index], [float(v) for v in y], **style))
        missing = "" if series else "no minute has a figure yet"
        level = 1.0 if form == "pcoc" else None
        return Plot(title, about, "time", "", series, level=level, key=len(lines) > 1, missing=missing)


def _cells(sums: pd.DataFrame, names: list[str], scored: list[str]) -> list[str]:
    def of(name: str, up: str, down: str) -> str:
        if name not in sums.index or not sums.loc[name, down]:
            return "-"
        return figure(sums.loc[name, up] / sums.loc[name, down])

    rows = figure(sums.loc[ROWS, "sum"]) if ROWS in sums.index else "0"
    return [rows, *(of(name, "sum", "count") for name in names), *(of(n, "score_sum", "label_sum") for n in scored)]
