"""The features of a request, as the samples of the same moment have them.

What a store holds are states and events with their times, never finished values: at the request's time the code that
made the samples (events/known.py) makes the row of them. Only what that code has joined in SQL is looked up here
instead: what is known of ids, counts up to the last night, and a room's last minutes.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from livetrain.configs.errors import BadInput, NotNow
from livetrain.configs.schema import Evaluate, Recipe
from livetrain.trainers.data.read.decode import Decoder
from livetrain.trainers.data.sources.events import plan
from livetrain.trainers.data.sources.events.day import ROOM_WINDOW_MS
from livetrain.trainers.data.sources.events.known import EVENT_ORDER, Known, Options, entry_columns
from livetrain.trainers.data.sources.events.model import CLICK, GIFT, LIKE, WATCH, Adapter, Attributes
from livetrain.trainers.data.store import layout
from livetrain.trainers.data.store.fill import meta_of
from livetrain.trainers.data.store.kv import Store
from livetrain.trainers.data.store.layout import META, NOW, NULL
from livetrain.trainers.data.write import layout as parquet
from livetrain.trainers.export.prediction import chunks
from livetrain.trainers.export.rows import Inputs, one_user


@dataclass(frozen=True)
class _Generation:
    said: bytes  # what it was made of
    name: str
    horizon: int
    adapter: Adapter
    options: Options
    columns: dict[str, dict[str, Any]]


class Features:
    """What a feature store knows of requests.

    Args:
        store: an open store.
        recipe: whose features `row` makes; without one `columns` alone can be asked for.

    Raises:
        NotNow: of every method: the store does not answer, or was never filled.
    """

    def __init__(self, store: Store, recipe: Recipe | None = None):
        self._store = store
        self._made: _Generation | None = None
        self._decoder: Decoder | None = None
        if recipe is not None:
            data = recipe.data.model_copy(update={"negatives": None})
            bare = recipe.model_copy(update={"tasks": {}, "evaluate": Evaluate(), "data": data})
            self._decoder, self._recipe = Decoder(bare, groups=False), bare

    def row(
        self,
        user: int,
        candidates: Mapping[str, list[Any]],
        moment: int | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> Inputs:
        """Return a request as `rank` takes it: ids, lengths and dense by feature; the user's have one row.

        Args:
            user: whose request it is.
            candidates: columns of the candidates, lists of one length: the item's and the author's ids, and what else
                comes with the request; a column that stands here is not looked up.
            moment: ms since 1970 at which it is asked; now by default.
            given: columns of the user that come with the request, one value each.

        Raises:
            BadInput: a column is missing that only the request can tell.
        """
        if self._decoder is None:
            raise BadInput("Features.row: needs the recipe whose features it makes; give it to Features")
        table, mine = self.columns(user, candidates, moment, given)
        if missing := [name for name in self._decoder.columns if name not in table.column_names]:
            raise BadInput(
                f"request: the feature store knows no column '{missing[0]}', which a feature reads; send it along"
            )
        decoded = self._decoder.decode(table.select(self._decoder.columns), 0, "the request")
        dense = [name for name, feature in self._recipe.features.items() if feature.carrier == "numbers"]
        inputs = next(chunks(decoded, self._decoder, dense, len(table)))
        users = [n for n in self._recipe.features if all(c in mine for c in self._recipe.columns(n))]
        return one_user(inputs, users, 0)[0] if len(table) else inputs

    def columns(
        self,
        user: int,
        candidates: Mapping[str, list[Any]],
        moment: int | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> tuple[pa.Table, set[str]]:
        """Return the samples' columns of a request, a row per candidate, and which of them are the user's.

        Args, Raises: as of `row`.
        """
        moment = int(1000 * time.time()) if moment is None else moment
        told = {**(given or {}), **candidates}
        now, items, authors, found = self._found(user, candidates)
        adapter = now.adapter
        rows = self._rows(now, found, user, items, authors, moment, told)
        events = found.events(user)
        entries = {name: found.entries(name, user) for name in adapter.sequences}
        # The lists are the user's: one row of them will do.
        whole = Known(adapter, now.options, now.horizon, rows, events, entries.__getitem__)
        once = Known(adapter, now.options, now.horizon, rows.slice(0, 1), events, entries.__getitem__)
        columns: dict[str, Any] = dict(whole.columns())
        first = pa.array(np.zeros(len(items), np.int64))
        columns |= {name: column.take(first) for name, column in once.lists(0).items()}
        for name in adapter.context:
            if name not in told:
                del columns[name]
        for name, value in told.items():
            kind = columns[name].type if name in columns else None
            values = value if name in candidates else [value] * len(items)
            if len(values) != len(items):
                raise BadInput(
                    f"request: '{name}' has {len(values)} values of {len(items)} candidates; send one of each"
                )
            columns[name] = pa.array(values, kind)
        mine = {name for name, how in now.columns.items() if how["user"] and name not in candidates} | set(given or {})
        return pa.table(columns), mine

    def _found(
        self, user: int, candidates: Mapping[str, list[Any]]
    ) -> tuple[_Generation, np.ndarray, np.ndarray, "_Found"]:
        """Return the generation, the candidates' items and authors, and what the store has of them and a user."""
        now = self._made or self._learned(*self._store.get([META]))
        while True:
            for name in (now.adapter.item, now.adapter.author):
                if name not in candidates:
                    raise BadInput(f"request: '{name}' of each candidate is missing; only the request can tell it")
            of = (candidates[name] for name in (now.adapter.item, now.adapter.author))
            items, authors = (np.array([_id(value) for value in ids], np.int64) for ids in of)
            found = _Found(self._store, now, user, items, authors)
            if found.meta == now.said:
                return now, items, authors, found
            # It lost its content or was filled since then, and may have nothing under the name that is known.
            now = self._learned(found.meta)

    def _learned(self, said: bytes | None) -> _Generation:
        """Return the generation that the store names."""
        if said is None:
            raise NotNow("--store: it was never filled; `livetrain store fill` does")
        meta = meta_of(said)
        adapter, options = plan.of_plan(meta["plan"])
        columns = meta["plan"]["columns"]
        self._made = _Generation(said, meta["generation"], meta["horizon"], adapter, options, columns)
        return self._made

    def _rows(
        self,
        now: _Generation,
        found: "_Found",
        user: int,
        items: np.ndarray,
        authors: np.ndarray,
        moment: int,
        told: Mapping[str, Any],
    ) -> pa.Table:
        """Return what `day.lay_out` joins to exposures, of the candidates."""
        adapter, count = now.adapter, len(items)
        keys = {"user": np.full(count, user), "item": items, "author": authors}
        local = moment + 1000 * adapter.utc_offset_s
        columns: dict[str, Any] = {
            **{name: layout.nullable(key) for name, key in keys.items()},
            "time": np.full(count, moment),
            **{n: pa.nulls(count, pa.int64() if k == "id" else pa.float64()) for n, k in adapter.context.items()},
            "hour": np.full(count, local // 3_600_000 % 24),
            "weekday": np.full(count, (local // 86_400_000 + 3) % 7),
        }
        topics = pa.nulls(count, pa.int64())
        if adapter.domain in adapter.topics:
            prefix, name = adapter.topics[adapter.domain]
            known = [found.known(prefix, int(key), moment) for key in items]
            topics = pa.array([None if row is None else row[name] for row in known], pa.int64())
        columns["topic"] = topics
        if adapter.domain == "live":
            rooms = np.array([found.room(int(item), moment) for item in items], np.float64).reshape(-1, 3)
            columns |= {f"room_{what}": rooms[:, at] for at, what in enumerate(("viewers", "likes", "gifts"))}
        for prefix, of in adapter.attributes.items():
            if of.key:
                each = [found.known(prefix, int(key), moment) for key in keys[of.key]]
                columns |= _attributes(of, each, moment)
        for prefix, key in adapter.statistics.items():
            counts = found.statistics(prefix, keys[key])
            columns |= {f"{prefix}.{kind}": counts[:, at] for at, kind in enumerate(plan.COUNTED)}
        for prefix, key in adapter.pairs.items():
            others = layout.whole(topics) if key == "topic" else keys[key]
            pairs = found.pairs(prefix, user, others)
            columns |= {f"{prefix}.{kind}": pairs[:, 1 + at] for at, kind in enumerate(plan.COUNTED)}
            columns[f"{prefix}.last"] = layout.nullable(pairs[:, 0])
        if adapter.others is not None:
            columns |= _others(adapter, found, user, authors, layout.whole(topics))
        return pa.table(columns)


def _id(value: Any) -> int:
    if isinstance(value, str | float):
        raise BadInput(f"request: {value!r} is no id; ids are whole numbers, of a string what `string_id` makes of it")
    return NULL if value is None else int(value)


def _others(
    adapter: Adapter, found: "_Found", user: int, authors: np.ndarray, topics: np.ndarray
) -> dict[str, pa.Array]:
    """Return what else the author of each candidate is about, and the user's past with that: `day.lay_out`'s others."""
    prefix = f"user_{adapter.topics[adapter.domain][1]}"
    shown = [found.topics(int(author)) for author in authors]
    shown = [rows[rows[:, 0] != topic] for rows, topic in zip(shown, topics, strict=True)]
    past = [rows[:, 1] @ found.pairs(prefix, user, rows[:, 0])[:, 1:] for rows in shown]
    sums = np.array(past, np.int64).reshape(-1, len(plan.COUNTED))
    lists = {f"others.{name}": [rows[:, at].tolist() for rows in shown] for at, name in enumerate(("topics", "shown"))}
    columns = {name: pa.array(values, pa.list_(pa.int64())) for name, values in lists.items()}
    return columns | {f"others.{kind}": pa.array(sums[:, at]) for at, kind in enumerate(plan.COUNTED)}


def _attributes(known: Attributes, rows: list[dict[str, Any] | None], moment: int) -> dict[str, pa.Array]:
    """Return the columns of what is known of each of some ids."""
    kinds = {"ids": pa.int64(), "bags": parquet.list_of(pa.int64()), "dense": pa.float64()}
    kinds["vectors"] = pa.list_(pa.float64())
    made = {
        name: pa.array([None if row is None else row[name] for row in rows], kind)
        for what, kind in kinds.items()
        for name in getattr(known, what)
    }
    if known.age:
        starts = [None if row is None else row["start"] for row in rows]
        ages = [None if start is None or start >= moment else (moment - start) / 1000.0 for start in starts]
        made[known.age] = pa.array(ages, pa.float64())
    return made


class _Found:
    """The values of a store that a request needs, read at once."""

    def __init__(self, store: Store, now: _Generation, user: int, items: np.ndarray, authors: np.ndarray):
        adapter = now.adapter
        ids = {"user": np.array([user]), "item": items, "author": authors}
        keys = [f"{base}/events/{user}" for base in (now.name, NOW)]
        keys += [f"{now.name}/{what}/{user}" for what in self._of_user(adapter)]
        if adapter.domain == "live":
            keys += [f"{base}/room/{item}" for base in (now.name, NOW) for item in np.unique(items)]
        topics = {prefix for domain, (prefix, _) in adapter.topics.items() if domain == adapter.domain}
        for prefix, known in adapter.attributes.items():
            if known.key or prefix in topics:
                chosen = np.unique(np.concatenate([ids[known.key or "item"], items if prefix in topics else items[:0]]))
                keys += [f"{base}/attributes.{prefix}/{key}" for base in (now.name, NOW) for key in chosen]
        for prefix, key in adapter.statistics.items():
            keys += [f"{now.name}/statistics.{prefix}/{each}" for each in np.unique(ids[key])]
        if adapter.others:
            keys += [f"{now.name}/topics/{author}" for author in np.unique(authors)]
        keys = list(dict.fromkeys([META, *keys]))
        self._values = dict(zip(keys, store.get(keys), strict=True))
        self.meta = self._values[META]  # what the store said of itself in the moment in which the rest was read
        self._now = now
        self._parsed: dict[tuple[str, int], dict[str, Any] | None] = {}

    @staticmethod
    def _of_user(adapter: Adapter) -> list[str]:
        return [*(f"pairs.{prefix}" for prefix in adapter.pairs), *(f"sequence.{name}" for name in adapter.sequences)]

    def _words(self, key: str, width: int = 1) -> np.ndarray:
        return layout.words(self._values.get(key), width)

    def known(self, prefix: str, key: int, moment: int) -> dict[str, Any] | None:
        """Return what is known of an id; what a stream has told since the night goes before the night's."""
        if (prefix, key) not in self._parsed:
            of, now = self._now.adapter.attributes[prefix], self._words(f"{NOW}/attributes.{prefix}/{key}")[:, 0]
            told = now[1:] if len(now) and now[0] >= self._now.horizon else None
            if told is None:
                told = self._words(f"{self._now.name}/attributes.{prefix}/{key}")[:, 0]
            self._parsed[prefix, key] = layout.attributes_at(of, told, moment)
        return self._parsed[prefix, key]

    def statistics(self, prefix: str, ids: np.ndarray) -> np.ndarray:
        """Return the counts of some ids, (R, 8)."""
        out = np.zeros((len(ids), layout.STATISTICS), np.int64)
        for place, key in enumerate(ids):
            for row in self._words(f"{self._now.name}/statistics.{prefix}/{key}", layout.STATISTICS):
                out[place] = row
        return out

    def pairs(self, prefix: str, user: int, others: np.ndarray) -> np.ndarray:
        """Return ms of the last exposure and the counts of a user with some ids, (R, 9)."""
        rows = self._words(f"{self._now.name}/pairs.{prefix}/{user}", layout.PAIR)
        out = np.zeros((len(others), layout.PAIR - 1), np.int64)
        out[:, 0] = NULL
        place = np.searchsorted(rows[:, 0], others)
        there = (place < len(rows)) & (others != NULL)
        there[there] = rows[place[there], 0] == others[there]
        out[there] = rows[place[there], 1:]
        return out

    def topics(self, author: int) -> np.ndarray:
        """Return the topics of an author's earlier days, and how many exposures each had, (R, 2)."""
        return self._words(f"{self._now.name}/topics/{author}", 2)

    def entries(self, name: str, user: int) -> pa.Table:
        """Return a user's entries of a sequence, as the state has them."""
        columns = entry_columns(self._now.adapter.sequences[name])
        rows = self._words(f"{self._now.name}/sequence.{name}/{user}", len(columns) - 1)
        made = {column: rows[:, at] for at, column in enumerate(columns[1:])}
        return pa.table({"user": np.full(len(rows), user), **made}).combine_chunks()

    def events(self, user: int) -> pa.Table:
        """Return a user's events since the night, and those of the night that reach beyond it."""
        width = len(layout.EVENT)
        carried = self._words(f"{self._now.name}/events/{user}", width)
        fresh = self._words(f"{NOW}/events/{user}", width)
        fresh = layout.once(fresh[fresh[:, layout.EVENT.index("time")] >= self._now.horizon], carried)
        rows = np.concatenate([carried, fresh])
        column = {name: rows[:, place] for place, name in enumerate(layout.EVENT)}
        made = {
            "user": pa.array(np.full(len(rows), user)),
            "domain": pa.array(plan.DOMAINS).take(pa.array(column["domain"])),
            **{name: layout.nullable(column[name]) for name in ("item", "author", "time", "session", "topic")},
            "kind": pa.array(column["kind"], pa.int32()),
            "value": pa.array(layout.numbers(column["value"]), from_pandas=True),
            "carried": pa.array(np.arange(len(rows)) < len(carried)),
        }
        table = pa.table(made).sort_by([(name, "ascending") for name in EVENT_ORDER])
        return table.combine_chunks()

    def room(self, room: int, moment: int) -> tuple[int, int, int]:
        """Return a room's viewers, and its likes and gifts of the last minutes, just before a moment, ms."""
        base, now = (self._words(f"{name}/room/{room}")[:, 0] for name in (self._now.name, NOW))
        width, begin = len(layout.ROOM_EVENT), self._now.horizon - ROOM_WINDOW_MS
        viewers, carried = (int(base[0]) if len(base) else 0), base[1:].reshape(-1, width)
        at, kind_at = layout.ROOM_EVENT.index("time"), layout.ROOM_EVENT.index("kind")
        summed, sums, fresh = layout.room_of(now)
        viewers += int(sums[(sums[:, 0] >= begin) & (sums[:, 0] < moment), 1].sum())
        fresh = fresh[fresh[:, at] >= self._now.horizon]
        # What a stream has summed holds those that the night carried over, from the horizon on, too.
        carried = carried[(carried[:, at] < self._now.horizon) | (carried[:, at] >= summed)]
        rows = np.concatenate([carried, layout.once_in_room(fresh, carried)])
        rows = rows[(rows[:, at] >= begin) & (rows[:, at] < moment)]
        kind = rows[:, kind_at]
        viewers += int((kind == CLICK).sum() - (kind == WATCH).sum())
        recent = kind[rows[:, at] >= moment - ROOM_WINDOW_MS]
        return max(viewers, 0), int((recent == LIKE).sum()), int((recent == GIFT).sum())
