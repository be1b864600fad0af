"""Where a day of logged requests differs from its samples, feature by feature.

A sample and a logged candidate are the same where their user and item are, and the request came within a time before
the exposure, or where both tell a request's id. Samples are decoded as training decodes them, so that what is compared
is what the model is given.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Evaluate, Recipe
from livetrain.trainers.data.read.decode import Decoder
from livetrain.trainers.data.write.history import Timeline
from livetrain.trainers.data.write.ids import string_ids
from livetrain.trainers.online import windows
from livetrain.trainers.online.request_log import Given, RequestLog

EXAMPLES = 3
_ROWS = 65_536  # samples in memory at a time
_NAMES = ("missing in the log", "missing in the samples", "another number", "fewer ids", "more ids", "another order")
LESS, MORE, NUMBER, FEWER, LONGER, ORDER = range(6)
OTHER = 6  # ids of the same number
KINDS = (*_NAMES, "other ids")


@dataclass
class Difference:
    """What was found of one feature."""

    rows: int = 0
    differ: int = 0
    largest: float = 0.0
    kinds: Counter = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.differ / self.rows if self.rows else 0.0

    def told(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        kinds = {KINDS[kind]: count for kind, count in self.kinds.most_common()}
        figures = {"rows": self.rows, "differ": self.differ, "share": self.share, "largest": self.largest}
        return figures | {"kinds": kinds, "examples": self.examples}


@dataclass(frozen=True)
class Asked:
    """How rows are told and compared.

    Args:
        user, item, time: columns of the samples.
        within_s: a request came at most so many seconds before its exposure.
        tolerance: feature -> difference that is none; of others a millionth of the number.
    """

    user: str
    item: str
    time: str
    within_s: float = 60.0
    tolerance: dict[str, float] = field(default_factory=dict)


def skew(place: str, files: list[Path], recipe: Recipe, asked: Asked) -> dict[str, Any]:
    """Compare a log with samples, a stretch of the log at a time.

    Args:
        place: where the requests lie, a folder or a file.
        files: Parquet of the samples.
        recipe: whose features are compared.
        asked: how.

    Returns:
        rows of samples, how many of them were found in the log, logged candidates, and per feature a `Difference`.

    Raises:
        BadInput: there is no log, a column is missing, or no feature is the user's or the item's id.
    """
    log = windows.Log(place)
    features = RequestLog(log.empty, recipe, place).features
    for name in asked.tolerance:
        if name not in recipe.features:
            raise BadInput(f"--tolerance {name}: the recipe has no such feature")
    user, item = (_id_feature(recipe, features, column) for column in (asked.user, asked.item))
    bare = recipe.model_copy(
        update={"tasks": {}, "evaluate": Evaluate(), "data": recipe.data.model_copy(update={"negatives": None})}
    )
    decoder = Decoder(bare, groups=False)
    found = {name: Difference() for name in features}
    samples = _Samples(files, decoder, bare, asked)
    logged, within = 0, 0 if samples.told else int(1000 * asked.within_s)
    stretches = log.stretches(item)
    for begin, end in reversed(stretches):  # the newest of an id that was given twice counts
        part = RequestLog(log.read(begin - within, end), recipe, place)
        known = _Known(part, user, item)
        logged += int((known.moment >= begin).sum())
        given = {name: part.given(name) for name in features}
        last = (begin, end) == stretches[-1]
        for owner, decoded, keys in samples.of(known, begin, None if last else end):
            for name, difference in found.items():
                limit = recipe.features[name].limit if recipe.features[name].carrier == "ids" else 0
                rows = part.request[owner] if name in part.mine else owner
                one, other = given[name].take(rows), decoded[name]
                _compare(difference, one.newest(limit), other.newest(limit), asked.tolerance.get(name), keys)
    return {
        "samples": samples.rows,
        "joined": max((each.rows for each in found.values()), default=0),
        "logged": logged,
        "features": {name: difference.told() for name, difference in found.items()},
    }


class _Known:
    """Which candidates some logged requests have.

    Args:
        log: of them.
        user, item: features that are ids.

    Attributes:
        moment: (N,) of each candidate the time in ms.
    """

    def __init__(self, log: RequestLog, user: str, item: str) -> None:
        self.moment = log.table["time"].to_numpy()[log.request]
        users, items = (_ids(log.by_candidate(name)) for name in (user, item))
        key, self._codes = _coded(users, items)
        self._timeline = Timeline(key, self.moment)
        names = log.table["request_id"].to_pylist()
        pairs = zip(log.request.tolist(), items.tolist(), strict=True)
        self._by_id = {(names[row], each): place for place, (row, each) in enumerate(pairs)}

    def named(self, requests: list[str], items: np.ndarray) -> np.ndarray:
        """Return the candidate of each request and item, -1 where there is none."""
        pairs = zip(requests, items.tolist(), strict=True)
        return np.array([self._by_id.get(pair, -1) for pair in pairs], np.int64)

    def before(self, users: np.ndarray, items: np.ndarray, time: np.ndarray, within: float) -> np.ndarray:
        """Return the candidate of each user and item, the newest within so many ms before a time, or -1."""
        return _latest(self._timeline, self._codes(users, items), time, self.moment, within)


class _Samples:
    """Samples, by row groups.

    Args:
        files: Parquet.
        decoder, recipe: which decode them.
        asked: how they are found in a log.

    Attributes:
        rows: of all.
        told: whether they tell the id of their request, by which they are found then.

    Raises:
        BadInput: a column is missing.
    """

    def __init__(self, files: list[Path], decoder: Decoder, recipe: Recipe, asked: Asked) -> None:
        self._decoder, self._recipe, self._asked = decoder, recipe, asked
        self._keys = [asked.user, asked.item, asked.time]
        wanted = dict.fromkeys([*decoder.columns, *self._keys])
        named = []
        for path in files:
            names = pq.read_schema(path).names
            if missing := [name for name in wanted if name not in names]:
                raise BadInput(f"{path}: has no column '{missing[0]}', which the comparison needs")
            named.append("request_id" in names)
        self.told = all(named)
        self._groups = [*windows.groups(files, asked.time, _ms)]
        self.rows = sum(group.rows for group in self._groups)
        self._done = [np.zeros(group.rows if self.told else 0, bool) for group in self._groups]

    def of(
        self, known: _Known, begin: int, end: int | None
    ) -> Iterator[tuple[np.ndarray, dict[str, Given], dict[str, np.ndarray]]]:
        """Yield the samples of a stretch that are known: their candidates, what a model is given, and their keys."""
        for group, done in zip(self._groups, self._done, strict=True):
            if self.told or (group.last >= begin and (end is None or group.first < end)):
                with pq.ParquetFile(group.path) as file:
                    yield from self._in(file, group, done, known, begin, end)

    def _in(
        self, file: pq.ParquetFile, group: windows.Group, done: np.ndarray, known: _Known, begin: int, end: int | None
    ) -> Iterator[tuple[np.ndarray, dict[str, Given], dict[str, np.ndarray]]]:
        keys = file.read_row_group(group.number, [*dict.fromkeys(self._keys), *(["request_id"] if self.told else [])])
        users, items = (_whole(keys[name]) for name in self._keys[:2])
        time = _ms(keys[self._asked.time])
        if self.told:
            owner = np.where(done, -1, known.named(keys["request_id"].to_pylist(), items))
            done |= owner >= 0
        else:
            owner = known.before(users, items, time, 1000 * self._asked.within_s)
            owner[(time < begin) | (time >= (time.max() + 1 if end is None else end))] = -1
        if not (owner >= 0).any():
            return
        at = 0
        for batch in file.iter_batches(_ROWS, row_groups=[group.number], columns=self._decoder.columns):
            there = np.flatnonzero(owner[at : at + len(batch)] >= 0)
            own, at = there + at, at + len(batch)
            if len(there):
                chosen = pa.Table.from_batches([batch.take(pa.array(there))])
                decoded = _decoded(self._decoder, self._recipe, chosen, str(group.path))
                yield owner[own], decoded, {"user": users[own], "item": items[own], "time": time[own]}


def _id_feature(recipe: Recipe, features: list[str], column: str) -> str:
    """Return the feature that is the id in a column of the samples."""
    own = [n for n in features if recipe.columns(n) == (column,) and recipe.features[n].carrier == "ids"]
    own = [name for name in own if not recipe.features[name].lists]
    if not own:
        raise BadInput(
            f"{recipe.name}: has no id feature of column '{column}', which finds samples in a log; name one that has"
        )
    return own[0]


def _ids(given: Given) -> np.ndarray:
    """Return the id of each row, -1 where there is none."""
    assert given.counts is not None
    out = np.full(len(given.counts), -1)
    out[given.counts > 0] = given.values
    return out


def _coded(user: np.ndarray, item: np.ndarray):  # type: ignore[no-untyped-def]
    """Return a number for each pair of the log, and what gives the samples' pairs theirs: -1 where it has none."""
    users, u = np.unique(user, return_inverse=True)
    items, i = np.unique(item, return_inverse=True)

    def codes(user: np.ndarray, item: np.ndarray) -> np.ndarray:
        out, known = np.zeros(len(user), np.int64), np.ones(len(user), bool)
        for every, own, step in ((users, user, max(len(items), 1)), (items, item, 1)):
            place = np.searchsorted(every, own).clip(max=max(len(every) - 1, 0))
            known &= every[place] == own if len(every) else False
            out += step * place
        return np.where(known, out, -1)

    return u.astype(np.int64) * max(len(items), 1) + i, codes


