"""What a feature store holds of one id, for people."""

from typing import Any

import numpy as np

from livetrain.configs.errors import BadInput, NotNow, nearest
from livetrain.trainers.data.sources.events import plan
from livetrain.trainers.data.sources.events.known import NEVER, entry_columns
from livetrain.trainers.data.store import layout
from livetrain.trainers.data.store.fill import read_meta
from livetrain.trainers.data.store.kv import Store
from livetrain.trainers.data.store.layout import NOW, NULL


def look(store: Store, kind: str, number: int) -> dict[str, Any]:
    """Return what is stored of an id, by the keys' names: rows by column.

    Args:
        store: an open store.
        kind: `user`, or what the event log calls its items and authors.
        number: the id.

    Raises:
        BadInput: the event log has no such kind.
        NotNow: the store was never filled.
    """
    meta = read_meta(store)
    if meta is None:
        raise NotNow("--store: it was never filled; `livetrain store fill` does")
    adapter, _ = plan.of_plan(meta["plan"])
    kinds = {"user": "user", adapter.item: "item", adapter.author: "author"}
    if kind not in kinds:
        raise BadInput(f"{kind}: the store has none; it has {', '.join(kinds)}{nearest(kind, kinds)}")
    counts = [f"n{code}" for code in plan.COUNTED]
    of: dict[str, list[str]] = {
        f"statistics.{p}": counts for p, key in adapter.statistics.items() if key == kinds[kind]
    }
    if kinds[kind] == "author" and adapter.others:
        of["topics"] = ["topic", "shown"]
    if kind == "user":
        of |= {f"pairs.{prefix}": ["id", "last", *counts] for prefix in adapter.pairs}
        of |= {f"sequence.{name}": entry_columns(s)[1:] for name, s in adapter.sequences.items()}
        of["events"] = [*layout.EVENT]
    found: dict[str, Any] = {}
    for base in (meta["generation"], NOW):
        for name, columns in of.items():
            (value,) = store.get([f"{base}/{name}/{number}"])
            if value is not None:
                rows = layout.words(value, len(columns))
                found[_named(base, name)] = {column: _plain(column, rows[:, at]) for at, column in enumerate(columns)}
        for prefix, known in adapter.attributes.items():
            (value,) = store.get([f"{base}/attributes.{prefix}/{number}"])
            if known.key == kinds[kind] and value is not None:
                told = layout.words(value)[:, 0][base == NOW :]
                newest = layout.attributes_at(known, told, NEVER if known.since else 0)
                found[_named(base, f"attributes.{prefix}")] = newest
        if kinds[kind] == "item" and adapter.domain == "live":
            (value,) = store.get([f"{base}/room/{number}"])
            if value is not None:
                found[_named(base, "room")] = _room(base == NOW, layout.words(value)[:, 0])
    return {"generation": meta["generation"], "horizon": meta["horizon"], **found}


def _named(base: str, name: str) -> str:
    return f"now {name}" if base == NOW else name


def _plain(column: str, values: np.ndarray) -> list[Any]:
    if column == "value":
        return [None if each != each else each for each in layout.numbers(values).tolist()]
    return [None if each in (NULL, NEVER) else each for each in values.tolist()]


def _room(now: bool, words: np.ndarray) -> dict[str, Any]:
    viewers, events = (0 if now or not len(words) else int(words[0])), words[1:].reshape(-1, len(layout.ROOM_EVENT))
    if now:
        _, sums, events = layout.room_of(words)
        viewers = int(sums[:, 1].sum())
    columns = {column: _plain(column, events[:, at]) for at, column in enumerate(layout.ROOM_EVENT)}
    return {"viewers": viewers, **columns}
