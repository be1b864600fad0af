"""Rows of exposures and actions to the samples of minutes, by what makes the samples of a day.

A lane's folder has all that it needs besides its topics:

    OUT/_lanes/lane=K/segments/e-000007.parquet, a-000007.parquet   exposures and actions as they came
    OUT/_lanes/lane=K/segments/t-000007-TABLE.parquet               rows of tables that say what is known of ids
    OUT/_lanes/lane=K/state/date=YYYY-MM-DD/                        what `events.day` keeps of all days up to this one

A span of minutes is a part of its day: `events.day` and `events.bucket` are given the state of the day before and what
the users of the span have done since midnight, and lay out the rows of the span alone. When a day is over, its events
become the next state as they do in a preparation. So each row is a function of what came before it, whatever spans the
minutes are made in. On disk are the events of a day and the state; in memory are a span's rows and, when a day ends, a
bucket of the state's histories.
"""

import datetime
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from livetrain.configs.stream_spec import LoadedStream
from livetrain.trainers.data.sources.events import stage
from livetrain.trainers.data.sources.events.bucket import Bucket, Task
from livetrain.trainers.data.sources.events.day import Day, lay_out, take, write_events, write_state
from livetrain.trainers.data.sources.events.known import Options
from livetrain.trainers.data.sources.events.model import Adapter
from livetrain.trainers.data.sources.events.plan import write as write_plan
from livetrain.trainers.data.sources.table.files import quoted
from livetrain.trainers.runtime import manifest

DAY_MS = 86_400_000
SPAN_ROWS = 200_000  # of a span, unless one minute has more
_SMALL = 32  # segments of a commit each that become one
_ROWS = pa.schema([(name, pa.int64()) for name in ("time", "user", "item")])


@dataclass
class Past:
    """What a lane has taken and keeps on disk.

    Args:
        number: of the next segment.
        segments: {number, level, e: [rows, least time, latest time] or null, a: likewise}.
        tables: table -> numbers of the segments with its rows.
        first: date of the first day, None before there is an exposure.
        day: date of the last day whose state is kept.
    """

    number: int = 0
    segments: list[dict[str, Any]] = field(default_factory=list)
    tables: dict[str, list[int]] = field(default_factory=dict)
    first: str | None = None
    day: str | None = None


