"""The samples of one day and one bucket of users: labels, and what `known.py` tells.

A bucket is a pure function of the files that it is given, so buckets can be made side by side, in processes or on a
cluster.
"""

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.sources.events.known import (
    EVENT_ORDER,
    NEVER,
    PIECE,
    Known,
    Options,
    begun,
    entry_columns,
    latest_owner,
    numbers,
    pair_codes,
)
from livetrain.trainers.data.sources.events.model import CLICK, EXPOSURE, RETURNED, WATCH, Adapter
from livetrain.trainers.data.write import layout


@dataclass(frozen=True)
class Task:
    """One bucket of one day. `rows` and `events` are folders of Parquet files, which may be absent.

    Args:
        horizon: ms; the statistics that come with the rows count what was known before it.
        cut: ms, the end of the day: what is known later is not known to its labels.
        next_horizon: ms, the next day's.
        before: the state that the day before left, if any.
        part, state: file and folder to write.
        every, wait: ms; of a stream, whose rows' labels are told what is known until `wait` after the end of the
            interval of length `every` that a row falls into; without them, what is known at `cut`.
    """

    adapter: Adapter
    options: Options
    bucket: int
    rows: Path
    rows_schema: pa.Schema
    events: Path
    events_schema: pa.Schema
    horizon: int
    cut: int
    next_horizon: int
    before: Path | None
    part: Path
    state: Path
    every: int | None = None
    wait: int = 0

    def cuts(self, time: np.ndarray) -> np.ndarray:
        """Return what is known to the labels of rows of some times: what is known before these, (R,) ms."""
        if self.every is None:
            return np.full(len(time), self.cut)
        return np.minimum((time // self.every + 1) * self.every + self.wait, self.cut)


def build(task: Task) -> dict[str, int]:
    """Write one bucket's samples and what the next day needs of its histories; return counts for the report.

    Raises:
        BadInput: this machine does not see the folder of the preparation.
    """
    if not task.part.parent.is_dir():
        raise BadInput(
            f"{task.part.parent}: {platform.node()} does not see this folder; --out must lie on storage that all nodes "
            "share"
        )
    whole = Bucket(task)
    whole.keep()
    pieces, unanswered = whole.samples()
    first = next(pieces)  # of a day without rows too: it has the schema
    rows = layout.write_part(task.part, first.schema, chain([first], pieces))
    return {"rows": rows, "actions that answer no exposure: kept, in histories and statistics": unanswered}


class Bucket:
    """What a bucket's files hold, in memory."""

    def __init__(self, task: Task):
        self._task = task
        self._rows = _read(task.rows, task.rows_schema, ["time", "user", "item"])
        events = _read(task.events, task.events_schema, EVENT_ORDER)
        self._known = Known(task.adapter, task.options, task.horizon, self._rows, events, self._entries)

    def _entries(self, name: str) -> pa.Table:
        names, before = entry_columns(self._task.adapter.sequences[name]), self._task.before
        path = before / "sequences" / name / f"part-{self._task.bucket:05d}.parquet" if before else None
        if path is None:
            return pa.schema([(name, pa.int64()) for name in names]).empty_table()
        return pq.read_table(path, columns=names, partitioning=None).combine_chunks()

    def keep(self) -> None:
        """Write what the next day needs of the histories."""
        for name, history in self._known.histories.items():
            path = self._task.state / "sequences" / name / f"part-{self._task.bucket:05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(history.kept(self._task.next_horizon), path, compression="zstd")

    def samples(self) -> tuple[Iterator[pa.Table], int]:
        """Return the samples in pieces, at least one, and how many actions answer no exposure."""
        task, rows = self._task, self._rows
        own = self._known.fresh.filter(pc.equal(self._known.fresh["domain"], task.adapter.domain))
        outcomes, unanswered = labels(task, rows, own)
        columns = self._known.columns()
        if task.adapter.visits:
            outcomes[RETURNED] = pa.nulls(len(rows), pa.int8())  # the next day tells; see returns.py

        def piece(start: int) -> pa.Table:
            lists = self._known.lists(start)
            cut = {name: column.slice(start, PIECE) for name, column in (columns | outcomes).items()}
            return pa.table({name: (cut | lists)[name] for name in (*columns, *lists, *outcomes)})

        return map(piece, range(0, max(len(rows), 1), PIECE)), unanswered


def _read(folder: Path, schema: pa.Schema, order: list[str]) -> pa.Table:
    """Return a folder's rows in an order that does not depend on who wrote them."""
    parts = [pq.read_table(path, partitioning=None) for path in sorted(folder.glob("*.parquet"))]
    table = pa.concat_tables(parts) if parts else schema.empty_table()
    return table.sort_by([(name, "ascending") for name in order]).combine_chunks()


def labels(task: Task, rows: pa.Table, events: pa.Table) -> tuple[dict[str, pa.Array], int]:
    """Return the label columns of R exposures, and how many actions answer none of them.

    An action answers the latest exposure of its user and item at or before it, which need not be one of the rows. A
    label is null while it is not known: until its delay is over, and, if the source tells it with the end of a play,
    while one goes on.

    Args:
        rows: the exposures.
        events: of their domain; exposures among them after the last of the rows answer for their own actions.
    """
    time = numbers(rows, "time")
    shown = pc.equal(events["kind"], EXPOSURE)
    actions, later = events.filter(pc.invert(shown)), events.filter(shown)
    later = later.filter(pc.greater(later["time"], int(time.max(initial=NEVER if not len(time) else 0))))
    owners = [np.concatenate([numbers(part, name) for part in (rows, later)]) for name in ("user", "item", "time")]
    pair, wanted = pair_codes((owners[0], owners[1]), (numbers(actions, "user"), numbers(actions, "item")))
    begin, known_at, kind = begun(actions), numbers(actions, "time"), numbers(actions, "kind")
    owner = latest_owner(pair, owners[2], wanted, begin)
    owner[owner >= len(time)] = -1
    value = actions["value"].to_numpy() if len(actions) else np.zeros(0)
    cut = task.cuts(time)
    wait = begin - time[np.maximum(owner, 0)] if len(time) else np.zeros(len(begin), np.int64)

    def count(chosen: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(owner[chosen], None if weights is None else weights[chosen], len(time))

    made = {}
    told = known_at < (cut[np.maximum(owner, 0)] if len(time) else task.cut)
    if task.every is not None:  # what comes later than that is the night's affair
        owner[~told] = -1
    clicked = count((owner >= 0) & told & (kind == CLICK)) > 0
    watched = count((owner >= 0) & told & (kind == WATCH) & ~np.isnan(value)) > 0
    for name, label in task.adapter.labels.items():
        chosen, known = (owner >= 0) & (kind == label.kind), np.ones(len(time), bool)
        if label.delay is not None:
            delay = 1000 * task.options.seconds(label.delay)
            chosen &= told & (wait <= delay)
            known = time + delay <= cut
        positive = count(chosen) > 0
        if label.session:
            known &= ~clicked | watched | (positive & (not label.total))
        if label.total:
            known &= count(chosen & np.isnan(value)) == 0
            made[name] = pa.array(count(chosen, np.nan_to_num(value)).astype(np.float32), mask=~known)
        else:
            made[name] = pa.array(positive.astype(np.int8), mask=~known)
    return made, int((owner < 0).sum())
