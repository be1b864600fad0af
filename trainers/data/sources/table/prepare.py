"""From a spec's files to samples: one period after the other, each written whole or not at all.

    out/date=2026-05-01/part-00000.parquet ...   split.by: day; a file per bucket of users, manifest.json last
    out/train/part-00000-00000.parquet ...       any other split, by period and bucket
    out/_state/period=N/                         what the next period needs of the past (period.py)
    out/_parts/period=N/                         whole periods of splits, until all are
    out/_work/, out/_lock                        of the preparation that runs, or was killed
    out/dataset.json                             the spec, columns, roles and the report

A period is a day where each day is a partition, and otherwise as many days as make PERIOD_ROWS; without a time there
is one. DuckDB does what is the same for all users, out of core; buckets of users are made side by side. A killed
preparation goes on with the first period that is not whole, and where days are partitions, a longer log adds days.
"""

import datetime
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from livetrain.configs.errors import BadInput, shown
from livetrain.configs.spec import Loaded, Spec
from livetrain.trainers.data.sources.events.prepare import Map, Progress, in_processes, written_here_alone
from livetrain.trainers.data.sources.events.stage import database
from livetrain.trainers.data.sources.table import bucket, report, select
from livetrain.trainers.data.sources.table.period import Period, lay_out
from livetrain.trainers.data.sources.table.sources import scope_of, stamps
from livetrain.trainers.data.sources.table.splits import split_of
from livetrain.trainers.data.write import layout
from livetrain.trainers.runtime import manifest

VERSION = 1  # of the samples; a change of what is written raises it
BUCKET_ROWS = 50_000  # of a period; what a bucket holds in memory grows with it
PERIOD_ROWS = 2_000_000  # least rows of a period of several days
MOST_DAYS = 10_000  # partitions


def prepare(
    loaded: Loaded[Spec], out: Path, progress: Progress = lambda what, done, periods: None, run: Map | None = None
) -> dict[str, Any]:
    """Write the samples that a spec describes.

    Args:
        loaded: the spec.
        out: a new or empty folder, one that a killed preparation of the same spec has left, or, where days are
            partitions, one to add days to.
        progress: told what is being done, and how many of how many periods are.
        run: where buckets are made; by default in this machine's processes.

    Returns:
        What dataset.json holds.

    Raises:
        BadInput: files or expressions are wrong, or `out` holds something else.
    """
    out = out.resolve()
    if set("'*?[]") & set(str(out)):
        raise BadInput(f"--out {out}: DuckDB takes ' * ? [ ] in a path for a pattern; choose one without them")
    sources = stamps(loaded)
    finished = _open(loaded, out, sources)
    if finished is not None and loaded.spec.split.by != "day":
        progress(f"{out} is already prepared", 0, 0)
        return finished
    with written_here_alone(out) as work, database(work) as connection, in_processes(run) as run:
        progress("reading the files", 0, 0)
        scope = scope_of(connection, loaded, work)
        try:
            return _Preparation(loaded, out, work, connection, scope, finished or {}, sources).go(progress, run)
        except (duckdb.ConversionException, duckdb.InvalidInputException, duckdb.OutOfRangeException) as error:
            raise scope.mend(error) from error


def _open(loaded: Loaded[Spec], out: Path, sources: dict[str, Any]) -> dict[str, Any] | None:
    """Return dataset.json of what `out` already holds, None for a folder that is new or not finished."""
    found = layout.finished(out)
    if found is None:
        layout.begin(out, clear=False)
        return None
    same = {"version": VERSION, "spec": loaded.spec.model_dump(mode="json")}
    if any(found.get(key) != wanted for key, wanted in same.items()):
        raise BadInput(f"{out} was prepared by another spec; name a new folder, or keep to {layout.MANIFEST}'s spec")
    if loaded.spec.split.by != "day" and found["sources"] != sources:
        raise BadInput(f"{out} was prepared from other files than those that are there now; name a new folder")
    return found


