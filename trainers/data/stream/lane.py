"""One lane of a stream: reads all topics, closes minutes, and commits each by a manifest that holds the next offsets.

Everything else in a lane's folder follows from its newest manifest: what was read and not committed is read again, and
what was written and is not named by it is deleted. So a lane may be killed anywhere.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from livetrain.configs.errors import BadInput, NotNow, short, without_credentials
from livetrain.configs.stream_spec import LoadedStream, load_stream
from livetrain.trainers.data.read.minutes import STREAM, folder_of, name_of
from livetrain.trainers.data.sources.events import raw
from livetrain.trainers.data.sources.events.prepare import VERSION
from livetrain.trainers.data.store.kv import open_store
from livetrain.trainers.data.store.minutes import Minutes
from livetrain.trainers.data.stream.clock import FOREVER, Clock, Partition, Place
from livetrain.trainers.data.stream.intake import Intake, Taken, connected
from livetrain.trainers.data.stream.join import Joiner, Past
from livetrain.trainers.data.stream.lane_folder import alone, described, difference, newest
from livetrain.trainers.data.stream.sources.base import Source
from livetrain.trainers.data.stream.sources.open import open_source
from livetrain.trainers.data.write import layout
from livetrain.trainers.runtime import manifest

PENDING = 500_000  # rows that are in no segment yet, at most
_ASIDE = 10_000  # messages that are kept aside, of which no file is written yet
_SETTLE = 100_000  # messages of which exposures and actions are made at a time
_DISCOVER_S = 30.0  # between looks for new partitions
_AHEAD = 10  # minutes, besides what is waited for, by which a partition may be ahead of the slowest
_SPEC_S = 1.0  # between looks whether the spec has changed, at most
_LONGEST_S = 10.0  # between tries of a source that does not answer
_SHARE = 5  # a look comes after so many times what the last one took: who is far behind closes more minutes at once
PART = "part-0.parquet"
_STORE = "feature store"


def run_lane(loaded: LoadedStream, out: Path, lane: int, drain: bool, tell: Callable[[str], None]) -> None:
    """Close minutes until told to end, or, to `drain`, until all is closed that is there now.

    Args:
        loaded: the stream's spec.
        out: its folder.
        lane: number of the lane.
        drain: end when every partition has been read as far as it reached at first, and close its last minute too.
        tell: is told, in words, what happens.

    Raises:
        BadInput: see docs/guide/streams.md.
    """
    raw.check_path("--out", out.resolve())
    home = out.resolve() / "_lanes" / f"lane={lane}"
    with alone(home), connected(loaded, home / "work") as connection:
        _Lane(loaded, out.resolve(), home, lane, connection, tell).run(drain)


class _Lane:
    def __init__(
        self, loaded: LoadedStream, out: Path, home: Path, lane: int, connection: Any, tell: Callable[[str], None]
    ):
        self._loaded, self._out, self._lane, self._connection, self._tell = loaded, out, lane, connection, tell
        spec = loaded.spec
        self._every = 1000 * spec.every_s
        self._tune()
        self._intake = Intake(loaded, connection)
        found = newest(out, lane)
        content: dict[str, Any] = found[1] if found else {}
        self._closed = None if found is None else 1000 * content["end"]
        past = Past(**content["resume"]["past"]) if found else Past()
        self._resume: dict[str, Any] = content.get("resume", {"offsets": {}})
        self._joiner = Joiner(loaded, self._intake.adapter, connection, home, lane, past, self._intake.told)
        for each in past.segments:  # of a manifest that names what somebody has deleted
            missing = [
                path
                for kind in "ea"
                if each[kind] and not (path := self._joiner.segment(kind, each["number"])).exists()
            ]
            if missing:
                raise BadInput(f"{missing[0]} is missing, which the newest manifest names; restore it")
        self._joiner.tidy()
        self._describe()
        self._minutes: Minutes | None = None
        if loaded.store:
            store = open_store(loaded.store, create=True)
            self._minutes = Minutes(store, self._intake.adapter, connection, self._joiner.own, rooms=lane == 0)
        self._untold = set(self._intake.adapter.attributes)  # of which the store may not know yet
        if found is None and self._intake.begun:
            connection.execute(f"INSERT INTO new_actions BY NAME {self._intake.begun}")
        hold = 1000 * (spec.lateness_s + spec.wait_s) + _AHEAD * self._every
        self._clock, self._taken = Clock(1000 * spec.lateness_s, hold), Taken()
        self._sources: dict[str, Source] = {}
        self._down: dict[str, tuple[float, float]] = {}  # source -> when to try again, and the pause before that
        self._read_at = loaded.path.stat().st_mtime_ns
        self._poisoned = self._resume.get("poisoned", 0)
        for path in (out / "poison").glob("*.jsonl") if lane == 0 else ():
            if int(path.stem) >= self._poisoned:  # of what is read again
                path.unlink()

    # What the stream is

    def _describe(self) -> None:
        """Write stream.json, or compare the spec with it."""
        path = self._out / STREAM
        fixed = self._loaded.fixed()
        if (told := described(self._out)) is None:
            self._joiner.learn(self._intake.read_files)
            schema = self._joiner.span(0, self._every).schema
            columns = {field.name: str(field.type) for field in schema}
            spec = self._loaded.spec
            content = {"lanes": spec.lanes, "every_s": spec.every_s, "columns": columns, "spec": fixed}
            manifest.write_json(path, {"version": VERSION} | content)
            return
        if told.get("version") != VERSION:
            raise BadInput(f"{self._out} was begun by another version, with other columns; name a new folder")
        if key := difference(told["spec"], fixed):
            raise BadInput(
                f"{self._loaded.where(key)}: {self._out} was begun with another; keep to it, or name a new folder"
            )

    def _tune(self) -> None:
        job = self._loaded.spec.jobs.join
        self._connection.execute(f"SET memory_limit = '{job.memory_mb}MB'")
        self._connection.execute(f"SET threads = {job.threads}")

    def _written(self) -> int | None:
        """Return when the spec's file was written, or None where it is gone for a moment."""
        try:
            return self._loaded.path.stat().st_mtime_ns
        except OSError:
            return None

    def _reread(self) -> bool:
        """Take what has changed in the spec's file, where it may; return whether anything was taken."""
        at = self._written()
        if at in (None, self._read_at):
            return False
        self._read_at = at
        try:
            found = load_stream(self._loaded.path)
        except BadInput as error:
            self._tell(f"the spec has changed and is not taken: {short(error)}")
            return False
        if key := difference(self._loaded.fixed(), found.fixed()):
            self._tell(f"the spec has changed and is not taken: {key} is fixed; only jobs and idle_s may change")
        elif found.spec.sources != self._loaded.spec.sources:
            self._tell("the spec has changed and is not taken: sources change when the stream is started again")
        elif found.spec.store != self._loaded.spec.store:
            self._tell("the spec has changed and is not taken: store changes when the stream is started again")
        elif found.spec != self._loaded.spec:
            self._loaded = found
            self._tune()
            self._tell("the spec's jobs have changed, and are taken")
            return True
        return False

    # The work

    def run(self, drain: bool) -> None:
        due = dict.fromkeys(("join", "tables", "report", "partitions"), 0.0)
        for words in self._loaded.remarks() if self._lane == 0 else ():
            self._tell(words)
        try:
            while True:
                if self._reread():
                    due = dict.fromkeys(due, 0.0)  # however long an interval was, the new one begins now
                jobs, now = self._loaded.spec.jobs, time.monotonic()
                pauses = {"join": jobs.join.every_s, "tables": jobs.tables.every_s, "report": jobs.report.every_s}
                ready = {name for name, at in due.items() if now >= at}
                due |= {name: now + pauses.get(name, _DISCOVER_S) for name in ready}
                if "partitions" in ready:
                    self._discover()
                if "tables" in ready:
                    self._joiner.stale = True
                read = self._read(drain)
                ended = drain and not self._down and all(each.ended for each in self._clock.partitions.values())
                if "join" in ready or ended:
                    begun = time.monotonic()
                    self._close()
                    due["join"] = begun + max(jobs.join.every_s, _SHARE * (time.monotonic() - begun))
                if "report" in ready:
                    self._report()
                if ended and not (self._minutes and self._joiner.unsent):
                    return
                if not read:
                    self._pause(jobs.read.every_s)
        finally:
            for source in self._sources.values():
                source.close()
            if self._minutes:
                self._minutes.close()

    def _pause(self, seconds: float) -> None:
        """Wait so long, or until the spec's file is written."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and self._written() in (None, self._read_at):
            time.sleep(min(left, _SPEC_S))

    def _words(self, name: str) -> str:
        return f"source {name}" if name in self._loaded.spec.sources else f"the {name}"

    def _asked(self, name: str, work: Callable[[], Any]) -> Any:
        """Ask a source or the store, unless it has failed just now; return None where it fails."""
        until, pause = self._down.get(name, (0.0, 0.1))
        if time.monotonic() < until:
            return None
        try:
            found = work()
        except OSError as error:
            if name not in self._down:
                self._tell(f"{self._words(name)} does not answer ({without_credentials(short(error))}); trying again")
            self._down[name] = (time.monotonic() + pause, min(2 * pause, _LONGEST_S))
            return None
        if self._down.pop(name, None):
            self._tell(f"{self._words(name)} answers again")
        return found

    def _discover(self) -> None:
        """Open the partitions that are not open yet."""
        for table, topic in self._loaded.spec.topics.items():
            self._asked(topic.source, partial(self._open, table, topic))

    def _open(self, table: str, topic: Any) -> None:
        if topic.source not in self._sources:
            told = self._loaded.spec.sources[topic.source]
            self._sources[topic.source] = open_source(
                told, self._loaded.folder, self._out / "_lanes" / f"lane={self._lane}" / "work"
            )
        source = self._sources[topic.source]
        for partition in source.partitions(topic.topic):
            place: Place = (table, partition)
            if place not in self._clock.partitions:
                known = self._resume["offsets"].get(f"{table}/{partition}", {"next": None, "newest": None})
                source.open(place, topic.topic, known["next"])
                self._clock.partitions[place] = Partition(known["next"], known["newest"])

    def _read(self, drain: bool) -> int:
        """Take what there is, of every partition that is not too far ahead; return how many messages it was."""
        places, count = self._clock.readable(), 0
        for name, source in self._sources.items():
            own = {place for place in places if self._loaded.spec.topics[place[0]].source == name}
            spoke = set[Place]()
            taken = self._asked(name, partial(self._take, source, own, spoke)) or Counter()
            count += (total := taken.total())
            # nobody is silent whom one cannot ask, who is held back, or to whom a full turn did not come
            asked = own if total < self._loaded.spec.jobs.read.messages else taken.keys()
            sure = asked - spoke if name not in self._down else ()
            now = time.monotonic()
            for place, each in self._clock.partitions.items():
                if self._loaded.spec.topics[place[0]].source == name:
                    each.asked(now, place in sure)
                    each.ended = each.ended or (drain and name not in self._down and source.ended(place))
        for line in self._intake.changed:
            self._tell(line)
        self._intake.changed.clear()
        return count

    def _take(self, source: Source, places: set[Place], spoke: set[Place]) -> Counter[Place]:
        """Take what a source has now, and return how many messages each had; `spoke` gets who had one that counts."""
        count: Counter[Place] = Counter()
        latest, waiting = None, 0
        try:
            for given in source.poll(places, self._loaded.spec.jobs.read.messages):
                partition = self._clock.partitions[given.place]
                found = self._intake.take(given, partition, self._taken)
                latest = max((time for time in (latest, found) if time is not None), default=None)
                if found is not None:
                    spoke.add(given.place)
                    if partition.silent:
                        self._tell(f"{'/'.join(given.place)} speaks again")
                if given.next is not None:
                    partition.took(latest, given.next)
                    latest = None
                count[given.place] += len(given.names)
                waiting += len(given.names)
                if waiting > _SETTLE or isinstance(given.values, Path):
                    self._settle()
                    waiting = 0
        finally:  # what was taken before a source failed counts
            self._settle()
        return count

    def _settle(self) -> None:
        self._intake.settle(self._closed, self._taken)
        if self._joiner.pending() > PENDING:
            self._joiner.flush()
        if len(self._taken.poison) > _ASIDE:
            self._set_aside()

    def _close(self) -> None:
        """Close the minutes in which everything is known by now."""
        for place in self._clock.idle(self._loaded.spec.idle_s):
            self._tell(f"ALARM: {'/'.join(place)} has no message that counts; minutes are closed without it")
        watermark = self._clock.watermark()
        if watermark is None:
            return
        if self._joiner.pending():
            self._joiner.flush()
        self._asked(_STORE, self._send)
        if self._closed is None:
            first = self._joiner.first()
            if first is None or first >= watermark:
                return
            self._closed = first
        last = self._joiner.last() if watermark == FOREVER else None
        while True:
            begin = self._closed
            end = self._joiner.until(begin, watermark)
            if last is not None:
                end = min(end, last)
            if end <= begin:
                return
            self._joiner.learn(self._intake.read_files)  # first: a day that ends is counted by what is known of ids
            self._joiner.roll(begin)
            self._commit(begin, end, watermark)

    def _send(self) -> None:
        """Add what is new to the feature store. What it does not take it gets later."""
        if self._minutes is None:
            return
        if (moment := self._closed or self._joiner.first()) is None:
            return
        self._untold |= self._joiner.learn(self._intake.read_files)
        try:
            self._minutes.tell(self._untold, moment)
            self._untold = set()
            while self._joiner.unsent:
                self._minutes.add(*self._joiner.parts(self._joiner.unsent[0]))
                del self._joiner.unsent[0]
            self._minutes.sweep()
        except NotNow as error:
            raise OSError(str(error)) from None

    def _commit(self, begin: int, end: int, watermark: int) -> None:
        """Write the minutes of a span, each with its manifest."""
        if self._joiner.pending():
            self._joiner.flush()
        self._joiner.forget(begin)
        self._set_aside()
        offsets = {
            f"{table}/{partition}": {"next": each.next, "newest": each.newest}
            for (table, partition), each in self._clock.partitions.items()
        }
        resume = {
            "offsets": self._resume["offsets"] | offsets,
            "past": asdict(self._joiner.past),
            "poisoned": self._poisoned,
        }
        told = {word: self._taken.counts[word] for word in ("messages", "late", "behind", "poison", "incomplete")}
        self._taken = Taken()
        if self._lane:  # every lane reads every message; one counts them
            told = dict.fromkeys(told, 0)
        rows = 0
        for start, samples, counts in self._joiner.minutes(begin, end):
            folder = self._out / folder_of(start // 1000) / f"lane={self._lane}"
            folder.mkdir(parents=True, exist_ok=True)
            files = {}
            (folder / PART).unlink(missing_ok=True)
            if len(samples):
                layout.write_part(folder / PART, samples.schema, [samples])
                files[PART] = manifest.digest(folder / PART)
            manifest.commit(
                folder,
                files,
                rows=len(samples),
                start=start // 1000,
                end=(start + self._every) // 1000,
                watermark=min(watermark, end + 1000 * self._loaded.spec.wait_s) / 1000,
                counts=told | counts,
                resume=resume,
            )
            told = dict.fromkeys(told, 0)
            rows += len(samples)
            self._closed = start + self._every
        self._joiner.tidy()
        minutes = (end - begin) // self._every
        self._tell(
            f"closed {name_of(begin // 1000)}"
            + (f" and {minutes - 1} more" if minutes > 1 else "")
            + f": {rows:,} rows"
        )

    def _set_aside(self) -> None:
        """Write the messages that are kept aside."""
        lines, self._taken.poison = self._taken.poison, []
        if not lines or self._lane:  # every lane reads every message; one keeps them
            return
        folder = self._out / "poison"
        folder.mkdir(exist_ok=True)
        manifest.write_text(folder / f"{self._poisoned:06d}.jsonl", "".join(f"{line}\n" for line in lines))
        self._poisoned += 1

    def _report(self) -> None:
        watermark = self._clock.watermark()
        if watermark is None or watermark == FOREVER:
            return
        now = Counter(self._taken.counts)
        waits = ", ".join(f"{now[word]:,} {word}" for word in ("messages", "late", "poison") if now[word])
        self._tell(
            f"watermark {name_of(watermark // 1000)}, {time.time() - watermark / 1000:,.0f} s ago"
            + (f"; since the last minute {waits}" if waits else "")
        )
