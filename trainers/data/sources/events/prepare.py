"""From raw files to day partitions: one day after the other, each written whole or not at all.

    out/date=2022-04-25/part-00000.parquet ...   the samples of a day, a file per bucket of users; manifest.json last
    out/_state/date=2022-04-25/                  what the next day needs of the past (day.py)
    out/_work/, out/_lock                        of the preparation that runs, or was killed
    out/dataset.json                             options, columns, days and the report

DuckDB does what is the same for all users, out of core; buckets of users are made side by side. A night of new logs
adds one partition and touches no other; a killed preparation goes on with the first day that has no partition.
"""

import contextlib
import datetime
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from livetrain.configs.errors import BadInput, NotNow
from livetrain.trainers.data.sources.events import bucket, raw, returns, stage
from livetrain.trainers.data.sources.events.bucket import Task
from livetrain.trainers.data.sources.events.day import Day, lay_out, take, write_state
from livetrain.trainers.data.sources.events.known import Options
from livetrain.trainers.data.sources.events.model import RETURNED, Adapter
from livetrain.trainers.data.sources.events.plan import write as write_plan
from livetrain.trainers.data.write import layout
from livetrain.trainers.runtime import manifest

VERSION = 4  # of the samples; a change of what is written raises it
BUCKET_ROWS = 50_000  # exposures of a day in a bucket, of the first logs; what a bucket holds in memory grows with it
DAY_MS = 86_400_000

Progress = Callable[[str, int, int], None]
"""Told what is being done, and how many of how many days are."""
Map = Callable[[Callable[[Any], dict[str, int]], list[Any]], Iterable[dict[str, int]]]
"""Runs a function on every task, anywhere that sees the same files; the results come in any order."""


def prepare(
    adapter: Adapter,
    source: Path,
    out: Path,
    options: Options | None = None,
    progress: Progress = lambda what, done, days: None,
    run: Map | None = None,
) -> dict[str, Any]:
    """Write a partition for every day of a raw log that has none below `out` yet.

    Args:
        adapter: of the source.
        source: folder of its raw files.
        out: a new or empty folder, or one that the same adapter and options have written.
        options: by default those of `Options`.
        progress: see `Progress`.
        run: where buckets are made; by default in this machine's processes.

    Returns:
        What dataset.json holds.

    Raises:
        BadInput: raw files are missing or wrong, `out` holds something else, or options differ from its own.
    """
    options = options or Options()
    out = out.resolve()
    raw.check_path("--raw", source)
    raw.check_path("--out", out)
    found = _open(adapter, out, options)
    with written_here_alone(out) as work, stage.connect(adapter, options, work) as connection, in_processes(run) as run:
        returns.finish(out, work)
        progress("reading the raw files", 0, 0)
        notes = raw.open_raw(connection, adapter, source)
        try:
            return _Preparation(adapter, options, out, work, connection, found).go(notes, progress, run)
        except (duckdb.ConversionException, duckdb.InvalidInputException) as error:
            raise raw.complaint(error, source) from error


