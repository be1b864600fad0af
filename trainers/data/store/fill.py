"""A night's fill: the state after a day becomes a generation of the store, which requests see whole or not at all.

What a fill reads is what the next day's preparation reads (events/day.py), so that both know the same of the past. The
keys of a generation are written beside those that are in use; then `meta` names it, in one step, unless a later day is
there already. The generation before stays for those who are still reading it, until the next fill.
"""

import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from livetrain.configs.errors import BadInput, NotNow
from livetrain.trainers.data.read.minutes import STREAM
from livetrain.trainers.data.sources.events import plan
from livetrain.trainers.data.sources.events.known import entry_columns
from livetrain.trainers.data.sources.events.model import EXPOSURE, Adapter
from livetrain.trainers.data.store import layout
from livetrain.trainers.data.store.kv import Store
from livetrain.trainers.runtime import manifest, run_folder

DAY_MS = 86_400_000
KEEP_DAYS = 180
_REPORT = 1_000_000  # keys between two words of progress
_SPAN = 1 << 18  # users of a state that are in memory at a time, of those that lie in one file


@dataclass(frozen=True)
class Filled:
    """What a fill did: its generation, the keys and bytes by kind, and the users that were left out as gone."""

    generation: str
    keys: dict[str, int]
    bytes: dict[str, int]
    gone: int


def states(source: Path, runs: Path) -> list[Path]:
    """Return the folders of a state: of a prepared day, of the newest of a data set, of a run's, or of a stream.

    Raises:
        BadInput: there is none.
    """
    for run in (source, runs / source):
        if (run / "config.yaml").exists():
            return states(Path(run_folder.recipe_of(run).data.path), runs)
    if (source / STREAM).exists():
        lanes = sorted((source / "_lanes").glob("lane=*"))
        days = [{path.name for path in (lane / "state").glob("date=*")} for lane in lanes]
        if not days or not (shared := set.intersection(*days)):
            raise NotNow(f"{source}: no day of the stream is over in all of its lanes; fill the store after midnight")
        return [lane / "state" / max(shared) for lane in lanes]
    folder, day = (source.parent, source.name) if source.name.startswith("date=") else (source, "")
    found = sorted(path.name for path in (folder / "_state").glob("date=*")) if folder.is_dir() else []
    if day and manifest.read(source) is None:
        raise BadInput(f"{source}: is no prepared day that is whole; name one, or its data set")
    if day and day not in found:
        kept = ", ".join(found) or "none"
        raise BadInput(f"{source}: its state is kept no longer; {folder} has those of {kept}; fill from one of them")
    if not found:
        raise BadInput(
            f"{source}: has no state of a day, from which a store is filled; name an event log's prepared data, a day "
            "of it, a run on it, or a stream's folder"
        )
    return [folder / "_state" / (day or found[-1])]


def fill(store: Store, source: Path, keep_days: int, runs: Path, say: Callable[[str], None]) -> Filled:
    """Write a generation, and let requests see it.

    Args:
        store: the store.
        source: see `states`.
        keep_days: users of whom nothing was seen for so long are left out.
        runs: folder of run folders.
        say: told what is being done.

    Raises:
        BadInput: there is no state, or the store is of another event log.
        NotNow: another fill is at work, or a later day is there already.
    """
    found = states(source, runs)
    told = plan.read(found[0])
    horizon = told["horizon"]
    with store.alone() as goes_on:
        meta = read_meta(store)
        _check(meta, told)
        generation = f"{horizon // 1000}-{secrets.token_hex(3)}"
        used = {each["generation"] for each in (meta, (meta or {}).get("before")) if each}
        _sweep(store, lambda key: _generation(key) not in used, goes_on)  # of fills that were killed
        made = _Generation(found, told, generation, horizon - keep_days * DAY_MS)

        def pairs() -> Iterator[tuple[str, bytes]]:
            for number, pair in enumerate(made.pairs()):
                if number % _REPORT == _REPORT - 1:
                    say(f"{number + 1:,} keys")
                if number % 1000 == 0:
                    goes_on()
                yield pair

        store.put(pairs())
        goes_on()
        content = {"format": layout.FORMAT, "generation": generation, "horizon": horizon, "source": str(found[0])}

        def newer(value: bytes | None) -> bytes:
            before = json.loads(value) if value else None
            _check(before, told)
            kept = {key: before[key] for key in ("generation", "horizon")} if before else None
            return json.dumps(content | {"before": kept, "plan": told}).encode()

        store.flip(layout.META, newer)
        used = {generation, meta["generation"] if meta else ""}
        _sweep(store, lambda key: _generation(key) not in used, goes_on)
    return Filled(generation, made.keys, made.bytes, made.gone)