def _latest(timeline: Timeline, wanted: np.ndarray, time: np.ndarray, moment: np.ndarray, within: float) -> np.ndarray:
    """Return the logged candidate of each sample, -1 where there is none: the newest at or before its time."""
    if not len(moment):
        return np.full(len(wanted), -1)
    spans = timeline.before(wanted, time + 1)
    owner = np.where(spans.count > 0, timeline.order[np.maximum(spans.stop - 1, 0)], -1)
    owner[(owner >= 0) & (time - moment[owner] > within)] = -1
    return owner


def _whole(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = string_ids(column)
    return column.cast(pa.int64()).fill_null(-1).to_numpy()


def _ms(column: pa.ChunkedArray) -> np.ndarray:
    """Return times in ms, of timestamps or of integers in s or ms since 1970."""
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp("ms")).cast(pa.int64()).to_numpy()
    found = column.cast(pa.int64()).fill_null(0).to_numpy()
    return found * 1000 if len(found) and found.max() < 10**11 else found


def _decoded(decoder: Decoder, recipe: Recipe, table: pa.Table, where: str) -> dict[str, Given]:
    """Return what a model is given of samples, by feature."""
    columns = decoder.decode(table.select(decoder.columns), 0, where)
    numbers = [name for name, feature in recipe.features.items() if feature.carrier == "numbers"]
    found = {name: Given(np.asarray(part)) for name, part in zip(numbers, columns.floats, strict=False)}
    for name, column in zip(decoder.keys, columns.ids, strict=False):
        values, counts = column.cut(0, len(table))
        beside = decoder.numbers(columns, name) if name in decoder.beside else None
        found[name] = Given(np.asarray(values), np.asarray(counts, np.int64), beside)
    return found


