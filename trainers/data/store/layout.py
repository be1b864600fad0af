"""The bytes of a feature store. docs/guide/feature-store.md has the same as a table.

A key is text, a value is a row of words: 64 bits each, little-endian. A number with a fraction is a float64's bits, and
`NULL` stands for a whole number that is missing. Keys begin with the generation that a night has written, which `meta`
names once it is whole, or with `now`, what streams have added since:

    meta                              JSON: format, generation, horizon (ms), before, source, plan
    G/attributes.<prefix>/ID          per row, by time: since, until, what is null, the columns
    G/statistics.<prefix>/ID          how often each of the 8 counted kinds happened
    G/topics/AUTHOR                   per topic of the author's, in rising order: topic, its exposures
    G/pairs.<prefix>/USER             per id, in rising order: id, ms of the last exposure, the 8 counts
    G/sequence.<name>/USER            per entry, by time: ms, item, author, topic, and ms of each of the 7 actions
    G/events/USER, now/events/USER    per event: domain, item, author, ms, kind, value, ms of its session, topic
    G/room/ID                         viewers, and per event: user, author, ms, kind, value, ms of its session
    now/room/ID                       ms up to which events are summed, sums, per sum: ms, viewers; then events
    now/attributes.<prefix>/ID        ms at which it was told, and as above

Rows follow one another. In attributes a bag or a vector is its length and its values, and the bits of what is null
stand in words of 63 bits each, the first column's lowest.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from livetrain.trainers.data.sources.events.known import NEVER
from livetrain.trainers.data.sources.events.model import BITS, EXPOSURE, Attributes
from livetrain.trainers.data.sources.events.plan import COUNTED, DOMAINS

FORMAT = 1
META = "meta"
NOW = "now"
NULL = np.iinfo(np.int64).min
WORD = np.dtype("<i8")
EVENT = ("domain", "item", "author", "time", "kind", "value", "session", "topic")
ROOM_EVENT = ("user", "author", "time", "kind", "value", "session")
BITS_A_WORD = 63
STATISTICS = len(COUNTED)
PAIR = 2 + len(COUNTED)


def entry_width(action: bool) -> int:
    """Return how many words an entry of a sequence has."""
    return 4 + (len(BITS) if action else 0)


def words(value: bytes | None, width: int = 1) -> np.ndarray:
    """Return a value as rows of words, (N, width); none of what is not there."""
    found = np.frombuffer(value or b"", WORD)
    return found.reshape(-1, width)


def matrix(table: pa.Table, names: list[str] | tuple[str, ...]) -> np.ndarray:
    """Return columns of whole numbers, or float64 as its bits, as rows of words, (N, len(names))."""
    out = np.empty((len(table), len(names)), WORD)
    for place, name in enumerate(names):
        column = table[name]
        if name == "domain":
            column = pc.index_in(column, pa.array(DOMAINS, column.type))
        out[:, place] = bits(column.to_numpy()) if pa.types.is_floating(column.type) else whole(column)
    return out


def whole(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Return whole numbers, (N,) int64 with `NULL` for what is missing."""
    return np.asarray(column.cast(pa.int64()).fill_null(NULL).to_numpy(), np.int64)


def bits(values: np.ndarray) -> np.ndarray:
    """Return float64 as words; all that are no number are one word."""
    values = np.array(values, np.float64)
    values[np.isnan(values)] = np.nan
    return values.view(np.int64)


def numbers(row_words: np.ndarray) -> np.ndarray:
    """Return words as float64."""
    return np.ascontiguousarray(row_words).view(np.float64)


def nullable(row_words: np.ndarray) -> pa.Array:
    """Return words as whole numbers, null where they are `NULL`."""
    return pa.array(row_words, pa.int64(), mask=np.asarray(row_words == NULL))