def read_meta(store: Store) -> dict[str, Any] | None:
    """Return what a store says of itself, None where it was never filled."""
    (value,) = store.get([layout.META])
    return None if value is None else meta_of(value)


def meta_of(value: bytes) -> dict[str, Any]:
    """Return the content of a store's `meta`."""
    meta = json.loads(value)
    if meta["format"] != layout.FORMAT:
        raise BadInput(
            f"--store: it is of format {meta['format']}, and this version reads {layout.FORMAT}; fill a new one"
        )
    return meta


def _check(meta: dict[str, Any] | None, told: dict[str, Any]) -> None:
    """Refuse a state that is older than a store's, or another event log's."""
    if meta is None:
        return
    if meta["plan"]["name"] != told["name"]:
        raise BadInput(
            f"--store: it is of {meta['plan']['name']}, and this day of {told['name']}; name a store of its own"
        )
    if meta["horizon"] > told["horizon"]:
        raise NotNow("--store: a later day is in it already, and is not replaced by an earlier one; fill a newer day")


def _generation(key: str) -> str:
    return key.partition("/")[0]


def _sweep(store: Store, gone: Callable[[str], bool], goes_on: Callable[[], None]) -> None:
    """Delete the keys of generations that nobody names any more."""

    def found() -> Iterator[str]:
        for number, key in enumerate(store.keys("")):
            if number % 10_000 == 0:
                goes_on()
            if "/" in key and not key.startswith(f"{layout.NOW}/") and gone(key):
                yield key

    store.delete(list(found()))


