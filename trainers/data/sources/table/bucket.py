"""The samples of one period and one bucket of users: histories, and counts up to each row's own moment.

A bucket is a pure function of its files, so buckets are made side by side. Whatever a row is told of the past is
strictly before its time: rows of the same millisecond are not part of it, in whatever order they lie in the files.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from livetrain.configs.spec import Spec
from livetrain.trainers.data.write import layout
from livetrain.trainers.data.write.counts import earlier, rates, tallies
from livetrain.trainers.data.write.history import Timeline

NOBODY = -1
"""In a history, of what has no id: a list has no nulls."""
NEVER = np.iinfo(np.int64).max
PIECE = 32_768  # rows in memory at a time with their lists
ROW = "livetrain row"


@dataclass(frozen=True)
class Task:
    """One bucket of one period.

    Args:
        spec: of the samples.
        binary: labels that are 0 or 1.
        number: of the bucket.
        rows: folder of Parquet files, which may be absent.
        schema: of its rows.
        before: the state that the period before left, if any.
        parts: split -> file to write; a split without rows gets none unless it is the only one.
        state: folder to write what the next period needs to.
    """

    spec: Spec
    binary: list[str]
    number: int
    rows: Path
    schema: pa.Schema
    before: Path | None
    parts: dict[str, Path]
    state: Path


def build(task: Task) -> dict[str, int]:
    """Write one bucket's samples and its users' newest rows; return counts for the report."""
    spec = task.spec
    parts = [pq.read_table(path, partitioning=None) for path in sorted(task.rows.glob("*.parquet"))]
    table = pa.concat_tables(parts) if parts else task.schema.empty_table()
    order = [("timestamp", "ascending")] if spec.time else []
    rows = table.sort_by([*order, (ROW, "ascending")]).combine_chunks()
    histories = {name: _History(task, name, rows) for name in spec.histories}
    for history in histories.values():
        history.keep()
    columns, outcomes = _told(task, rows) | _seen(task, rows), {name: rows[name] for name in spec.labels}
    counts: dict[str, int] = {}
    places: dict[str, list[int]] = {name: [] for name in task.parts}
    for place, name in enumerate(rows["split"].to_pylist()):
        places[name].append(place)
    for name, path in task.parts.items():
        chosen = np.asarray(places[name], np.int64)
        if not len(chosen) and len(task.parts) > 1:
            continue

        def pieces(chosen: np.ndarray = chosen) -> Iterator[pa.Table]:
            for start in range(0, max(len(chosen), 1), PIECE):
                taken = chosen[start : start + PIECE]
                made = {title: column.take(pa.array(taken)) for title, column in columns.items()}
                made |= {title: part for history in histories.values() for title, part in history.lists(taken).items()}
                yield pa.table(made | {title: column.take(pa.array(taken)) for title, column in outcomes.items()})

        made = pieces()
        first = next(made)
        layout.write_part(path, first.schema, _again(first, made))
        counts |= {f"rows of {name}": len(chosen)}
        for label in task.binary:
            values = outcomes[label].take(pa.array(chosen))
            counts |= {f"{label} of {name}: 1": pc.sum(values).as_py() or 0}
            counts |= {f"{label} of {name}: 0 or 1": len(values) - values.null_count}
    return counts


def _again(first: pa.Table, others: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from others


def _numbers(table: pa.Table, name: str, missing: int = NOBODY) -> np.ndarray:
    """Return an integer column, (N,) with `missing` for null."""
    return table[name].fill_null(missing).to_numpy() if len(table) else np.zeros(0, np.int64)


def _vectors(table: pa.Table, name: str, width: int) -> np.ndarray:
    """Return a column of vectors, (N, width) float32 with NaN for null."""
    column = table[name].combine_chunks()
    found = np.full((len(column), width), np.nan, np.float32)
    there = column.is_valid().to_numpy(zero_copy_only=False)
    found[there] = column.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False).reshape(-1, width)
    return found


def _arrow(values: np.ndarray) -> pa.Array:
    """Return (N,) integers or (N, width) vectors as a column; NaN is null."""
    if values.ndim == 1:
        return pa.array(values)
    flat = values.reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, mask=np.isnan(flat)), values.shape[1])


def _told(task: Task, rows: pa.Table) -> dict[str, pa.Array]:
    """Return the columns that come with the rows, and the rates of earlier days."""
    spec = task.spec
    names = [*spec.columns, *(("timestamp", "hour", "weekday") if spec.time else ())]
    columns = {name: _plain(rows[name]) for name in names}
    for name in spec.counts:
        done = {label: _numbers(rows, f"{name}.{label}", 0) for label in task.binary}
        columns |= rates(name, _numbers(rows, f"{name}.n", 0), done)
    return columns


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of the types that train fastest: lists whose elements are never null."""
    kind = column.type
    if pa.types.is_list(kind):
        return column.cast(layout.list_of(kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return column.cast(pa.list_(pa.field("element", pa.float32(), nullable=False), kind.list_size))
    return column


def _seen(task: Task, rows: pa.Table) -> dict[str, pa.Array]:
    """Return `<user>_seen_*` and `<user>_<column>_*`: counts of the user's rows before each row's own moment."""
    from livetrain.trainers.data.sources.table.period import seen

    spec = task.spec
    columns: dict[str, pa.Array] = {}
    for name in seen(spec):
        assert spec.user is not None
        user, other, time = (_numbers(rows, column) for column in (spec.user, name, "timestamp"))
        here = ~rows[name].is_null().to_numpy() if len(rows) else np.zeros(0, bool)
        pair = _codes(user, other)
        flags = [np.ones(len(user), bool), *(_numbers(rows, label, 0) == 1 for label in task.binary)]
        counts, last = earlier(pair[here], time[here], pair, time, [flag[here] for flag in flags])
        counts = [np.where(here, count, 0) for count in counts]
        before = [_numbers(rows, f"seen.{name}.{what}", 0) for what in ("n", *task.binary)]
        shown, *done = (now + then for now, then in zip(counts, before, strict=True))
        actions = dict(zip(task.binary, done, strict=True))
        last = np.maximum(last, _numbers(rows, f"seen.{name}.last"))
        if name == spec.user:
            columns |= rates(f"{name}_seen", shown, actions)
        else:
            columns |= tallies(f"{spec.user}_{name}", shown, actions, last, time)
    return columns


def _codes(user: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return one integer per pair, equal for equal pairs."""
    users, others = (np.unique(part, return_inverse=True) for part in (user, other))
    return users[1].astype(np.int64) * max(len(others[0]), 1) + others[1]


class _History:
    """The entries of one history: those of the periods before, and the period's own."""

    def __init__(self, task: Task, name: str, rows: pa.Table):
        history = task.spec.histories[name]
        assert task.spec.user is not None
        self._task, self._name, self._of, self._limit = task, name, history.of, history.last
        widths = {f"of_{k}": task.spec.columns[of].width for k, of in enumerate(history.of)}
        self._types = {
            name: pa.int64() if width is None else pa.list_(pa.float32(), width)
            for name, width in ({"user": None, "time": None} | widths).items()
        }
        new = rows if history.when is None else rows.filter(pc.fill_null(pc.equal(rows[history.when], 1), False))
        old = self._old()
        here = pc.is_in(old["user"], rows[task.spec.user].combine_chunks())
        self._idle, old = old.filter(pc.invert(here)), old.filter(here)  # of users who have no row in this period
        names = {"user": task.spec.user, "time": "timestamp"} | {f"of_{k}": of for k, of in enumerate(history.of)}
        self._entries = {}
        for own, column in names.items():
            parts = ((old, own), (new, column))
            width = widths.get(own)
            self._entries[own] = np.concatenate(
                [_numbers(*part) if width is None else _vectors(*part, width) for part in parts]
            )
        self._timeline = Timeline(self._entries["user"], self._entries["time"])
        self._at = _numbers(rows, "timestamp")
        self._spans = self._timeline.before(_numbers(rows, task.spec.user), self._at)

    def _old(self) -> pa.Table:
        path = self._task.before / "histories" / self._name if self._task.before else None
        if path is None:
            return pa.schema(self._types.items()).empty_table()
        return pq.read_table(path / f"part-{self._task.number:05d}.parquet", partitioning=None).combine_chunks()

    def lists(self, rows: np.ndarray) -> dict[str, pa.Array]:
        """Return the list columns of some rows."""
        offsets, events = self._timeline.latest(self._spans[rows], self._limit)
        values = {of: self._entries[f"of_{k}"][events] for k, of in enumerate(self._of)}
        seconds = np.maximum((np.repeat(self._at[rows], np.diff(offsets)) - self._entries["time"][events]) // 1000, 1)
        values["gap"] = (np.frexp(seconds)[1] - 1).astype(np.int64)
        columns = {f"{self._name}_{suffix}": _arrow(part) for suffix, part in values.items()}
        return {name: layout.lists(offsets, column, column.type) for name, column in columns.items()}

    def keep(self) -> None:
        """Write what rows of the next period can still see."""
        users = np.unique(self._entries["user"])
        spans = self._timeline.before(users, np.full(len(users), NEVER))
        _, events = self._timeline.latest(spans, self._limit)
        folder = self._task.state / "histories" / self._name
        folder.mkdir(parents=True, exist_ok=True)
        kept = pa.table({name: _arrow(column[events]) for name, column in self._entries.items()})
        path = folder / f"part-{self._task.number:05d}.parquet"
        pq.write_table(pa.concat_tables([self._idle.cast(kept.schema), kept]), path, compression="zstd")