class Joiner:
    """Makes the samples of one lane.

    Args:
        loaded: the stream's spec.
        adapter: of its event log.
        connection: whose tables `new_exposures` and `new_actions` an `Intake` fills.
        home: the lane's folder.
        lane: its number.
        past: as the newest manifest has it.
        told: table fed by a topic that says what is known of ids -> the attributes that read it.
    """

    def __init__(
        self,
        loaded: LoadedStream,
        adapter: Adapter,
        connection: duckdb.DuckDBPyConnection,
        home: Path,
        lane: int,
        past: Past,
        told: dict[str, set[str]],
    ):
        spec, log = loaded.spec, loaded.events.spec
        self._adapter, self._connection, self._home, self.past = adapter, connection, home, past
        self._options = Options(live=log.history, video=log.history, window_s=log.window_s)
        self._every, self._wait = 1000 * spec.every_s, 1000 * spec.wait_s
        self._offset, self._buckets, self._told = 1000 * log.utc_offset_s, spec.buckets, told
        lanes = spec.lanes
        self.own = f"(user % {lanes} + {lanes}) % {lanes} = {lane}" if lanes > 1 else "true"
        self.stale = True  # the files may have changed
        self.unsent = [each["number"] for each in past.segments]  # of which a store may not know yet
        self._changed: set[str] = set()  # attributes of which topics have told something since
        for folder in ("segments", "state"):
            (home / folder).mkdir(parents=True, exist_ok=True)
        for table, numbers in past.tables.items():
            connection.execute(
                f"INSERT INTO {quoted(table)} BY NAME FROM {_parquet(self.segment('t', n, table) for n in numbers)}"
            )

    # Days and minutes

    def midnight(self, time: int, later: int = 0) -> int:
        """Return the local midnight that begins the day of a moment, or one `later`, ms."""
        return ((time + self._offset) // DAY_MS + later) * DAY_MS - self._offset

    def _date(self, midnight: int) -> str:
        return str(datetime.date(1970, 1, 1) + datetime.timedelta(days=(midnight + self._offset) // DAY_MS))

    def first(self) -> int | None:
        """Return when the first minute with an exposure begins, or None where there is no exposure."""
        found = self._connection.execute(f"SELECT min(time) FROM {self._all('e')}").fetchall()[0][0]
        return None if found is None else found // self._every * self._every

    def last(self) -> int | None:
        """Return when the last minute with an exposure ends."""
        found = max((each["e"][2] for each in self.past.segments if each["e"]), default=None)
        return None if found is None else (found // self._every + 1) * self._every

    def until(self, begin: int, watermark: int) -> int:
        """Return the end of a span from `begin` on in which all is known: the labels of its rows, and their day."""
        midnight = self.midnight(begin, 1)
        if watermark < midnight:
            midnight = max(begin, (watermark - self._wait) // self._every * self._every)
        if midnight - begin <= self._every:
            return midnight
        rows = self._connection.execute(
            f"SELECT time // {self._every}, count(*) FROM {self._all('e')} "
            f"WHERE time >= {begin} AND time < {midnight} AND {self.own} GROUP BY 1 ORDER BY 1"
        ).fetchall()
        total = 0
        for minute, count in rows:
            total += count
            if total > SPAN_ROWS and minute * self._every > begin:
                return minute * self._every
        return midnight

    # Segments

    def segment(self, kind: str, number: int, table: str = "") -> Path:
        """Return the file of a segment: its exposures (e), its actions (a), or a table's rows (t)."""
        return self._home / "segments" / f"{kind}-{number:06d}{'-' if table else ''}{table}.parquet"

    def pending(self) -> int:
        """Return how many rows are in no segment yet."""
        names = ["new_exposures", "new_actions", *(quoted(f"new {table}") for table in self._told)]
        counts = " + ".join(f"(SELECT count(*) FROM {name})" for name in names)
        return self._connection.execute(f"SELECT {counts}").fetchall()[0][0]

    def flush(self) -> None:
        """Write the rows that are new to a segment."""
        found: dict[str, Any] = {"number": self.past.number, "level": 0}
        for what in ("exposures", "actions"):
            found[what[0]] = self._write(f"new_{what}", self.segment(what[0], self.past.number))
            self._connection.execute(f"DELETE FROM new_{what}")
        for table in self._told:
            name = quoted(f"new {table}")
            if self._write(name, self.segment("t", self.past.number, table), "0"):
                self.past.tables.setdefault(table, []).append(self.past.number)
                self._changed |= self._told[table]
            self._connection.execute(f"DELETE FROM {name}")
        if found["e"] or found["a"]:
            self.past.segments.append(found)
            self.unsent.append(self.past.number)
        self.past.number += 1
        small = [each for each in self.past.segments if each["level"] == 0]
        if len(small) >= _SMALL:
            self._merge(small)
        for table, numbers in self.past.tables.items():
            if len(numbers) >= _SMALL:
                self._gather(table)

    def _write(self, source: str, path: Path, time: str = "time") -> list[int] | None:
        count, least, most = self._connection.execute(
            f"SELECT count(*), min({time}), max({time}) FROM {source}"
        ).fetchall()[0]
        if not count:
            return None
        self._connection.execute(f"COPY (FROM {source}) TO '{path}' (FORMAT parquet, COMPRESSION lz4)")
        manifest.sync(path)
        return [count, least, most]

    def _merge(self, small: list[dict[str, Any]]) -> None:
        """Make one segment of many, which stay until a manifest names the new one."""
        found: dict[str, Any] = {"number": self.past.number, "level": 1}
        for kind in "ea":
            paths = [self.segment(kind, each["number"]) for each in small if each[kind]]
            found[kind] = self._write(_parquet(paths), self.segment(kind, self.past.number)) if paths else None
        self.past.segments = [each for each in self.past.segments if each["level"]] + [found]
        merged = {each["number"] for each in small}
        if merged & {*self.unsent}:
            self.unsent = [number for number in self.unsent if number not in merged] + [self.past.number]
        self.past.number += 1

    def _gather(self, table: str) -> None:
        """Make one segment of all of a table's, each row once; they stay until a manifest names the new one."""
        self._write(f"(SELECT DISTINCT * FROM {quoted(table)})", self.segment("t", self.past.number, table), "0")
        self.past.tables[table] = [self.past.number]
        self.past.number += 1

    def forget(self, before: int) -> None:
        """Leave out the segments whose events are of days before a moment; what is before the first day is its own."""
        if self._date(self.midnight(before)) == self.past.first:
            return
        self.past.segments = [
            each
            for each in self.past.segments
            if any(each[kind] and each[kind][2] >= self.midnight(before) for kind in "ea")
        ]

    def tidy(self) -> None:
        """Delete the files that `past` does not name, as a manifest that is written now names all others."""
        kept = {self.segment(kind, each["number"]) for each in self.past.segments for kind in "ea"}
        kept |= {self.segment("t", n, table) for table, numbers in self.past.tables.items() for n in numbers}
        for path in (self._home / "segments").iterdir():
            if path not in kept:
                path.unlink()
        for path in (self._home / "state").iterdir():
            if self.past.day is None or path.name.removeprefix("date=") != self.past.day:
                shutil.rmtree(path)

    def parts(self, number: int) -> tuple[str, str]:
        """Return what stands after FROM for a segment's exposures and actions."""
        return self._all("e", number), self._all("a", number)

    def _all(self, kind: str, number: int | None = None) -> str:
        """Return what stands after FROM for all exposures or actions, or those of one segment."""
        chosen = [each for each in self.past.segments if each[kind] and number in (None, each["number"])]
        paths = [self.segment(kind, each["number"]) for each in chosen]
        if not paths:
            return "(FROM no_exposures)" if kind == "e" else "(FROM no_actions)"
        return _parquet(paths)

    # Samples

    def learn(self, read_files: Callable[[], None]) -> set[str]:
        """Take what is known of ids from its tables again, where it may have changed; return of which attributes."""
        if self.stale:
            read_files()
            self._changed = set(self._adapter.attributes)
        stage.load_attributes(self._connection, self._adapter, self._home / "work", self._changed)
        changed, self.stale, self._changed = self._changed, False, set()
        return changed

    def _day(self, work: Path, begin: int, end: int, cut: int, own: str, exposures: str, actions: str) -> Day:
        horizon = self.midnight(begin)
        before = None if self.past.day is None else self._home / "state" / f"date={self.past.day}"
        since = (
            "" if self._date(horizon) == self.past.first else f"time >= {horizon} AND "
        )  # before the first is history
        return Day(
            exposures=f"(SELECT * FROM {self._all('e')} WHERE {exposures})",
            actions=f"(SELECT * FROM {self._all('a')} WHERE {since}time < {cut} AND {actions})",
            before=before,
            horizon=horizon,
            cut=cut,
            next_horizon=self.midnight(begin, 1),
            work=work,
            buckets=self._buckets,
            begin=begin,
            end=end,
            own=own,
        )

    def _task(self, day: Day, number: int, rows: pa.Schema) -> Task:
        events = self._connection.sql("SELECT * FROM _events LIMIT 0").to_arrow_table().schema
        return Task(
            adapter=self._adapter,
            options=self._options,
            bucket=number,
            rows=day.work / "rows" / f"bucket={number}",
            rows_schema=rows,
            events=day.work / "events" / f"bucket={number}",
            events_schema=events,
            horizon=day.horizon,
            cut=day.cut,
            next_horizon=day.next_horizon,
            before=day.before,
            part=day.work,
            state=day.work / "state",
            every=self._every,
            wait=self._wait,
        )

    def span(self, begin: int, end: int) -> pa.Table:
        """Return the samples of the exposures from `begin` on and before `end`, of one day, sorted by time."""
        connection, work = self._connection, self._fresh("span")
        cut = min(end + self._wait, self.midnight(begin, 1))
        inside = f"time >= {begin} AND time < {end} AND {self.own}"
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE _asked AS SELECT user, item FROM {self._all('e')} WHERE {inside}"
        )
        for name in ("user", "item"):
            connection.execute(f"CREATE OR REPLACE TEMP TABLE _asked_{name} AS SELECT DISTINCT {name} FROM _asked")
        theirs = "user IN (FROM _asked_user)"
        there = (
            f"({theirs} OR (domain = 'live' AND item IN (FROM _asked_item)))"
            if self._adapter.domain == "live"
            else theirs
        )
        day = self._day(work, begin, end, cut, theirs, f"time < {cut} AND {theirs}", there)
        take(connection, self._adapter, day)
        lay_out(connection, self._adapter, day)
        rows = connection.sql("SELECT * FROM _rows_only LIMIT 0").to_arrow_table().schema
        pieces: list[pa.Table] = []
        for number in range(self._buckets):
            if number == 0 or (work / "rows" / f"bucket={number}").is_dir():
                pieces += Bucket(self._task(day, number, rows)).samples()[0]
        table = pa.concat_tables(pieces)
        if self._buckets > 1:
            table = table.sort_by([(name, "ascending") for name in ("timestamp", "user", self._adapter.item)])
        return table

    def minutes(self, begin: int, end: int) -> Iterator[tuple[int, pa.Table, dict[str, int]]]:
        """Yield (start, samples, counts) of each minute of a span."""
        table = self.span(begin, end)
        twice = self._twice(begin, end)
        starts = np.arange(begin, end, self._every)
        times = table["timestamp"].to_numpy() if len(table) else np.zeros(0, np.int64)
        edges = np.searchsorted(times, [*starts, end])
        for start, first, after in zip(starts, edges, edges[1:], strict=False):
            part = table.slice(first, after - first).combine_chunks()
            counts = {f"null {name}": part[name].null_count for name in self._adapter.labels}
            yield int(start), part, {"duplicates": twice.get(int(start) // self._every, 0), **counts}

    def _twice(self, begin: int, end: int) -> dict[int, int]:
        """Return minute -> how many exposures and actions of the lane's users stood twice."""
        found: dict[int, int] = {}
        keys = {"e": "user, item, time", "a": "user, domain, item, author, time, kind, value, session"}
        for kind, key in keys.items():
            inside = f"{self._all(kind)} WHERE time >= {begin} AND time < {end} AND {self.own}"
            for minute, count in self._connection.execute(
                f"SELECT time // {self._every}, sum(n - 1)::BIGINT FROM (SELECT time, count(*) AS n FROM {inside} "
                f"GROUP BY {key}) WHERE n > 1 GROUP BY 1"
            ).fetchall():
                found[minute] = found.get(minute, 0) + count
        return found

    def roll(self, begin: int) -> None:
        """Make the state of all days before the day of `begin`, where it is not made yet."""
        if self.past.first is None:
            self.past.first = self._date(self.midnight(begin))
        while (day := self._next()) < self._date(self.midnight(begin)):
            self._keep(day)
            self.past.day = day

    def _next(self) -> str:
        assert self.past.first is not None
        if self.past.day is None:
            return self.past.first
        return str(datetime.date.fromisoformat(self.past.day) + datetime.timedelta(days=1))

    def _keep(self, date: str) -> None:
        work = self._fresh("day")
        days = (datetime.date.fromisoformat(date) - datetime.date(1970, 1, 1)).days
        midnight = days * DAY_MS - self._offset
        end = midnight + DAY_MS
        day = self._day(work, midnight, end, end, self.own, f"time < {end}", "true")
        take(self._connection, self._adapter, day)
        write_events(self._connection, day)
        write_state(self._connection, self._adapter, day)
        write_plan(self._connection, self._adapter, self._options, end, work / "state")
        for number in range(self._buckets):
            Bucket(self._task(day, number, _ROWS)).keep()
        target = self._home / "state" / f"date={date}"
        shutil.rmtree(target, ignore_errors=True)
        for path in (work / "state").rglob("*.parquet"):
            manifest.sync(path)
        os.replace(work / "state", target)
        manifest.sync(target.parent)

    def _fresh(self, name: str) -> Path:
        """Return a new empty folder of the lane's work."""
        path = self._home / "work" / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path


def _parquet(paths: Iterable[Path]) -> str:
    """Return what stands after FROM for some files. `lane=K` in their path is no column."""
    named = ", ".join(f"'{path}'" for path in paths)
    return f"read_parquet([{named}], hive_partitioning = false)"
