"""What a stream adds to a store between two nights: events as they come, and what is known of ids where it changes.

An event that is told twice counts once, so that a stream that was killed may tell again what it is not sure of. Events
from before the night that is in use are left out, as the night knows them.
"""

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterator

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from livetrain.configs.errors import BadInput, NotNow
from livetrain.trainers.data.sources.events import day
from livetrain.trainers.data.sources.events.day import ROOM_WINDOW_MS
from livetrain.trainers.data.sources.events.model import CLICK, EXPOSURE, GIFT, LIKE, WATCH, Adapter
from livetrain.trainers.data.store import layout
from livetrain.trainers.data.store.fill import read_meta
from livetrain.trainers.data.store.kv import Store
from livetrain.trainers.data.store.layout import NOW, NULL

USER_EVENTS = 4096  # of a user since the night; of one with more the newest are kept
ROOM_EVENTS = 512  # of a room, before those that are older than _SETTLED_MS become sums
_SETTLED_MS = 3 * ROOM_WINDOW_MS
_BUCKET_MS = ROOM_WINDOW_MS
_BATCH = 5_000  # keys that a sweep reads at once
Merged = Callable[[np.ndarray, np.ndarray], bytes]
"""Makes a key's new value of its words and those of new events."""


class Minutes:
    """Adds to a store what a stream's database has taken.

    Args:
        store: an open store.
        adapter: of the stream's event log.
        connection: with the tables of `load_attributes`.
        own: SQL condition on `user`: whose events are added.
        rooms: whether those of rooms are, by whoever visits them; one lane of a stream does it.

    Raises:
        BadInput: the store is of another event log.
        NotNow: of `add`, `tell` and `sweep`: it does not answer. What was to be added stays with the caller.
    """

    def __init__(
        self,
        store: Store,
        adapter: Adapter,
        connection: duckdb.DuckDBPyConnection,
        own: str = "true",
        rooms: bool = True,
    ):
        self._store, self._adapter, self._connection, self._own = store, adapter, connection, own
        self._rooms = rooms and adapter.domain == "live"
        self._told = rooms  # what is known of ids is the same in every lane
        self._swept = ""  # the night after which needless keys were deleted
        meta = None
        with contextlib.suppress(NotNow):  # it may answer later
            meta = read_meta(store)
        if meta is not None and meta["plan"]["name"] != adapter.name:
            raise BadInput(
                f"store: it is of {meta['plan']['name']}, and this stream of {adapter.name}; name a store of its own"
            )

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def _since(self) -> int:
        """Return ms from when on events are kept: those since the night before the one that is in use."""
        meta = read_meta(self._store)
        return NULL if meta is None else (meta["before"] or meta)["horizon"]

    def add(self, exposures: str, actions: str) -> int:
        """Add events, and return how many.

        Args:
            exposures, actions: what stands after FROM for them.
        """
        topic, joins = day.about(self._adapter)
        domain = self._adapter.domain
        events = self._connection.sql(
            f"""SELECT user, domain, item, author, time, kind, value, session, {topic} AS topic FROM (
                SELECT user, domain, item, author, time, kind, value, session FROM {actions}
                UNION ALL SELECT user, '{domain}', item, author, time, {EXPOSURE}, NULL, NULL FROM {exposures})
            {joins} ORDER BY user, time"""
        ).to_arrow_table()
        since = self._since()
        own = events if self._own == "true" else self._connection.sql(f"FROM events WHERE {self._own}").to_arrow_table()
        self._merge("events", "user", own.sort_by([("user", "ascending")]), layout.EVENT, _of_user(since))
        if self._rooms:
            counted = pc.is_in(events["kind"], pa.array([CLICK, WATCH, LIKE, GIFT], events["kind"].type))
            of_rooms = events.filter(pc.and_(counted, pc.equal(events["domain"], "live"))).sort_by("item")
            self._merge("room", "item", of_rooms, layout.ROOM_EVENT, _of_room(since))
        return len(events)

    def _merge(self, kind: str, key: str, table: pa.Table, names: tuple[str, ...], merged: Merged) -> None:
        groups = list(layout.grouped(layout.whole(table[key]), layout.matrix(table, names)))
        added: Iterator[bytes] = iter([value for _, value in groups])
        keys = [f"{NOW}/{kind}/{number}" for number, _ in groups]
        self._store.change(
            keys, lambda values: [merged(layout.words(old)[:, 0], layout.words(next(added))[:, 0]) for old in values]
        )

    def tell(self, prefixes: Collection[str], moment: int) -> int:
        """Add what is known of ids where it is not as it was told last; return how many ids.

        Args:
            prefixes: of the attributes that may have changed.
            moment: ms, how far the stream is.
        """
        count = 0
        for prefix in prefixes if self._told else ():
            known = self._adapter.attributes[prefix]
            source, table = f"attributes_{prefix}", f"_stored_{prefix}"
            self._connection.execute(f"CREATE TABLE IF NOT EXISTS {table} AS FROM {source} LIMIT 0")
            changed = f"SELECT DISTINCT id FROM (FROM {source} EXCEPT FROM {table})"
            order = f"id, {known.since}" if known.since else "id"
            rows = self._connection.sql(f"FROM {source} WHERE id IN ({changed}) ORDER BY {order}").to_arrow_table()
            at = np.array([moment], layout.WORD).tobytes()
            self._store.put(
                (f"{NOW}/attributes.{prefix}/{key}", at + value) for key, value in layout.attribute_rows(known, rows)
            )
            self._connection.execute(f"CREATE OR REPLACE TABLE {table} AS FROM {source}")
            count += len(pc.unique(rows["id"]))
        return count

    def sweep(self) -> int:
        """Delete, once after each night, what it makes needless; return how many keys.

        These are keys that nobody else changes: of own users, and of rooms and ids where they are added here.
        """
        meta = read_meta(self._store)
        if meta is None or meta["generation"] == self._swept:
            return 0
        since = self._since()
        old: dict[str, list[int]] = {}
        keys = self._store.keys(f"{NOW}/")
        while batch := list(itertools.islice(keys, _BATCH)):
            for key, value in zip(batch, self._store.get(batch), strict=True):
                _, kind, number = key.split("/")
                if value is not None and _newest(kind, layout.words(value)[:, 0]) < since:
                    old.setdefault(kind, []).append(int(number))
        users = pa.table({"user": pa.array(old.pop("events", []), pa.int64())})
        own = self._connection.from_arrow(users).filter(self._own).to_arrow_table()
        gone = [f"{NOW}/events/{user}" for user in own["user"].to_pylist()]
        for kind, numbers in old.items():
            if self._rooms if kind == "room" else self._told:
                gone += [f"{NOW}/{kind}/{number}" for number in numbers]
        self._store.delete(gone)
        self._swept = meta["generation"]
        return len(gone)


