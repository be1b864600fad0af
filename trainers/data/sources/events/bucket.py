"""The samples of one day and one bucket of users: labels, histories and what the day has shown so far.

A bucket is a pure function of the files that it is given, so buckets can be made side by side, in processes or on a
cluster. Whatever a row is told of the past goes through `Timeline.before`, which is strict: an event at the row's own
millisecond is not part of it.
"""

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.sources.events.model import (
    BITS,
    CLICK,
    EXPOSURE,
    PEOPLE,
    RETURNED,
    SHOWN,
    VISIT_MS,
    WATCH,
    Adapter,
    Sequence,
)
from livetrain.trainers.data.write import layout
from livetrain.trainers.data.write.counts import earlier, rates, tallies
from livetrain.trainers.data.write.history import Timeline

NEVER = np.iinfo(np.int64).max
NOBODY = -1
"""Author or topic, in a sequence, of what has none: a list has no nulls."""
ENTRY = ("user", "time", "item", "author", "topic")
"""What the state keeps of a sequence's entry, besides from when on its actions are known."""
PIECE = 32_768  # rows in memory at a time with their lists


@dataclass(frozen=True)
class Options:
    """What a preparation may choose. Every day of a dataset is prepared with the same.

    Args:
        live, video: entries of a sequence of that domain; of people the larger of both.
        window_s: seconds after an exposure in which a like, comment, follow or gift still counts as its outcome.
        click_s: the same for a click that the source does not record with its exposure.
        effective_view_s: seconds of watching a room that make a view effective.
    """

    live: int = 50
    video: int = 50
    window_s: int = 3600
    click_s: int = 600
    effective_view_s: int = 30

    def entries(self, domain: str) -> int:
        """Return how many entries a sequence of a domain has at most."""
        return max(self.live, self.video) if domain == PEOPLE else getattr(self, domain)

    def seconds(self, names: tuple[str, ...]) -> int:
        """Return the sum of some of the options."""
        return sum(getattr(self, name) for name in names)


