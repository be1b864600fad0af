"""What rows are told of the past: histories, what the day has shown so far, and what was known before it.

Everything goes through `Timeline.before`, which is strict: an event at the row's own millisecond is not part of it. A
preparation asks for all rows of a bucket of users at once, and a server for the candidates of one request.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from livetrain.trainers.data.sources.events.model import (
    BITS,
    EXPOSURE,
    PEOPLE,
    SHOWN,
    VISIT_MS,
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
EVENT_ORDER = ["time", "user", "item", "kind", "domain", "session", "value"]
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


class Known:
    """What rows are told of the past: all columns but the labels.

    Args:
        adapter, options: of the event log.
        horizon: see `Task`.
        rows: exposures, with what SQL has joined to them (day.py).
        events: of their users, sorted by `EVENT_ORDER`; `carried` says which the state knows already.
        entries: called with a sequence's name, returns its entries in the state, with `entry_columns`.
    """

    def __init__(
        self,
        adapter: Adapter,
        options: Options,
        horizon: int,
        rows: pa.Table,
        events: pa.Table,
        entries: Callable[[str], pa.Table],
    ):
        self._adapter, self._horizon, self._rows, self._events = adapter, horizon, rows, events
        self.fresh = events.filter(pc.invert(events["carried"]))
        self.histories = {
            name: _History(sequence, name, options.entries(sequence.domain), rows, self.fresh, entries(name))
            for name, sequence in adapter.sequences.items()
        }

    def columns(self) -> dict[str, pa.Array]:
        """Return the columns that are no lists, of all rows."""
        return _told(self._adapter, self._rows) | _seen(self._adapter, self._horizon, self._rows, self._events)

    def lists(self, start: int) -> dict[str, pa.Array]:
        """Return what comes of the histories, of the PIECE rows from `start` on."""
        lists = {name: column for history in self.histories.values() for name, column in history.lists(start).items()}
        if self._adapter.visits:
            lists["user_visit_ago"] = self.histories[SHOWN].visit_ago(start)
        return lists


class _History:
    """The entries of one sequence: those of the days before, and the day's own."""

    def __init__(self, sequence: Sequence, name: str, limit: int, rows: pa.Table, fresh: pa.Table, old: pa.Table):
        self._name, self._sequence, self._limit = name, sequence, limit
        fresh = fresh.filter(pc.or_(pc.equal(fresh["kind"], EXPOSURE), pc.equal(fresh["domain"], sequence.domain)))
        new, actions = (
            fresh.filter(pc.equal(fresh["kind"], sequence.event)),
            fresh,
        )  # exposures are no action of any bit
        # Of a request's user the day may have no event.
        here = pc.is_in(old["user"], pa.chunked_array([*fresh["user"].chunks, *rows["user"].chunks], pa.int64()))
        self._idle, old = old.filter(pc.invert(here)), old.filter(here)  # of users who have no part in this day
        self.user, self.time, self.item, self.author, self.topic = (
            np.concatenate([numbers(old, column), numbers(new, column)]) for column in ENTRY
        )
        self._known = np.full((len(self.user), len(BITS)), NEVER)
        if sequence.action:
            self._learn(old, actions)
        self._timeline = Timeline(self.user, self.time)
        self._at = numbers(rows, "time")
        self._spans = self._timeline.before(numbers(rows, "user"), self._at)

    def _learn(self, old: pa.Table, actions: pa.Table) -> None:
        """Note from when on each entry's actions are known: those of earlier days, and the day's own."""
        for place, bit in enumerate(BITS):
            self._known[: len(old), place] = numbers(old, f"known_{bit}", NEVER)
        actions = actions.filter(pc.is_in(actions["kind"], pa.array(BITS, pa.int32())))
        pair, wanted = pair_codes((self.user, self.item), (numbers(actions, "user"), numbers(actions, "item")))
        owner = latest_owner(pair, self.time, wanted, begun(actions))
        kinds = np.searchsorted(BITS, numbers(actions, "kind"))
        found = owner >= 0
        np.minimum.at(self._known, (owner[found], kinds[found]), numbers(actions, "time")[found])

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

    def kept(self, horizon: int) -> pa.Table:
        """Return the entries that rows from the next horizon on can still see."""
        users = np.unique(self.user)
        spans = self._timeline.before(users, np.full(len(users), horizon))
        everything = self._timeline.before(users, np.full(len(users), NEVER))
        kept = type(spans)(spans.last(self._limit).start, everything.stop)
        _, events = self._timeline.latest(kept, int(kept.count.max(initial=0)))
        columns = {name: getattr(self, name) for name in ENTRY}
        if self._sequence.action:
            columns |= {f"known_{bit}": self._known[:, place] for place, bit in enumerate(BITS)}
        found = pa.table({name: column[events] for name, column in columns.items()})
        return pa.concat_tables([self._idle, found])


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
        shown = numbers(rows, f"{prefix}.{EXPOSURE}", 0)
        done = {name: numbers(rows, f"{prefix}.{kind}", 0) for name, kind in adapter.rates.items()}
        columns |= rates(prefix, shown, done)
    return columns