def _newest(kind: str, words: np.ndarray) -> int:
    """Return ms of the newest that a key of `now` tells."""
    if kind == "events":
        return int(words.reshape(-1, len(layout.EVENT))[:, layout.EVENT.index("time")].max(initial=NULL))
    if kind == "room":
        summed, _, events = layout.room_of(words)
        return max(summed, int(events[:, layout.ROOM_EVENT.index("time")].max(initial=NULL)))
    return int(words[0])  # of attributes


def _of_user(since: int) -> Merged:
    at, width = layout.EVENT.index("time"), len(layout.EVENT)

    def merged(old: np.ndarray, new: np.ndarray) -> bytes:
        # What comes again goes before what is there, since its topic may be known by now.
        rows = np.concatenate([new.reshape(-1, width), old.reshape(-1, width)])
        rows = layout.once(rows[rows[:, at] >= since], rows[:0])
        return rows[-USER_EVENTS:].tobytes()

    return merged


def _of_room(since: int) -> Merged:
    at, kind_at, width = layout.ROOM_EVENT.index("time"), layout.ROOM_EVENT.index("kind"), len(layout.ROOM_EVENT)

    def merged(old: np.ndarray, new: np.ndarray) -> bytes:
        summed, sums, rows = layout.room_of(old)
        new = new.reshape(-1, width)
        new = new[new[:, at] >= max(summed, since)]  # what is older than the sums came too late for them
        rows = layout.once_in_room(np.concatenate([rows, new]), rows[:0])
        sums = sums[sums[:, 0] >= since - ROOM_WINDOW_MS]
        if len(rows) > ROOM_EVENTS:
            until = (int(rows[-1, at]) - _SETTLED_MS) // _BUCKET_MS * _BUCKET_MS
            done, rows = rows[rows[:, at] < until], rows[rows[:, at] >= until]
            changes = (done[:, kind_at] == CLICK).astype(np.int64) - (done[:, kind_at] == WATCH)
            starts, place = np.unique(
                np.concatenate([sums[:, 0], done[:, at] // _BUCKET_MS * _BUCKET_MS]), return_inverse=True
            )
            totals = np.bincount(place, np.concatenate([sums[:, 1], changes]), len(starts)).astype(np.int64)
            summed, sums = max(summed, until), np.stack([starts, totals], 1)
        head = np.array([summed, len(sums)], layout.WORD)
        return np.concatenate([head, sums.ravel(), rows.ravel()]).astype(layout.WORD).tobytes()

    return merged