@dataclass(frozen=True)
class _Span:
    """One period: its number, which a killed preparation finds again, and its days; None where there is no time."""

    number: int
    days: tuple[str, ...] | None

    @property
    def name(self) -> str:
        return f"{self.days[0]} to {self.days[-1]}" if self.days and len(self.days) > 1 else (self.days or ("rows",))[0]


class _Preparation:
    """One call of `prepare`: the periods to do, and how one is done."""

    def __init__(
        self,
        loaded: Loaded[Spec],
        out: Path,
        work: Path,
        connection: duckdb.DuckDBPyConnection,
        scope: select.Scope,
        found: dict[str, Any],
        sources: dict[str, Any],
    ):
        self._loaded, self._spec, self._where, self._out, self._work = loaded, loaded.spec, loaded.where, out, work
        self._connection, self._scope, self._found, self._sources = connection, scope, found, sources
        self._by_day = loaded.spec.split.by == "day"
        self._rows, self._days = scope.select()
        kinds = {found.place: found.type for found in scope.expressions()}
        self._binary = [name for name in loaded.spec.labels if kinds[f"labels.{name}"] == "BOOLEAN"]
        self._notes = [
            f"{self._where(f'joins.{name}')}: {count:,} of its ids have several rows; the first row of each is taken"
            for name, count in scope.repeated.items()
            if count
        ]
        self._no_numbers = {}
        said = []
        for place, column, count, example in scope.no_numbers():
            self._no_numbers[f"{column}: null in {place} because the value is no number"] = count
            said.append(f"{column}: no number in {count:,} rows, such as {shown(example)}, and null in {place}")
        if said:
            self._notes.append("; ".join(said))

    def go(self, progress: Progress, run: Map) -> dict[str, Any]:
        spans = self._plan()
        self._done = self._whole(spans)
        todo = [span for span in spans if span.number not in self._done]
        if todo:
            progress("sorting the rows by period", 0, len(todo))
            self._stage(spans if self._spec.split.by == "leave_one_out" else todo)
        self._lost_lines()
        staged = self._work / "staged"
        split = split_of(self._connection, self._loaded, self._days, staged) if todo else ""
        if self._by_day:
            self._finish()
        for number, span in enumerate(todo):
            progress(f"preparing {span.name}", number, len(todo))
            self._one(span, split, run)
        progress("done", len(todo), len(todo))
        if not self._by_day:
            self._publish()
        return self._finish()

    def _plan(self) -> list[_Span]:
        """Count the rows of every day, and return the periods."""
        counted = self._connection.execute(
            f"SELECT CAST(day AS VARCHAR), count(*) FROM ({self._days}) GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        rows = {day: n for day, n in counted if day is not None}
        untimed = sum(n for day, n in counted if day is None)
        self._raw = {"rows in the files": sum(n for _, n in counted), **self._no_numbers}
        for name, count in self._scope.repeated.items():
            self._raw[f"joins.{name}: ids with several rows, of which the first is taken"] = count
        if self._spec.time is None:
            rows = {"": untimed} if untimed else {}
        else:
            self._raw["rows without a time: dropped"] = untimed
        if not rows:
            mend = f"; {untimed:,} rows have no time of this format" if untimed else ""
            raise BadInput(
                f"{self._where('time.format' if untimed else 'log')}: no row is left{mend}; correct the spec"
            )
        spans = self._spans(rows)
        most = max(sum(rows.get(day, 0) for day in span.days or ("",)) for span in spans)
        self._buckets = self._found.get("buckets") or max(1, -(-most // BUCKET_ROWS))
        return spans

    def _spans(self, rows: dict[str, int]) -> list[_Span]:
        if self._spec.time is None:
            return [_Span(0, None)]
        if self._by_day:
            first, last = min([*rows, *self._found.get("days", ())]), max([*rows, *self._found.get("days", ())])
            days = _between(first, last)
            if len(days) > MOST_DAYS or sum(day not in rows for day in days) > MOST_DAYS // 10:
                raise BadInput(
                    f"{self._where('split.by')}: the rows lie from {first} to {last}, and most days between have none; "
                    "correct time.format, or use by: time"
                )
            return [_Span(_ordinal(day), (day,)) for day in days]
        spans: list[_Span] = []
        held: list[str] = []
        for day in sorted(rows):
            held.append(day)
            if sum(rows[one] for one in held) >= PERIOD_ROWS:
                spans, held = [*spans, _Span(len(spans), tuple(held))], []
        return [*spans, _Span(len(spans), tuple(held))] if held else spans

    def _whole(self, spans: list[_Span]) -> dict[int, dict[str, Any]]:
        """Return the manifest of every period that is whole; remove what another plan has left."""
        if self._by_day:
            return self._partitions(spans)
        parts = self._out / "_parts"
        plan = {"spec": self._spec.model_dump(mode="json"), "sources": self._sources, "version": VERSION}
        plan |= {"periods": [span.days and list(span.days) for span in spans], "buckets": self._buckets}
        try:
            left = json.loads((parts / "plan.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            left = None
        if left != plan:
            for name in ("_parts", "_state", *layout.SPLITS):
                shutil.rmtree(self._out / name, ignore_errors=True)
            parts.mkdir()
            manifest.write_json(parts / "plan.json", plan)
        return {
            span.number: made for span in spans if (made := manifest.read(parts / f"period={span.number}")) is not None
        }

    def _partitions(self, spans: list[_Span]) -> dict[int, dict[str, Any]]:
        done = {}
        for path in sorted(self._out.glob("date=*")):
            made = manifest.read(path)
            if made is None:
                raise BadInput(f"{path} has no {manifest.MANIFEST}, so it is not whole; remove it")
            done[_ordinal(path.name.removeprefix("date="))] = made
        missing = [span for span in spans if span.number not in done]
        late = [span for span in missing if done and span.number < max(done)]
        if [span for span in late if span.number > min(done)]:
            raise BadInput(
                f"{self._out}/date={late[-1].name} is missing among later days; restore it, or name a new folder"
            )
        if late:
            self._notes.append(f"{len(late)} days before {min(self._out.glob('date=*')).name} came too late: left out")
            done |= {span.number: {} for span in late}
        return done

    def _stage(self, spans: list[_Span]) -> None:
        """Read the files once, and write the typed rows to the work folder, a folder per period."""
        if spans[0].days is None:
            period, joined = "0", ""
        else:
            numbers = ", ".join(f"(DATE '{day}', {span.number})" for span in spans for day in span.days or ())
            self._connection.execute(
                f"CREATE OR REPLACE TABLE periods AS SELECT * FROM (VALUES {numbers}) t(day, period)"
            )
            period, joined = "period", "JOIN periods ON made.day = periods.day"
        self._connection.execute(
            f"COPY (SELECT made.*, {period} AS period FROM ({self._rows}) made {joined}) TO '{self._work / 'staged'}' "
            "(FORMAT parquet, PARTITION_BY (period), COMPRESSION lz4)"
        )
        shape = f"SELECT * FROM ({self._rows}) LIMIT 0"
        self._connection.execute(f"COPY ({shape}) TO '{self._work / 'empty.parquet'}' (FORMAT parquet)")

    def _staged(self, span: _Span) -> str:
        folder = self._work / "staged" / f"period={span.number}"
        return str(folder / "*.parquet") if folder.is_dir() else str(self._work / "empty.parquet")

    def _lost_lines(self) -> None:
        """Count the lines of text files that do not parse."""
        try:
            found = self._connection.execute("SELECT count(DISTINCT (file_id, line)) FROM reject_errors").fetchall()
        except duckdb.CatalogException:  # no CSV file was read
            return
        self._raw["lines that do not parse: dropped"] = found[0][0]

    def _one(self, span: _Span, split: str, run: Map) -> None:
        """Make one period, and then commit it."""
        work = self._work / f"period={span.number}"
        (work / "partition").mkdir(parents=True)
        before = self._out / "_state" / f"period={max(self._done)}" if self._done else None
        if before is not None and not before.is_dir():
            raise BadInput(f"{before} is missing, and the next day needs it; restore it, or prepare into a new folder")
        plan = Period(self._staged(span), before, work, self._buckets, self._binary, split)
        counts = lay_out(self._connection, self._spec, plan)
        for made in run(bucket.build, self._tasks(span, plan)):
            for words, count in made.items():
                counts[words] = counts.get(words, 0) + count
        self._commit(span, work, counts)

    def _tasks(self, span: _Span, plan: Period) -> list[bucket.Task]:
        schema = self._connection.sql("SELECT * EXCLUDE (bucket) FROM rows LIMIT 0").to_arrow_table().schema
        names = ("day",) if self._by_day else layout.SPLITS
        prefix = "part-" if self._by_day else f"part-{span.number:05d}-"
        for name in names:
            (plan.work / "partition" / ("" if self._by_day else name)).mkdir(exist_ok=True)
        return [
            bucket.Task(
                self._spec,
                self._binary,
                number,
                plan.work / "rows" / f"bucket={number}",
                schema,
                plan.before,
                {
                    name: plan.work / "partition" / ("" if self._by_day else name) / f"{prefix}{number:05d}.parquet"
                    for name in names
                },
                plan.work / "state",
            )
            for number in range(self._buckets)
        ]

    def _commit(self, span: _Span, work: Path, counts: dict[str, int]) -> None:
        """Make a period visible: its state first, so that no period lacks the one before it."""
        partition, state = work / "partition", self._out / "_state" / f"period={span.number}"
        written = sorted(path for path in partition.rglob("*.parquet"))
        content = {str(path.relative_to(partition)): manifest.digest(path) for path in written}
        manifest.commit(partition, content, report=counts)
        shutil.rmtree(state, ignore_errors=True)
        state.parent.mkdir(exist_ok=True)
        os.replace(work / "state", state)
        target = self._out / f"date={span.name}" if self._by_day else self._out / "_parts" / f"period={span.number}"
        os.replace(partition, target)
        made = manifest.read(target)
        assert made is not None  # it was committed above
        self._done[span.number] = made
        if self._by_day:
            self._finish()
        kept = sorted(state.parent.iterdir(), key=lambda path: int(path.name.removeprefix("period=")))
        for old in kept[:-2]:  # the last day can be removed and made again
            shutil.rmtree(old)
        shutil.rmtree(work)

    def _publish(self) -> None:
        """Move the files of all periods, which are whole by now, to their splits."""
        for number, made in self._done.items():
            for name in made["files"]:
                source, target = self._out / "_parts" / f"period={number}" / name, self._out / name
                target.parent.mkdir(exist_ok=True)
                if source.exists():
                    os.replace(source, target)
        empty = [split for split in layout.SPLITS if not any((self._out / split).glob("*.parquet"))]
        if empty:
            raise BadInput(
                f"{self._where('split')}: no row fell to {empty[0]}; give it a larger share, or use by: random"
            )

    def _finish(self) -> dict[str, Any]:
        """Write dataset.json as things stand."""
        total: dict[str, int] = {}
        for done in self._done.values():
            for words, count in done.get("report", {}).items():
                total[words] = total.get(words, 0) + count
        content = {
            "dataset": self._spec.name,
            "version": VERSION,
            "spec": self._spec.model_dump(mode="json"),
            "sources": self._sources,
            "buckets": self._buckets,
            **report.parts(self._spec, self._done),
            "report": {"notes": self._notes, "raw": self._raw, "rows": total},
            **report.columns(self._spec, self._out),
            "string_hash": "xxh64, seed 0, of the UTF-8 bytes, as a signed 64-bit integer",
        }
        made = layout.finish(self._out, content)
        if not self._by_day:
            for name in ("_parts", "_state"):
                shutil.rmtree(self._out / name, ignore_errors=True)
        return made


def _ordinal(day: str) -> int:
    return datetime.date.fromisoformat(day).toordinal()


def _day(number: int) -> str:
    return str(datetime.date.fromordinal(number))


def _between(first: str, last: str) -> list[str]:
    return [_day(number) for number in range(_ordinal(first), _ordinal(last) + 1)]