@dataclass(frozen=True)
class Task:
    """One bucket of one day. `rows` and `events` are folders of Parquet files, which may be absent.

    Args:
        horizon: ms; the statistics that come with the rows count what was known before it.
        cut: ms, the end of the day: what is known later is not known to its labels.
        next_horizon: ms, the next day's.
        before: the state that the day before left, if any.
        part, state: file and folder to write.
        every, wait: ms; of a stream, whose rows' labels are told what is known until `wait` after the end of the
            interval of length `every` that a row falls into; without them, what is known at `cut`.
    """

    adapter: Adapter
    options: Options
    bucket: int
    rows: Path
    rows_schema: pa.Schema
    events: Path
    events_schema: pa.Schema
    horizon: int
    cut: int
    next_horizon: int
    before: Path | None
    part: Path
    state: Path
    every: int | None = None
    wait: int = 0

    def cuts(self, time: np.ndarray) -> np.ndarray:
        """Return what is known to the labels of rows of some times: what is known before these, (R,) ms."""
        if self.every is None:
            return np.full(len(time), self.cut)
        return np.minimum((time // self.every + 1) * self.every + self.wait, self.cut)


def build(task: Task) -> dict[str, int]:
    """Write one bucket's samples and what the next day needs of its histories; return counts for the report.

    Raises:
        BadInput: this machine does not see the folder of the preparation.
    """
    if not task.part.parent.is_dir():
        raise BadInput(
            f"{task.part.parent}: {platform.node()} does not see this folder; --out must lie on storage that all nodes "
            "share"
        )
    whole = Bucket(task)
    whole.keep()
    pieces, unanswered = whole.samples()
    first = next(pieces)  # of a day without rows too: it has the schema
    rows = layout.write_part(task.part, first.schema, chain([first], pieces))
    return {"rows": rows, "actions that answer no exposure: kept, in histories and statistics": unanswered}


class Bucket:
    """What a bucket's files hold, in memory."""

    def __init__(self, task: Task):
        self._task = task
        self._rows = _read(task.rows, task.rows_schema, ["time", "user", "item"])
        order = ["time", "user", "item", "kind", "domain", "session", "value"]
        self._events = _read(task.events, task.events_schema, order)
        self._fresh = self._events.filter(pc.invert(self._events["carried"]))
        self._histories = [_History(task, name, self._rows, self._fresh) for name in task.adapter.sequences]

    def keep(self) -> None:
        """Write what the next day needs of the histories."""
        for history in self._histories:
            history.keep()

    def samples(self) -> tuple[Iterator[pa.Table], int]:
        """Return the samples in pieces, at least one, and how many actions answer no exposure."""
        task, rows = self._task, self._rows
        own = self._fresh.filter(pc.equal(self._fresh["domain"], task.adapter.domain))
        outcomes, unanswered = labels(task, rows, own)
        columns = _told(task.adapter, rows) | _seen(task, rows, self._events)
        if task.adapter.visits:
            outcomes[RETURNED] = pa.nulls(len(rows), pa.int8())  # the next day tells; see returns.py

        def piece(start: int) -> pa.Table:
            lists = {name: column for history in self._histories for name, column in history.lists(start).items()}
            if task.adapter.visits:
                shown = self._histories[list(task.adapter.sequences).index(SHOWN)]
                lists["user_visit_ago"] = shown.visit_ago(start)
            cut = {name: column.slice(start, PIECE) for name, column in (columns | outcomes).items()}
            return pa.table({name: (cut | lists)[name] for name in (*columns, *lists, *outcomes)})

        return map(piece, range(0, max(len(rows), 1), PIECE)), unanswered


def _read(folder: Path, schema: pa.Schema, order: list[str]) -> pa.Table:
    """Return a folder's rows in an order that does not depend on who wrote them."""
    parts = [pq.read_table(path, partitioning=None) for path in sorted(folder.glob("*.parquet"))]
    table = pa.concat_tables(parts) if parts else schema.empty_table()
    return table.sort_by([(name, "ascending") for name in order]).combine_chunks()


def _numbers(table: pa.Table, name: str, missing: int = NOBODY) -> np.ndarray:
    """Return an integer column, (N,) with `missing` for null."""
    return table[name].fill_null(missing).to_numpy() if len(table) else np.zeros(0, np.int64)


def _pairs(*parts: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    """Return one integer a (user, item), equal for equal pairs of all parts."""
    users, user = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
    items, item = np.unique(np.concatenate([part[1] for part in parts]), return_inverse=True)
    codes = user.astype(np.int64) * max(len(items), 1) + item
    return np.split(codes, np.cumsum([len(part[0]) for part in parts])[:-1])


def latest_owner(key: np.ndarray, time: np.ndarray, wanted: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Return which event of each `wanted` key is the last one at or before each `moment`, -1 where none is.

    Args:
        key, time: (N,) of the events.
        wanted, moment: (R,).
    """
    if not len(key):
        return np.full(len(wanted), -1)
    timeline = Timeline(key, time)
    spans = timeline.before(wanted, moment + 1)
    return np.where(spans.count > 0, timeline.order[np.maximum(spans.stop - 1, 0)], -1)


def _begin(actions: pa.Table) -> np.ndarray:
    """Return when the exposure or the play that each action belongs to had begun at the latest, (N,) ms."""
    time = _numbers(actions, "time")
    session = _numbers(actions, "session", NEVER)
    return np.where(session == NEVER, time, session)


def labels(task: Task, rows: pa.Table, events: pa.Table) -> tuple[dict[str, pa.Array], int]:
    """Return the label columns of R exposures, and how many actions answer none of them.

    An action answers the latest exposure of its user and item at or before it, which need not be one of the rows. A
    label is null while it is not known: until its delay is over, and, if the source tells it with the end of a play,
    while one goes on.

    Args:
        rows: the exposures.
        events: of their domain; exposures among them after the last of the rows answer for their own actions.
    """
    time = _numbers(rows, "time")
    shown = pc.equal(events["kind"], EXPOSURE)
    actions, later = events.filter(pc.invert(shown)), events.filter(shown)
    later = later.filter(pc.greater(later["time"], int(time.max(initial=NEVER if not len(time) else 0))))
    owners = [np.concatenate([_numbers(part, name) for part in (rows, later)]) for name in ("user", "item", "time")]
    pair, wanted = _pairs((owners[0], owners[1]), (_numbers(actions, "user"), _numbers(actions, "item")))
    begin, known_at, kind = _begin(actions), _numbers(actions, "time"), _numbers(actions, "kind")
    owner = latest_owner(pair, owners[2], wanted, begin)
    owner[owner >= len(time)] = -1
    value = actions["value"].to_numpy() if len(actions) else np.zeros(0)
    cut = task.cuts(time)
    wait = begin - time[np.maximum(owner, 0)] if len(time) else np.zeros(len(begin), np.int64)

    def count(chosen: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(owner[chosen], None if weights is None else weights[chosen], len(time))

    made = {}
    told = known_at < (cut[np.maximum(owner, 0)] if len(time) else task.cut)
    if task.every is not None:  # what comes later than that is the night's affair
        owner[~told] = -1
    clicked = count((owner >= 0) & told & (kind == CLICK)) > 0
    watched = count((owner >= 0) & told & (kind == WATCH) & ~np.isnan(value)) > 0
    for name, label in task.adapter.labels.items():
        chosen, known = (owner >= 0) & (kind == label.kind), np.ones(len(time), bool)
        if label.delay is not None:
            delay = 1000 * task.options.seconds(label.delay)
            chosen &= told & (wait <= delay)
            known = time + delay <= cut
        positive = count(chosen) > 0
        if label.session:
            known &= ~clicked | watched | (positive & (not label.total))
        if label.total:
            known &= count(chosen & np.isnan(value)) == 0
            made[name] = pa.array(count(chosen, np.nan_to_num(value)).astype(np.float32), mask=~known)
        else:
            made[name] = pa.array(positive.astype(np.int8), mask=~known)
    return made, int((owner < 0).sum())


class _History:
    """The entries of one sequence: those of the days before, and the day's own."""

    def __init__(self, task: Task, name: str, rows: pa.Table, fresh: pa.Table):
        sequence: Sequence = task.adapter.sequences[name]
        self._task, self._name, self._sequence = task, name, sequence
        self._limit = task.options.entries(sequence.domain)
        fresh = fresh.filter(pc.or_(pc.equal(fresh["kind"], EXPOSURE), pc.equal(fresh["domain"], sequence.domain)))
        new, actions = (
            fresh.filter(pc.equal(fresh["kind"], sequence.event)),
            fresh,
        )  # exposures are no action of any bit
        old = self._old()
        here = pc.is_in(old["user"], pa.chunked_array(fresh["user"].chunks, pa.int64()))
        self._idle, old = old.filter(pc.invert(here)), old.filter(here)  # of users who have no part in this day
        self.user, self.time, self.item, self.author, self.topic = (
            np.concatenate([_numbers(old, column), _numbers(new, column)]) for column in ENTRY
        )
        self._known = np.full((len(self.user), len(BITS)), NEVER)
        if sequence.action:
            self._learn(old, actions)
        self._timeline = Timeline(self.user, self.time)
        self._at = _numbers(rows, "time")
        self._spans = self._timeline.before(_numbers(rows, "user"), self._at)

    def _old(self) -> pa.Table:
        names = [*ENTRY, *(f"known_{bit}" for bit in BITS if self._sequence.action)]
        before = self._task.before
        path = before / "sequences" / self._name / f"part-{self._task.bucket:05d}.parquet" if before else None
        if path is None:
            return pa.schema([(name, pa.int64()) for name in names]).empty_table()
        return pq.read_table(path, columns=names, partitioning=None).combine_chunks()

    def _learn(self, old: pa.Table, actions: pa.Table) -> None:
        """Note from when on each entry's actions are known: those of earlier days, and the day's own."""
        for place, bit in enumerate(BITS):
            self._known[: len(old), place] = _numbers(old, f"known_{bit}", NEVER)
        actions = actions.filter(pc.is_in(actions["kind"], pa.array(BITS, pa.int32())))
        pair, wanted = _pairs((self.user, self.item), (_numbers(actions, "user"), _numbers(actions, "item")))
        owner = latest_owner(pair, self.time, wanted, _begin(actions))
        kinds = np.searchsorted(BITS, _numbers(actions, "kind"))
        found = owner >= 0
        np.minimum.at(self._known, (owner[found], kinds[found]), _numbers(actions, "time")[found])

    def lists(self, start: int) -> dict[str, pa.Array]:
        """Return the list columns of the PIECE rows from `start` on."""
        piece = slice(start, start + PIECE)
        offsets, events = self._timeline.latest(self._spans[piece], self._limit)
        at = np.repeat(self._at[piece], np.diff(offsets))
        values = {}
        if self._sequence.item:
            values[self._sequence.item] = self.item[events]
        if self._sequence.author:
            values[self._sequence.author] = self.author[events]
        if self._sequence.topic:
            values[self._sequence.topic] = self.topic[events]
        if self._sequence.action:
            values["action"] = sum((self._known[events, k] < at) * bit for k, bit in enumerate(BITS))
        seconds = np.maximum((at - self.time[events]) // 1000, 1)
        values["gap"] = (np.frexp(seconds)[1] - 1).astype(np.int64)
        return {f"{self._name}_{suffix}": layout.lists(offsets, value, pa.int64()) for suffix, value in values.items()}

    def visit_ago(self, start: int) -> pa.Array:
        """Return log(1 + seconds since the visit before this one ended), of the PIECE rows from `start` on.

        A visit ends with an exposure after which none comes for VISIT_MS; null where the entries tell of none.
        """
        piece = slice(start, start + PIECE)
        offsets, events = self._timeline.latest(self._spans[piece], self._limit)
        at, time, number = self._at[piece], self.time[events], np.diff(offsets)
        row = np.repeat(np.arange(len(number)), number)
        following = np.append(time[1:], 0)
        last = offsets[1:][number > 0] - 1
        following[last] = at[number > 0]
        ended = np.full(len(number), NOBODY)
        done = following - time > VISIT_MS
        np.maximum.at(ended, row[done], time[done])
        none = ended == NOBODY
        return pa.array(np.log1p(np.where(none, 0, at - ended) / 1000).astype(np.float32), mask=none)

    def keep(self) -> None:
        """Write what rows from the next horizon on can still see."""
        users = np.unique(self.user)
        spans = self._timeline.before(users, np.full(len(users), self._task.next_horizon))
        everything = self._timeline.before(users, np.full(len(users), NEVER))
        kept = type(spans)(spans.last(self._limit).start, everything.stop)
        _, events = self._timeline.latest(kept, int(kept.count.max(initial=0)))
        columns = {name: getattr(self, name) for name in ENTRY}
        if self._sequence.action:
            columns |= {f"known_{bit}": self._known[:, place] for place, bit in enumerate(BITS)}
        path = self._task.state / "sequences" / self._name / f"part-{self._task.bucket:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = pa.table({name: column[events] for name, column in columns.items()})
        pq.write_table(pa.concat_tables([self._idle, kept]), path, compression="zstd")


def _told(adapter: Adapter, rows: pa.Table) -> dict[str, pa.Array]:
    """Return the columns that come with the rows: ids, context, attributes, room state, rates of earlier days."""
    columns = {"user": rows["user"], adapter.item: rows["item"], adapter.author: rows["author"]}
    columns |= {"timestamp": rows["time"]}
    hidden = {"user", "item", "author", "time", "topic"}
    for name in rows.column_names:
        if name not in hidden and "." not in name:
            given = rows[name].type
            kind = pa.int64() if pa.types.is_integer(given) else pa.float32()
            if pa.types.is_list(given):  # a number of a vector may be missing, an id of a bag may not
                kind = layout.list_of(pa.int64()) if pa.types.is_integer(given.value_type) else pa.list_(pa.float32())
            columns[name] = rows[name].cast(kind)
    columns = {name: column.combine_chunks() for name, column in columns.items()}
    for prefix in adapter.statistics:
        shown = _numbers(rows, f"{prefix}.{EXPOSURE}", 0)
        done = {name: _numbers(rows, f"{prefix}.{kind}", 0) for name, kind in adapter.rates.items()}
        columns |= rates(prefix, shown, done)
    return columns


def _seen(task: Task, rows: pa.Table, events: pa.Table) -> dict[str, pa.Array]:
    """Return counts up to each row's own moment, this day's included: the user's `user_seen_*`, and those of pairs."""
    adapter = task.adapter
    counted = (EXPOSURE, *adapter.rates.values())
    recent = pc.and_(pc.equal(events["domain"], adapter.domain), pc.greater_equal(events["time"], task.horizon))
    events = events.filter(pc.and_(recent, pc.is_in(events["kind"], pa.array(counted, pa.int32()))))
    user, time, kind, at = (*(_numbers(events, name) for name in ("user", "time", "kind")), _numbers(rows, "time"))
    flags = [kind == code for code in counted]

    def until(
        prefix: str, codes: np.ndarray, wanted: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        counts, last = earlier(codes, time, wanted, at, flags)
        shown, *done = (
            count + _numbers(rows, f"{prefix}.{code}", 0) for count, code in zip(counts, counted, strict=True)
        )
        return shown, dict(zip(adapter.rates, done, strict=True)), last

    shown, done, _ = until("user", user, _numbers(rows, "user"))
    columns = rates("user_seen", shown, done)
    for prefix, key in adapter.pairs.items():
        wanted, codes = _pairs((_numbers(rows, "user"), _numbers(rows, key)), (user, _numbers(events, key)))
        wanted, codes = (  # nobody is in no pair
            np.where(table[key].is_null().to_numpy(), nobody, code) if len(table) else code
            for table, code, nobody in ((rows, wanted, -1), (events, codes, -2))
        )
        shown, done, last = until(prefix, codes, wanted)
        columns |= tallies(prefix, shown, done, np.maximum(last, _numbers(rows, f"{prefix}.last")), at)
    return columns