@contextlib.contextmanager
def written_here_alone(out: Path) -> Iterator[Path]:
    """Keep other preparations out of a folder, and yield its work folder, which is gone afterwards."""
    work = out / "_work"
    with (out / "_lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotNow(f"{out}: another preparation is writing to this folder; wait until it ends") from None
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _partitions(out: Path) -> dict[str, dict[str, Any]]:
    """Return the manifest of every partition below `out`.

    Raises:
        BadInput: one has none, or there is a gap between two days.
    """
    found = {path.name.removeprefix("date="): manifest.read(path) for path in sorted(out.glob("date=*"))}
    whole: dict[str, dict[str, Any]] = {}
    for day, content in found.items():
        if content is None:
            raise BadInput(f"{out}/date={day} has no {manifest.MANIFEST}, so it is not whole; remove it")
        if _next(day) not in found and day != max(found):
            raise BadInput(f"{out}/date={_next(day)} is missing among later days; restore it, or name a new folder")
        whole[day] = content
    return whole


def _open(adapter: Adapter, out: Path, options: Options) -> dict[str, Any]:
    """Return dataset.json of what `out` already holds, {} for a new folder."""
    found = layout.finished(out)
    if found is None:
        layout.begin(out)
        return {}
    same = {"dataset": adapter.name, "version": VERSION, "options": asdict(options)}
    for key, wanted in same.items():
        if found.get(key) != wanted:
            keep = "" if key == "version" else "keep to it, or "
            raise BadInput(f"{out} was prepared with {key} {found.get(key)}, not {wanted}; {keep}name a new folder")
    return found


@contextlib.contextmanager
def in_processes(run: Map | None) -> Iterator[Map]:
    """Yield the given map, or one over this machine's processes, which start with the first day that needs them."""
    pools: list[ProcessPoolExecutor] = []

    def spread(work: Callable[[Any], dict[str, int]], tasks: list[Any]) -> Iterator[dict[str, int]]:
        if len(tasks) == 1 or os.cpu_count() == 1:
            return map(work, tasks)
        if not pools:
            pools.append(ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")))
        return pools[0].map(work, tasks)

    try:
        yield run or spread
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)


class _Preparation:
    """One call of `prepare`: the days to do, and how one is done."""

    def __init__(
        self,
        adapter: Adapter,
        options: Options,
        out: Path,
        work: Path,
        connection: duckdb.DuckDBPyConnection,
        found: dict[str, Any],
    ):
        self._adapter, self._options = adapter, options
        self._out, self._work, self._connection, self._found = out, work, connection, found
        self._done = _partitions(out)
        self._raw: dict[str, int] = {}

    def go(self, notes: list[str], progress: Progress, run: Map) -> dict[str, Any]:
        self._check(notes)
        days = self._days()
        # Fixed by the first logs: later days must find the state of their users in the same buckets.
        self._buckets = self._found.get("buckets") or max(1, -(-max(self._raw.values(), default=0) // BUCKET_ROWS))
        if days:
            progress("sorting the raw files by day", 0, len(days))
            self._report["raw"] |= stage.load_attributes(self._connection, self._adapter, self._work)
            stage.by_day(self._connection, self._adapter, self._work, min([*self._done, days[0]]), days[0])
        self._finish()
        self._tell_returns()  # of what was killed
        for number, day in enumerate(days):
            progress(f"preparing {day}", number, len(days))
            self._one(day, run)
            self._tell_returns()
        progress("done", len(days), len(days))
        return self._finish()

    def _check(self, notes: list[str]) -> None:
        """Count the rows of every raw table, and those that its checks name."""
        self._report: dict[str, Any] = {"notes": notes, "raw": {}}
        for table, file in self._adapter.files.items():
            counted = "".join(f", count(*) FILTER ({condition})" for condition in file.checks.values())
            found = self._connection.execute(f"SELECT count(*){counted} FROM {table}").fetchall()[0]
            words = ("rows", *file.checks)
            self._report["raw"] |= {f"{file.names[0]}: {word}": n for word, n in zip(words, found, strict=True)}

    def _days(self) -> list[str]:
        """Return the days to prepare; note what the raw log holds of days that are done."""
        counted = self._connection.execute(
            f"SELECT CAST(day AS VARCHAR), count(*), min(time), max(time) FROM ({self._adapter.exposures}) GROUP BY ALL"
        ).fetchall()
        if not counted:
            raise BadInput(f"{self._adapter.name}: the raw log holds no exposure; give one that does with --raw")
        for _, _, least, most in counted:
            raw.check_times(self._adapter.name, least, most)
        self._raw = {day: count for day, count, *_ in counted if day is not None}
        self._report["raw"]["exposures without a time: dropped"] = sum(n for day, n, *_ in counted if day is None)
        self._compare()
        first = min(self._raw) if not self._done else _next(max(self._done))
        late = sorted(day for day in self._raw if self._done and day < min(self._done))
        if late:
            self._report["notes"] += [f"{len(late)} days before {min(self._done)} came too late and are left out"]
        days, day, last = [], first, max(self._raw, default=first)
        while day <= last:
            days.append(day)
            day = _next(day)
        empty = [day for day in days if day not in self._raw]
        if len(empty) > 366:
            raise BadInput(
                f"{self._adapter.name}: exposures lie from {first} to {last}, and {len(empty):,} days between have "
                "none; correct the log's times"
            )
        self._report["notes"] += [f"date={day} has no exposure: its partition is empty" for day in empty]
        return days

    def _compare(self) -> None:
        """Note days that are done and of which the log now tells something else."""
        begin = min([*self._done, *self._raw], default="1970-01-01")
        acted = dict(
            self._connection.execute(
                f"SELECT CAST(day AS VARCHAR), count(*) FROM ({stage.actions_from(self._adapter, begin)}) GROUP BY ALL"
            ).fetchall()
        )
        self._report["raw"]["actions without a time: dropped"] = acted.pop(None, 0)
        for day, done in self._done.items():
            now = {"exposures": self._raw.get(day, 0), "actions": acted.get(day, 0)}
            for what, count in now.items():
                if count > done[what] or (count != done[what] and day in self._raw):
                    self._report["notes"] += [
                        f"date={day} was prepared from {done[what]:,} {what} and the log now holds {count:,}: the "
                        "partition stays as it is"
                    ]

    def _one(self, day: str, run: Map) -> None:
        """Make one day's partition, and then make it visible."""
        work = self._work / day
        work.mkdir()
        horizon, cut, next_horizon = (self._moment(day, *at) for at in ((0, True), (1, False), (1, True)))
        before = self._out / "_state" / f"date={max(self._done)}" if self._done else None
        if before is not None and not before.is_dir():
            raise BadInput(f"{before} is missing, and the next day needs it; restore it, or prepare into a new folder")
        exposures, actions = (
            f"read_parquet('{path / '*.parquet'}', hive_partitioning = false)" if path.is_dir() else f"(FROM {none})"
            for path, none in zip(self._staged(day), ("no_exposures", "no_actions"), strict=True)
        )
        plan = Day(exposures, actions, before, horizon, cut, next_horizon, work, self._buckets)
        counts = take(self._connection, self._adapter, plan) | lay_out(self._connection, self._adapter, plan)
        write_state(self._connection, self._adapter, plan)
        write_plan(self._connection, self._adapter, self._options, next_horizon, work / "state")
        (work / "partition").mkdir()
        for made in run(
            bucket.build,
            self._tasks(plan, before or stage.seed(self._connection, self._adapter, self._work, self._buckets)),
        ):
            for words, count in made.items():
                counts[words] = counts.get(words, 0) + count
        self._commit(day, work, counts)

    def _tell_returns(self) -> None:
        """Give the days before the last the label that only the day after them tells, where they lack it."""
        if self._adapter.visits:
            for day in sorted(self._done)[:-1]:
                if RETURNED not in self._done[day]:
                    self._done[day] = returns.tell(self._out, self._work, day, _next(day))

    def _staged(self, day: str) -> list[Path]:
        return [self._work / what / f"day={day}" for what in ("exposures", "actions")]

    def _moment(self, day: str, later: int, horizon: bool) -> int:
        """Return the local midnight that begins `day` or one `later`, or that day's horizon, in ms."""
        days = (datetime.date.fromisoformat(day) - datetime.date(1970, 1, 1)).days + later
        early = self._adapter.overlap_s if horizon else 0
        return days * DAY_MS - 1000 * (self._adapter.utc_offset_s + early)

    def _tasks(self, day: Day, before: Path) -> list[Task]:
        rows = self._connection.sql("SELECT * FROM _rows_only LIMIT 0").to_arrow_table().schema
        events = self._connection.sql("SELECT * FROM _events LIMIT 0").to_arrow_table().schema
        return [
            Task(
                self._adapter,
                self._options,
                number,
                day.work / "rows" / f"bucket={number}",
                rows,
                day.work / "events" / f"bucket={number}",
                events,
                day.horizon,
                day.cut,
                day.next_horizon,
                before,
                day.work / "partition" / f"part-{number:05d}.parquet",
                day.work / "state",
            )
            for number in range(self._buckets)
        ]

    def _commit(self, day: str, work: Path, counts: dict[str, int]) -> None:
        """Make a day visible: its state first, so that a partition never lacks it."""
        partition, state = work / "partition", self._out / "_state" / f"date={day}"
        files = {path.name: manifest.digest(path) for path in sorted(partition.iterdir())}
        read = {what: counts[f"{what} read"] for what in ("exposures", "actions")}
        content = {**read, "rows": counts.pop("rows"), "report": counts}
        manifest.commit(partition, files, **content)
        shutil.rmtree(state, ignore_errors=True)
        state.parent.mkdir(exist_ok=True)
        os.replace(work / "state", state)
        os.replace(partition, self._out / f"date={day}")
        made = manifest.read(self._out / f"date={day}")
        assert made is not None  # it was committed above
        self._done[day] = made
        self._finish()
        for old in sorted(state.parent.iterdir())[:-2]:  # the last day can be removed and made again
            shutil.rmtree(old)
        shutil.rmtree(work)

    def _finish(self) -> dict[str, Any]:
        """Write dataset.json as things stand."""
        total: dict[str, int] = {}
        for done in self._done.values():
            for words, count in done["report"].items():
                total[words] = total.get(words, 0) + count
        content = {
            "dataset": self._adapter.name,
            "version": VERSION,
            "terms": self._adapter.terms,
            "options": asdict(self._options),
            "buckets": self._buckets,
            "utc_offset_s": self._adapter.utc_offset_s,
            "days": {day: {"rows": done["rows"]} for day, done in sorted(self._done.items())},
            "report": {**self._report, "days": total},
            **self._columns(),
            "string_hash": "xxh64, seed 0, of the UTF-8 bytes, as a signed 64-bit integer",
        }
        return layout.finish(self._out, content)

    def _columns(self) -> dict[str, Any]:
        """Return the columns and the roles that they play."""
        if not self._done:
            return {}
        schema = pq.read_schema(self._out / f"date={max(self._done)}" / "part-00000.parquet")
        labels = self._adapter.outcomes
        features = [field for field in schema if field.name not in (*labels, "timestamp")]
        lists = {field.name: field.type for field in features if pa.types.is_list(field.type)}
        return {
            "columns": {field.name: str(field.type) for field in schema},
            "roles": {
                "time": "timestamp",
                "group": "user",
                "labels": labels,
                "ids": [field.name for field in features if pa.types.is_integer(field.type)],
                "sequences": [name for name, kind in lists.items() if pa.types.is_integer(kind.value_type)],
                "dense": [field.name for field in features if pa.types.is_floating(field.type)],
            },
        }


def _next(day: str) -> str:
    return str(datetime.date.fromisoformat(day) + datetime.timedelta(days=1))