def _seen(adapter: Adapter, horizon: int, rows: pa.Table, events: pa.Table) -> dict[str, pa.Array]:
    """Return counts up to each row's own moment, this day's included: the user's `user_seen_*`, and those of pairs."""
    counted = (EXPOSURE, *adapter.rates.values())
    recent = pc.and_(pc.equal(events["domain"], adapter.domain), pc.greater_equal(events["time"], horizon))
    events = events.filter(pc.and_(recent, pc.is_in(events["kind"], pa.array(counted, pa.int32()))))
    user, time, kind, at = (*(numbers(events, name) for name in ("user", "time", "kind")), numbers(rows, "time"))
    flags = [kind == code for code in counted]

    def until(
        prefix: str, codes: np.ndarray, wanted: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        counts, last = earlier(codes, time, wanted, at, flags)
        shown, *done = (
            count + numbers(rows, f"{prefix}.{code}", 0) for count, code in zip(counts, counted, strict=True)
        )
        return shown, dict(zip(adapter.rates, done, strict=True)), last

    shown, done, _ = until("user", user, numbers(rows, "user"))
    columns = rates("user_seen", shown, done)
    for prefix, key in adapter.pairs.items():
        wanted, codes = pair_codes((numbers(rows, "user"), numbers(rows, key)), (user, numbers(events, key)))
        wanted, codes = (  # nobody is in no pair
            np.where(table[key].is_null().to_numpy(), nobody, code) if len(table) else code
            for table, code, nobody in ((rows, wanted, -1), (events, codes, -2))
        )
        shown, done, last = until(prefix, codes, wanted)
        columns |= tallies(prefix, shown, done, np.maximum(last, numbers(rows, f"{prefix}.last")), at)
    return columns | _others(adapter, rows, events, flags)


def _others(adapter: Adapter, rows: pa.Table, events: pa.Table, flags: list[np.ndarray]) -> dict[str, pa.Array]:
    """Return a user's counts, up to each row's moment, with the other topics of the author.

        log(1 + sum of s_t n_t / sum of s_t)

    over the topics t of which the author had s_t exposures on earlier days, without the row's own; n_t is how often the
    user was shown, or did something with, the topic. Null where the author has no other topic.

    Args:
        adapter, rows: as of `Known`.
        events: those that count since the horizon.
        flags: (N,) booleans each: which of the events are exposures, and which of each kind that rates count.
    """
    if adapter.others is None:
        return {}
    topics, shown = (
        pa.chunked_array(rows[f"others.{n}"].chunks, rows[f"others.{n}"].type) for n in ("topics", "shown")
    )
    row = np.repeat(np.arange(len(rows)), pc.list_value_length(topics).fill_null(0).to_numpy())
    other, weight = (pc.list_flatten(part).to_numpy() for part in (topics, shown))
    theirs = events.filter(pc.is_valid(events["topic"]))
    flags = [flag[events["topic"].is_valid().to_numpy()] for flag in flags]
    wanted, codes = pair_codes((numbers(rows, "user")[row], other), (numbers(theirs, "user"), numbers(theirs, "topic")))
    counts, _ = earlier(codes, numbers(theirs, "time"), wanted, numbers(rows, "time")[row], flags)
    total = np.bincount(row, weight, len(rows))
    columns = {}
    names = ("count", *(f"{name}_count" for name in adapter.rates))
    for name, count, kind in zip(names, counts, (EXPOSURE, *adapter.rates.values()), strict=True):
        summed = np.bincount(row, weight * count, len(rows)) + numbers(rows, f"others.{kind}", 0)
        mean = np.log1p(summed / np.maximum(total, 1)).astype(np.float32)
        columns[f"{adapter.others}_{name}"] = pa.array(mean, mask=total == 0)
    return columns


def entry_columns(sequence: Sequence) -> list[str]:
    """Return the columns of a sequence's entries in the state."""
    return [*ENTRY, *(f"known_{bit}" for bit in BITS if sequence.action)]


def numbers(table: pa.Table, name: str, missing: int = NOBODY) -> np.ndarray:
    """Return an integer column, (N,) with `missing` for null."""
    return table[name].fill_null(missing).to_numpy() if len(table) else np.zeros(0, np.int64)


def pair_codes(*parts: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
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


def begun(actions: pa.Table) -> np.ndarray:
    """Return when the exposure or the play that each action belongs to had begun at the latest, (N,) ms."""
    time = numbers(actions, "time")
    session = numbers(actions, "session", NEVER)
    return np.where(session == NEVER, time, session)
