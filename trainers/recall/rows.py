"""The rows of a split as a fit sees them, a row group at a time in the order of the files, and their events."""

import re
from collections.abc import Iterator
from datetime import date
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from livetrain.configs.schema import Recipe
from livetrain.modules.recall.fitted import NO_ID, Lists, Rows
from livetrain.trainers.data.read import carry
from livetrain.trainers.data.read.decode import Decoder
from livetrain.trainers.data.read.source import CorruptGroup, Source


def rows_of(source: Source, features: list[str], recipe: Recipe, rank: int = 0, world: int = 1) -> Iterator[Rows]:
    """Yield the rows of a split, or of every `world`-th of its row groups.

    Args:
        source: the split, opened with the config's `also_reads` besides.
        features: those to decode.
        recipe: the run.
        rank: which of the `world` parts.
        world: how many there are.

    Raises:
        BadInput: a file cannot be read, or a row group does not decode, with `data.on_corrupt: stop`.
    """
    decoder = Decoder(recipe, groups=False, names=list(dict.fromkeys(features)))
    columns = list(dict.fromkeys([*decoder.columns, *(column for column, _, _ in recipe.model.also_reads())]))
    firsts = (np.cumsum(source.groups.rows) - source.groups.rows) * (recipe.data.candidates or 1)
    for number in range(rank, len(source.groups), world):
        group, first = source.groups[number], int(firsts[number])
        try:
            table = source.read(group, columns)
        except CorruptGroup:
            if recipe.data.on_corrupt == "stop":
                raise
            continue
        found = decoder.decode(table, first, source.place(group))
        count = table.num_rows
        ids = {name: Lists(*column.cut(0, count)) for name, column in zip(decoder.keys, found.ids, strict=False)}
        ids = {name: _newest(lists, recipe.features[name].limit) for name, lists in ids.items()}
        beside = {name: _column(table.column(name), kind, recipe.model) for name, kind, _ in recipe.model.also_reads()}
        yield Rows(first, found.floats[0] == 1, ids, beside, _day(group.path) if recipe.data.days else None)


class Events(NamedTuple):
    """What users had, (n,) int64 each: the user, the item, and the row in its part that tells it."""

    user: np.ndarray
    item: np.ndarray
    row: np.ndarray


def events_of(rows: Rows, key: str, history: str, user: str | None) -> Events:
    """Return the events in positive rows.

    Args:
        rows: a part of a split.
        key: the item's feature.
        history: the feature with the user's items.
        user: column with the user of a row, whose item is an event; None: a row is a user, with the items of the
            history, and the row's own.

    Example:
        >>> ids = {"item": Lists(np.array([4, 5]), np.array([1, 1])), "had": Lists(np.array([7]), np.array([0, 1]))}
        >>> events_of(Rows(10, np.array([True, True]), ids, {}), "item", "had", None)
        Events(user=array([11, 10, 11]), item=array([7, 4, 5]), row=array([1, 0, 1]))
    """
    own = rows.ids[key]
    row, item = own.rows, own.values
    if user is not None:
        who = rows.columns[user][row]
        kept = rows.label[row] & (who != NO_ID)
        return Events(who[kept], item[kept], row[kept])
    had = rows.ids[history]
    row, item = np.concatenate([had.rows, row]), np.concatenate([had.values, item])
    kept = rows.label[row]
    return Events(rows.first + row[kept], item[kept], row[kept])


def _day(path: str) -> int:
    """Return the day of a file in a partition ``date=...``, in days from 1970-01-01: whatever its zone."""
    day = re.findall(r"date=(\d{4}-\d\d-\d\d)/", path)[-1]
    return date.fromisoformat(day).toordinal() - date(1970, 1, 1).toordinal()


def _newest(lists: Lists, limit: int) -> Lists:
    """Return lists cut to their newest ids, as the reader cuts them."""
    if not len(lists.lengths) or lists.lengths.max() <= limit:
        return lists
    ends = np.repeat(np.cumsum(lists.lengths), lists.lengths)
    return Lists(lists.values[ends - np.arange(len(ends)) <= limit], np.minimum(lists.lengths, limit))


def _column(column: pa.ChunkedArray, kind: str, config: Any) -> np.ndarray:
    """Return a column of ids as int64, `NO_ID` where there is none, or of times in seconds or numbers."""
    array = carry.whole(column)
    if kind == "unix time":
        return carry.seconds(array, config.unit)
    if kind == "number":
        return carry.floats(array).astype(np.float64)
    return carry.whole_ids(array).fill_null(NO_ID).to_numpy()