def _compare(found: Difference, one: Given, other: Given, tolerance: float | None, keys: dict[str, np.ndarray]) -> None:
    """Add what differs between the log (`one`) and the samples."""
    if one.counts is None or other.counts is None:
        less, more, wide, apart = _numbers(one.values, other.values, tolerance)
        kind = np.select([less.any(1), more.any(1), wide.any(1)], [LESS, MORE, NUMBER], -1)
        found.largest = max(found.largest, float(apart[wide].max(initial=0.0)))
    else:
        kind = _lists(one, other, one.counts, other.counts)
        found.largest = max(found.largest, float(np.abs(one.counts - other.counts).max(initial=0)))
        same = np.flatnonzero(kind < 0)
        a, b = (each.take(same) for each in (one, other))
        if a.beside is not None and b.beside is not None and len(a.beside):
            *_, wide, apart = _numbers(a.beside, b.beside, tolerance)
            row = np.repeat(same, one.counts[same])
            kind[row[wide.any(1)]] = NUMBER
            found.largest = max(found.largest, float(apart[wide].max(initial=0.0)))
    found.rows += len(kind)
    bad = np.flatnonzero(kind >= 0)
    found.differ += len(bad)
    found.kinds.update(kind[bad].tolist())
    for row in bad[: EXAMPLES - len(found.examples)]:
        shown = {what: part.take(np.array([row])) for what, part in (("logged", one), ("sample", other))}
        found.examples.append({name: int(column[row]) for name, column in keys.items()} | _shown(shown))


def _numbers(one: np.ndarray, other: np.ndarray, tolerance: float | None) -> tuple[np.ndarray, ...]:
    """Compare numbers, (N,) or (N, w).

    Returns:
        (N, w) each: what is missing in the first alone, and in the second alone, what differs, and by how much.
    """
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (one, other))
    apart = np.abs(np.nan_to_num(a) - np.nan_to_num(b))
    wide = apart > (1e-6 * np.maximum(np.abs(b), 1) if tolerance is None else tolerance)
    return np.isnan(a) & ~np.isnan(b), ~np.isnan(a) & np.isnan(b), wide & ~np.isnan(a) & ~np.isnan(b), apart


def _lists(one: Given, other: Given, logged: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return how each row's ids differ, -1 where they do not.

    Args:
        one, other: ids of the log and of the samples.
        logged, wanted: (N,) their counts.
    """
    conditions = [(logged == 0) & (wanted > 0), (logged > 0) & (wanted == 0), logged < wanted, logged > wanted]
    kind = np.select(conditions, [LESS, MORE, FEWER, LONGER], -1)
    same = np.flatnonzero(kind < 0)
    a, b = one.take(same).values, other.take(same).values
    row = np.repeat(np.arange(len(same)), logged[same])
    order = [np.lexsort((x, row)) for x in (a, b)]
    unequal, others = (
        np.bincount(row[x != y], minlength=len(same)) > 0 for x, y in ((a, b), (a[order[0]], b[order[1]]))
    )
    kind[same[unequal]] = ORDER
    kind[same[others]] = OTHER
    return kind


def _shown(parts: dict[str, Given]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for what, part in parts.items():
        values = [None if each != each else each for each in part.values.ravel().tolist()]
        if part.beside is not None:
            values = [*zip(values, part.beside.tolist(), strict=True)]
        shown[what] = values[0] if part.counts is None and len(values) == 1 else values
    return shown
