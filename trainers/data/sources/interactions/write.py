"""Interactions, prepared for training after the leave-one-out protocol: see docs/guide/next-item.md."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.read.columns import is_list, is_text
from livetrain.trainers.data.sources.interactions.protocol import TEST, TRAIN, VALID, Staged
from livetrain.trainers.data.write import layout
from livetrain.trainers.data.write.ids import string_ids

Rows = Literal["users", "events"]

VERSION = 1  # of the samples; a change of what is written raises it
HISTORY = 65_536  # newest events that a row keeps, the most that a feature can take
COUNTS = ("item_count", "history_count", "count")
OWN = ("user", "item", "history", "time", "value", "label", "seen", "candidates", *COUNTS)
_PIECE = 2**20  # events in memory at a time in lists


def write(
    read: Callable[[], Staged],
    out: Path,
    dataset: str,
    source: Callable[[], dict[str, str]],
    rows: Rows = "users",
    teaches_valid: bool = False,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Write train/, valid/, test/, items.parquet, trained_items.parquet, users.parquet, and dataset.json last.

    Args:
        read: reads the events; about 50 bytes of each are held in memory. Called once `out` can be written.
        out: a new or empty folder. One that holds finished data of the same source and options is left as it is.
        dataset: its name.
        source: tells where the events are from; likewise.
        rows: `users`: a row per user in each split, its item and the history before it. `events`: in training a row per
            event, in the other splits one per item that the user's is ranked among, with a label of 1 or 0.
        teaches_valid: whether the events that choose teach too, as in final models of papers with fixed settings.
        progress: told in a few words what is being done.

    Returns:
        What dataset.json holds.

    Raises:
        BadInput: `out` holds something else or cannot be written; a column has a name of ours.
    """
    found = layout.finished(out)
    if found is None:
        layout.begin(out)
    said = {"dataset": dataset, "protocol": "next-item", "version": VERSION, "source": source(), "rows": rows}
    said |= {"teaches_valid": teaches_valid}
    if found is not None:
        if all(found.get(key) == value for key, value in said.items()):
            progress(f"{out} is already prepared")
            return found
        raise BadInput(f"{out} holds other prepared data ({layout.MANIFEST} says so); name a new folder or remove it")
    samples = _Samples(read(), teaches_valid)
    splits: dict[str, Any] = {}
    for split, stage in zip(layout.SPLITS, (TRAIN, VALID, TEST), strict=True):
        pieces = samples.by_user(stage) if rows == "users" else samples.by_event(stage)
        empty = next(pieces)
        splits[split] = {"rows": layout.write_split(out, split, empty.schema, pieces)}
        progress(f"{split}: {splits[split]['rows']:,} rows")
    items, users = samples.items(), samples.users()
    trained = items.filter(pc.greater(items["count"], 0))
    for name, table in (("items", items), ("trained_items", trained), ("users", users)):
        layout.write_part(out / f"{name}.parquet", table.schema, [table])
    columns = {field.name: str(field.type) for field in empty.schema}
    told = {"counts": samples.counts(), "splits": splits, "roles": _roles(empty.schema), "columns": columns}
    return layout.finish(out, said | told)


