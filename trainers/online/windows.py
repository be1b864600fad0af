"""A log of requests a stretch of time at a time, so that a day of it is never in memory."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from livetrain.trainers.online import request_log

CANDIDATES = 250_000
"""Of a stretch, about."""
_REQUESTS = 256  # read at a time


class Group(NamedTuple):
    """A row group, and the times, in ms, of its first and last row."""

    path: Path
    number: int
    rows: int
    first: int
    last: int


def groups(paths: Iterable[Path], column: str, ms: Callable[[pa.ChunkedArray], np.ndarray]) -> Iterator[Group]:
    """Yield the row groups that have rows.

    Args:
        paths: of Parquet files.
        column: of the times.
        ms: what makes them ms.
    """
    for path in paths:
        with pq.ParquetFile(path) as file:
            for number in range(file.num_row_groups):
                if len(times := ms(file.read_row_group(number, [column])[column])):
                    yield Group(path, number, len(times), int(times.min()), int(times.max()))


class Log:
    """A log of requests.

    Args:
        place: a folder, of a day or of days, or one file.

    Attributes:
        empty: a table with its columns and no request.

    Raises:
        BadInput: there is no log.
    """

    def __init__(self, place: str) -> None:
        schemas = {path: request_log.schema(path) for path in request_log.paths(place)}
        self.empty = pa.unify_schemas([*schemas.values()], promote_options="permissive").empty_table()
        self._groups = [*groups(schemas, "time", pa.ChunkedArray.to_numpy)]

    def stretches(self, column: str) -> list[tuple[int, int]]:
        """Return [begin, end) in ms by order, which hold all requests, each of about `CANDIDATES` candidates.

        Args:
            column: a feature, of which each candidate has one value.
        """
        weights: dict[int, float] = {}  # of each second
        for group in self._groups:
            with pq.ParquetFile(group.path) as file:
                about = file.metadata.row_group(group.number)
                leaves = (about.column(n) for n in range(about.num_columns))
                values = next(leaf.num_values for leaf in leaves if leaf.path_in_schema.split(".")[0] == column)
                times = file.read_row_group(group.number, ["time"])["time"].to_numpy()
            for second, count in zip(*np.unique(times // 1000, return_counts=True), strict=True):
                weights[int(second)] = weights.get(int(second), 0.0) + values * int(count) / group.rows
        begins, held = sorted(weights)[:1], 0.0
        for second in sorted(weights):
            if held and held + weights[second] > CANDIDATES:
                begins.append(second)
                held = 0.0
            held += weights[second]
        ends = [*begins[1:], max(weights, default=0) + 1]
        return [(1000 * begin, 1000 * end) for begin, end in zip(begins, ends, strict=False)]

    def read(self, begin: int, end: int) -> pa.Table:
        """Return the requests of a stretch, [begin, end) in ms."""
        found = [self.empty]
        for group in self._groups:
            if group.first < end and group.last >= begin:
                with pq.ParquetFile(group.path) as file:
                    for batch in file.iter_batches(_REQUESTS, row_groups=[group.number]):
                        time = batch["time"].to_numpy()
                        there = pa.array(np.flatnonzero((time >= begin) & (time < end)))
                        found += [pa.table(batch).take(there)] if len(there) else []
        return pa.concat_tables(found, promote_options="permissive").combine_chunks()