def grouped(keys: np.ndarray, rows: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """Yield each key with its rows' bytes, in their order.

    Args:
        keys: (N,) equal ones follow one another.
        rows: (N, W) words.
    """
    begins = np.flatnonzero(np.diff(keys, prepend=keys[:1] - 1))
    rows = np.ascontiguousarray(rows, WORD)
    for begin, end in zip(begins, [*begins[1:], len(keys)], strict=False):
        yield int(keys[begin]), rows[begin:end].tobytes()


# What is known of ids


def columns(known: Attributes) -> list[str]:
    """Return the columns of attributes in the order of their words."""
    return [*known.ids, *known.bags, *known.dense, *known.vectors, *(["start"] if known.age else [])]


def attribute_rows(known: Attributes, table: pa.Table) -> Iterator[tuple[int, bytes]]:
    """Yield each id with its rows' bytes.

    Args:
        table: of `stage.load_attributes`, sorted by id, and by since where there is one.
    """
    names = columns(known)
    ids = table["id"].to_pylist()
    since = table[known.since].to_pylist() if known.since else [NULL] * len(ids)
    until = table["_until"].to_pylist() if known.since else [NEVER] * len(ids)
    values = {name: table[name].to_pylist() for name in names}
    kinds = [_kind(known, name) for name in names]
    made: list[int] = []
    for place, key in enumerate(ids):
        made += [int(since[place]), int(until[place])]
        row = [values[name][place] for name in names]
        for first in range(0, len(row), BITS_A_WORD):
            part = row[first : first + BITS_A_WORD]
            made.append(sum(1 << bit for bit, value in enumerate(part) if value is None))
        for kind, value in zip(kinds, row, strict=True):
            made += _encoded(kind, value)
        if place + 1 == len(ids) or ids[place + 1] != key:
            yield key, np.array(made, WORD).tobytes()
            made = []


def _kind(known: Attributes, name: str) -> str:
    return next((kind for kind in ("ids", "bags", "dense", "vectors") if name in getattr(known, kind)), "start")


def _encoded(kind: str, value: Any) -> list[int]:
    if kind in ("ids", "start"):
        return [NULL if value is None else int(value)]
    if kind == "dense":
        return bits(np.array([np.nan if value is None else float(value)])).tolist()
    if kind == "bags":
        return [len(value or []), *(value or [])]
    vector = np.array([np.nan if each is None else each for each in value or []], np.float64)
    return [len(vector), *bits(vector).tolist()]


def attributes_at(known: Attributes, value: np.ndarray, moment: int) -> dict[str, Any] | None:
    """Return what is known of an id just before a moment, ms: column -> value; None where nothing is.

    Args:
        value: (N,) words.
    """
    at, kinds = 0, [(name, _kind(known, name)) for name in columns(known)]
    while at < len(value):
        since, until = int(value[at]), int(value[at + 1])
        masks = value[at + 2 : at + 2 + -(-len(kinds) // BITS_A_WORD)]
        at += 2 + len(masks)
        row: dict[str, Any] = {}
        for bit, (name, kind) in enumerate(kinds):
            length = 1
            if kind in ("bags", "vectors"):
                length, at = int(value[at]), at + 1
            part = value[at : at + length]
            at += length
            if int(masks[bit // BITS_A_WORD]) >> bit % BITS_A_WORD & 1:
                row[name] = None
            elif kind in ("ids", "start"):
                row[name] = int(part[0])
            elif kind == "bags":
                row[name] = part.tolist()
            else:
                found = numbers(part).tolist()
                row[name] = found[0] if kind == "dense" else [None if each != each else each for each in found]
        if since < moment <= until:
            return row
    return None


# What has happened since the night


def once(fresh: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the events of one user among `fresh` that are not among `known`, each once.

    An exposure is told by its item and time, as in a day (`day.take`), and anything else by all but its topic.

    Args:
        fresh, known: (N, 8) words, see `EVENT`.
    """
    order = np.lexsort((fresh[:, 2], fresh[:, 3]))  # of two exposures the one with the smaller author
    seen = {_event_key(row) for row in known.tolist()}
    kept = []
    for row in fresh[order].tolist():
        if (key := _event_key(row)) not in seen:
            seen.add(key)
            kept.append(row)
    kept.sort(key=lambda row: (row[3], row))
    return np.array(kept, WORD).reshape(-1, len(EVENT))


def _event_key(row: list[int]) -> tuple[int, ...]:
    return (row[1], row[3]) if row[4] == EXPOSURE else tuple(row[:7])


def once_in_room(fresh: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the events of one room among `fresh` that are not among `known`, each once, by time."""
    seen = set(map(tuple, known.tolist()))
    kept = [row for row in dict.fromkeys(map(tuple, fresh.tolist())) if row not in seen]
    kept.sort(key=lambda row: (row[2], row))
    return np.array(kept, WORD).reshape(-1, len(ROOM_EVENT))


def room_of(value: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Return ms up to which a room's events are summed, the sums (N, 2): ms and viewers, and the later events."""
    if not len(value):
        return NULL, value.reshape(-1, 2), value.reshape(-1, len(ROOM_EVENT))
    end = 2 + 2 * int(value[1])
    return int(value[0]), value[2:end].reshape(-1, 2), value[end:].reshape(-1, len(ROOM_EVENT))