class _Samples:
    """Builds a split's rows, a piece at a time; the first piece of each is empty and tells the columns.

    Args:
        staged: the events.
        teaches_valid: whether those that choose teach too.

    Raises:
        BadInput: a column of users or items has a name of ours, or of the other's.
    """

    def __init__(self, staged: Staged, teaches_valid: bool) -> None:
        self.staged = staged
        self.taught = staged.stage <= (VALID if teaches_valid else TRAIN)  # (N,), the first ones of each user
        self.item_count = np.bincount(staged.item[self.taught], minlength=len(staged.items))
        self.begin = np.searchsorted(staged.user, np.arange(len(staged.users) + 1))  # of each user's events
        self.of_user, self.of_item = (_plain(names.columns) for names in (staged.users, staged.items))
        for name, column in self.of_item.items():  # one id where it is missing, of an item as of an event
            self.of_item[name] = column.fill_null(0) if pa.types.is_int64(column.type) else column
        for name in (*self.of_user, *self.of_item):
            if name in OWN or name in self.of_user and name in self.of_item or name.startswith("history_"):
                raise BadInput(f"column '{name}' of users or items is a name that samples have; call it otherwise")

    def by_user(self, stage: int) -> Iterator[pa.Table]:
        """Yield a row per user who has an event of the stage: the last one, and the events before it."""
        user = self.staged.user
        own = np.flatnonzero(self.taught if stage == TRAIN else self.staged.stage == stage)
        last = own[np.diff(user[own], append=-1) != 0]
        first = np.maximum(self.begin[user[last]], last - HISTORY)
        yield self._user_rows(stage, last[:0], first[:0])
        for part in _pieces(last - first + 1):
            yield self._user_rows(stage, last[part], first[part])

    def _user_rows(self, stage: int, event: np.ndarray, first: np.ndarray) -> pa.Table:
        """Return a row for each of some events, with the history from `first` on."""
        offsets, before = _ragged(first, event - first)
        history = self.staged.item[before]
        made = self._rows(event, self.staged.item[event]) | {
            "history": layout.lists(offsets, history + 1, pa.int64()),
            "history_count": pa.array(event - first),
            "label": pa.array(np.ones(len(event), np.int8)),
        }
        if self.staged.time is not None:
            made["history_time"] = layout.lists(offsets, self.staged.time[before] // 10**6, pa.int64())
        if self.staged.value is not None:
            value = pa.array(self.staged.value[before])
            made["history_value"] = layout.lists(offsets, value, value.type)
        for name, column in self.of_item.items():
            if pa.types.is_int64(column.type):
                made[f"history_{name}"] = layout.lists(offsets, column.take(pa.array(history)), pa.int64())
        if self.staged.listed:
            offsets, items = self._listed(stage, self.staged.user[event])
            made["candidates"] = layout.lists(offsets, items + 1, pa.int64())
        return pa.table(made)

    def by_event(self, stage: int) -> Iterator[pa.Table]:
        """Yield rows of single items: those that teach, or each user's item and those that it is ranked among."""
        user = self.staged.user
        own = np.flatnonzero(self.taught if stage == TRAIN else self.staged.stage == stage)
        build = self._taught_rows if stage == TRAIN else partial(self._ranked_rows, stage)
        yield build(own[:0])
        lists = np.diff(self.begin if stage == TRAIN else self.staged.listed[stage][0])[user[own]]
        for part in _pieces(lists + 1):
            yield build(own[part])

    def _taught_rows(self, event: np.ndarray) -> pa.Table:
        begin = self.begin[self.staged.user[event]]
        taught = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.taught)])
        offsets, seen = _ragged(begin, taught[self.begin[self.staged.user[event] + 1]] - taught[begin])
        made = self._rows(event, self.staged.item[event])
        made["seen"] = layout.lists(offsets, self.staged.item[seen] + 1, pa.int64())
        return pa.table(made | {"label": pa.array(np.ones(len(event), np.int8))})

    def _ranked_rows(self, stage: int, event: np.ndarray) -> pa.Table:
        offsets, others = self._listed(stage, self.staged.user[event])
        row = np.repeat(np.arange(len(event)), np.diff(offsets) + 1)  # an event's own item stands before the others
        is_own = np.diff(row, prepend=-1) != 0
        items = np.empty(len(row), np.int64)
        items[is_own], items[~is_own] = self.staged.item[event], others
        made = self._rows(event[row], items)
        if "value" in made:
            made["value"] = pc.if_else(pa.array(is_own), made["value"], None)
        made["seen"] = layout.lists(np.zeros(len(row) + 1, np.int64), others[:0], pa.int64())
        return pa.table(made | {"label": pa.array(is_own.astype(np.int8))})

    def _listed(self, stage: int, user: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what users' items of a stage are ranked among: none while they teach."""
        if stage not in self.staged.listed:
            return np.zeros(len(user) + 1, np.int64), np.zeros(0, np.int64)
        begin, items = self.staged.listed[stage]
        offsets, places = _ragged(begin[user], begin[user + 1] - begin[user])
        return offsets, items[places]

    def _rows(self, event: np.ndarray, item: np.ndarray) -> dict[str, pa.Array]:
        """Return the columns that rows of any kind have: of events, with these items."""
        user = self.staged.user[event]
        made = {"user": pa.array(user + 1), "item": pa.array(item + 1)}
        if self.staged.time is not None:
            made["time"] = pa.array(self.staged.time[event] // 10**6)
        if self.staged.value is not None:
            made["value"] = pa.array(self.staged.value[event])
        made |= {name: column.take(pa.array(user)) for name, column in self.of_user.items()}
        made |= {name: column.take(pa.array(item)) for name, column in self.of_item.items()}
        return made | {"item_count": pa.array(self.item_count[item])}

    def items(self) -> pa.Table:
        """Return a row per item."""
        ids = pa.array(np.arange(1, len(self.staged.items) + 1))
        made = {"item": ids, "item_id": self.staged.items.ids, "count": pa.array(self.item_count)}
        return pa.table(made | self.of_item)

    def users(self) -> pa.Table:
        """Return a row per user."""
        ids = pa.array(np.arange(1, len(self.staged.users) + 1))
        return pa.table({"user": ids, "user_id": self.staged.users.ids} | self.of_user)

    def counts(self) -> dict[str, int | float]:
        """Return how many there are of what.

        `cold_test_rows` have an item of which no event teaches; `loo_correction` is the share of test rows whose item
        is in an earlier split: some published tables divide by those alone.
        """
        tests = self.staged.stage == TEST
        target, before = self.staged.item[tests], np.unique(self.staged.item[~tests])
        return {
            "users": len(self.staged.users),
            "items": len(self.staged.items),
            "events": len(self.staged.user),
            "taught": int(self.taught.sum()),
            "trained_items": int((self.item_count > 0).sum()),
            "cold_test_rows": int((self.item_count[target] == 0).sum()),
            "loo_correction": float(np.isin(target, before).mean()),
            "longest": int(np.diff(self.begin).max()),
        }


def _pieces(sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the places of rows with so many values each, of about `_PIECE` values together."""
    piece = np.cumsum(sizes) // _PIECE
    for part in np.split(np.arange(len(sizes)), np.flatnonzero(np.diff(piece)) + 1):
        if len(part):
            yield part


def _ragged(begin: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (R + 1,) offsets, and the places begin[r] .. begin[r] + lengths[r] - 1 of all R rows one after another."""
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return offsets, np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], lengths)


def _plain(table: pa.Table) -> dict[str, pa.Array]:
    """Return columns as samples have them: integers, float32, ids of strings, lists of ids."""
    made: dict[str, pa.Array] = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        kind = column.type
        if is_list(kind) and column.flatten().null_count:
            raise BadInput(f"column '{name}' of users or items has a null inside a list; leave it out of the list")
        if is_text(kind):
            column = string_ids(column)
        elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            column = column.cast(pa.int64())
        elif pa.types.is_floating(kind):
            column = column.cast(pa.float32())
        elif is_list(kind) and is_text(kind.value_type):
            filled = column.cast(pa.list_(kind.value_type)).fill_null([])
            column = layout.lists(filled.offsets, string_ids(filled.values), pa.int64())
        elif not is_list(kind):
            raise BadInput(f"column '{name}' of users or items is {kind}; give numbers, strings or lists of them")
        made[name] = column
    return made


def _roles(schema: pa.Schema) -> dict[str, Any]:
    """Return which part each column plays."""
    counts = ("item_count", "history_count")
    dense = [field.name for field in schema if pa.types.is_floating(field.type)]
    ids = [
        field.name for field in schema if pa.types.is_int64(field.type) and field.name not in (*counts, "time", "value")
    ]
    lists = [field.name for field in schema if is_list(field.type) and pa.types.is_integer(field.type.value_type)]
    return {
        "time": None,  # leave-one-out lets training know what others did later
        "group": "user",
        "item": "item",
        "labels": [],  # which events teach by being there: their label is 1 throughout
        "ids": ids,
        "sequences": [name for name in lists if name not in ("history_time", "history_value", "candidates", "seen")],
        "dense": dense,
    }