class _Generation:
    """The keys and values of a state."""

    def __init__(self, states: list[Path], told: dict[str, Any], name: str, since: int):
        self._states, self._name, self._since = states, name, since
        self._adapter: Adapter = plan.of_plan(told)[0]
        self._seen: dict[int, int] = {}  # user -> ms of the newest that is known of her
        self.keys: dict[str, int] = {}
        self.bytes: dict[str, int] = {}
        self.gone = 0

    def pairs(self) -> Iterator[tuple[str, bytes]]:
        """Yield all keys with their values."""
        for state in self._states:
            gone = self._gone(state)
            self.gone += len(gone)
            yield from self._of_users(state, gone)
        yield from self._shared(self._states[0])

    def _gone(self, state: Path) -> pa.Array:
        """Return the users of whom nothing was seen for long."""
        pairs = [(state / "pairs" / f"{prefix}.parquet", "last") for prefix in self._adapter.pairs]
        entries = [
            (path, "time")
            for name in self._adapter.sequences
            for path in sorted((state / "sequences" / name).glob("*.parquet"))
        ]
        newest = []
        for path, time in (*pairs, *entries, (state / "carry.parquet", "time")):
            table = _read(path, ["user", time])
            newest.append(pa.table({"user": table["user"], "t": table[time]}))
        users = pa.concat_tables(newest).group_by("user").aggregate([("t", "max")])
        return users.filter(pc.less(users["t_max"], self._since))["user"].combine_chunks()

    def _of_users(self, state: Path, gone: pa.Array) -> Iterator[tuple[str, bytes]]:
        counts = [f"n{kind}" for kind in plan.COUNTED]
        for prefix in self._adapter.pairs:
            rows = _read(state / "pairs" / f"{prefix}.parquet", ["user", "id", "last", *counts])
            yield from self._rows(f"pairs.{prefix}", _sorted(rows, gone, ["user", "id"]), ["id", "last", *counts])
        for name, sequence in self._adapter.sequences.items():
            entry = [column for column in entry_columns(sequence) if column != "user"]
            for path in sorted((state / "sequences" / name).glob("*.parquet")):
                # The entries of one moment keep their order, as they do from one day to the next.
                table = _read(path, ["user", *entry])
                table = table.append_column("_order", pa.array(np.arange(len(table))))
                rows = _sorted(table, gone, ["user", "time", "_order"])
                yield from self._rows(f"sequence.{name}", rows, entry)

    def _shared(self, state: Path) -> Iterator[tuple[str, bytes]]:
        """Yield what every part of the state has alike: attributes, statistics, rooms, and carried events."""
        counts = [f"n{kind}" for kind in plan.COUNTED]
        for prefix in self._adapter.statistics:
            rows = _read(state / "statistics" / f"{prefix}.parquet", ["id", *counts]).sort_by("id")
            yield from self._rows(f"statistics.{prefix}", rows, counts, "id")
        if self._adapter.others:
            rows = _read(state / "topics.parquet").sort_by([("author", "ascending"), ("topic", "ascending")])
            yield from self._rows("topics", rows, ["topic", "shown"], "author")
        for prefix, known in self._adapter.attributes.items():
            order = [("id", "ascending")] + ([(known.since, "ascending")] if known.since else [])
            rows = _read(state / "attributes" / f"{prefix}.parquet").sort_by(order)
            for begin in range(0, len(rows), _SPAN):  # an id's rows may be cut in two only where it has several
                part = rows if known.since else rows.slice(begin, _SPAN)
                yield from self._counted(f"attributes.{prefix}", layout.attribute_rows(known, part))
                if known.since:
                    break
        carry = _with_topics(_read(state / "carry.parquet"), self._adapter, state)
        order = [(name, "ascending") for name in ("user", "time", "item", "kind")]
        yield from self._rows("events", carry.sort_by(order), layout.EVENT)
        if self._adapter.domain == "live":
            rooms = _read(state / "rooms.parquet")
            carry = carry.filter(pc.and_(pc.equal(carry["domain"], "live"), pc.not_equal(carry["kind"], EXPOSURE)))
            carry = carry.sort_by([("item", "ascending"), ("time", "ascending")])
            events = dict(layout.grouped(layout.whole(carry["item"]), layout.matrix(carry, layout.ROOM_EVENT)))
            viewers = dict(zip(rooms["room"].to_pylist(), rooms["viewers"].to_pylist(), strict=True))
            values = (
                (room, np.array([viewers.get(room, 0)], layout.WORD).tobytes() + events.get(room, b""))
                for room in sorted({*viewers, *events})
            )
            yield from self._counted("room", values)

    def _rows(
        self, kind: str, table: pa.Table, names: list[str] | tuple[str, ...], key: str = "user"
    ) -> Iterator[tuple[str, bytes]]:
        return self._counted(kind, layout.grouped(layout.whole(table[key]), layout.matrix(table, names)))

    def _counted(self, kind: str, values: Iterator[tuple[int, bytes]]) -> Iterator[tuple[str, bytes]]:
        for number, value in values:
            self.keys[kind] = self.keys.get(kind, 0) + 1
            self.bytes[kind] = self.bytes.get(kind, 0) + len(value)
            yield f"{self._name}/{kind}/{number}", value


def _read(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Return a file of a state.

    Raises:
        NotNow: it is gone, as a newer one has taken its place.
    """
    try:
        return pq.read_table(path, columns=columns, partitioning=None).combine_chunks()
    except FileNotFoundError:
        raise NotNow(f"{path} is gone, as a newer day has taken its place; fill the store again") from None


def _sorted(table: pa.Table, gone: pa.Array, order: list[str]) -> pa.Table:
    if len(gone):
        table = table.filter(pc.invert(pc.is_in(table["user"], gone)))
    return table.sort_by([(name, "ascending") for name in order])


def _with_topics(events: pa.Table, adapter: Adapter, state: Path) -> pa.Table:
    """Add the topic of each event's item, as `day.take` does."""
    topics: list[int | None] = []
    known = {}
    for domain, (prefix, name) in adapter.topics.items():
        of = adapter.attributes[prefix]
        items = pc.unique(events["item"])
        table = _read(state / "attributes" / f"{prefix}.parquet")
        table = table.filter(pc.is_in(table["id"], items))
        rows: dict[int, list[tuple[int, int, Any]]] = {}
        since = table[of.since].to_pylist() if of.since else [layout.NULL] * len(table)
        until = table["_until"].to_pylist() if of.since else [2**62] * len(table)
        for key, begin, end, value in zip(table["id"].to_pylist(), since, until, table[name].to_pylist(), strict=True):
            rows.setdefault(key, []).append((begin, end, value))
        known[domain] = rows
    for domain, item, time in zip(*(events[name].to_pylist() for name in ("domain", "item", "time")), strict=True):
        found = known.get(domain, {}).get(item, [])
        topics.append(next((value for begin, end, value in found if begin < time <= end), None))
    return events.append_column("topic", pa.array(topics, pa.int64()))
