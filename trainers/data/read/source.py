"""A split on disk: its files found, its footers read, its columns checked against the recipe."""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe, Task
from livetrain.modules.tasks.registry import kinds
from livetrain.trainers.data.read.files import (
    IdKind,
    check_columns,
    common,
    id_kinds,
    read_footer,
    settled,
    short,
    shown,
    split_files,
    wanted_columns,
    worded,
)
from livetrain.trainers.data.read.measure import Measure, Measured
from livetrain.trainers.data.read.slices import Slices

log = logging.getLogger(__name__)

_FOOTER_THREADS = 16  # footers are small and far away: waiting, not work
_OPEN_FILES = 4  # that a thread keeps open


class CorruptGroup(BadInput):
    """A row group whose bytes arrive but do not decode."""


@dataclass(frozen=True)
class RowGroup:
    """One row group: its file's path within the filesystem, its number in the file, its rows."""

    path: str
    index: int
    rows: int


@dataclass
class Source:
    """One split of the data, opened once: footers read, columns checked. Picklable.

    A row's number is its position in (sorted files, row groups, rows).
    """

    folder: str  # for messages, without credentials
    filesystem: fs.FileSystem
    groups: list[RowGroup]
    schema: pa.Schema  # of the columns that the recipe names, and of no others; files may store them otherwise
    drawn: list[int] = field(default_factory=list)  # rows that negatives add to each row group (read/negatives.py)
    _footers: dict[str, pq.FileMetaData] = field(default_factory=dict, repr=False)
    _leaves: dict[str, dict[str, int]] = field(default_factory=dict, repr=False)  # by file and column, as `_leaf`
    _open: threading.local = field(default_factory=threading.local, repr=False, compare=False)

    @classmethod
    def open(cls, recipe: Recipe, split: str) -> "Source":
        """Open a split of `data.path`, in a local folder or at any address that pyarrow knows.

        The address chooses the filesystem: file://, s3://, gs://, hdfs://, abfs://, and fsspec+NAME:// for whatever an
        installed fsspec offers. Credentials come from the environment, as each filesystem documents.

        Raises:
            BadInput: whatever footers can show: no folder, no files, no rows, a file that is not whole, a missing
                column, a column of the wrong type, files that differ, a slice whose condition cannot be asked.
        """
        filesystem, folder, paths = split_files(recipe, split)
        source = cls(folder, filesystem, [], pa.schema([]))
        source._read_footers(paths, wanted_columns(recipe))
        if not source.rows:
            raise BadInput(f"{source.folder}: the split has no rows; prepare the data again with a non-empty {split}")
        Slices(recipe.evaluate.slices).check(source.schema, source.folder)
        return source

    def _read_footers(self, paths: list[str], wanted: list[tuple[str, str, str]]) -> None:
        """Check the files' columns, and keep the row groups that hold rows."""
        with ThreadPoolExecutor(min(_FOOTER_THREADS, len(paths))) as pool:
            opened = list(pool.map(partial(read_footer, self.filesystem), paths))
        found: dict[str, tuple[str, pa.DataType]] = {}
        for path, (footer, schema) in zip(paths, opened, strict=True):
            for column, kind in check_columns(self.shown(path), schema, wanted).items():
                found[column] = self._joined(column, path, kind, *found.get(column, (path, kind)))
            self._footers[path] = footer
            groups = [RowGroup(path, i, footer.row_group(i).num_rows) for i in range(footer.num_row_groups)]
            self.groups += [group for group in groups if group.rows]
        self.schema = settled({column: kind for column, (_, kind) in found.items()}, wanted)

    def _joined(
        self, column: str, path: str, kind: pa.DataType, first: str, before: pa.DataType
    ) -> tuple[str, pa.DataType]:
        """Return a column's type so far, and the first file that has it: (its type in a file, and in those before).

        Raises:
            BadInput: the two mean different things.
        """
        both = common((before, kind))
        if both is None:
            raise BadInput(
                f"{self.shown(path)}: column '{column}' is {worded(kind)} here and {worded(before)} in "
                f"{self.shown(first)}; write all files of a split with one schema"
            )
        return (first if both == before else path), both

    @property
    def rows(self) -> int:
        """Rows of the split."""
        return sum(group.rows for group in self.groups)

    @property
    def columns(self) -> list[str]:
        """Names of the columns that the recipe uses."""
        return self.schema.names

    def shown(self, path: str) -> str:
        """Return a file's name as messages give it."""
        return shown(self.filesystem, path)

    def place(self, group: RowGroup) -> str:
        """Return where a row group is, as messages give it."""
        return f"{self.shown(group.path)}, row group {group.index}"

    def statistics(self, group: RowGroup, column: str) -> pq.Statistics | None:
        """Return what the footer says about a column's values, or a list column's elements, in a row group."""
        place = self._leaf(group, column)
        return None if place is None else self._metadata(group.path).row_group(group.index).column(place).statistics

    def _leaf(self, group: RowGroup, column: str) -> int | None:
        """Return which of the columns in a file, a struct's parts apart, holds a column or a list column's elements."""
        if group.path not in self._leaves:
            self._leaves[group.path] = _places(self._metadata(group.path).schema.to_arrow_schema())
        return self._leaves[group.path].get(column)

    def id_range(self, column: str) -> tuple[int, int] | None:
        """Return the least and the largest id of a column; None where the footers do not say, or there are no ids."""
        lows, highs = [], []
        for group in self.groups:
            found = self.statistics(group, column)
            if found is None and self._is_null(group, column):
                continue
            if found is None or not (found.has_min_max or found.num_values == 0):
                return None
            if found.has_min_max and isinstance(found.min, str):  # the order of strings is not that of their ids
                return None
            if found.has_min_max:
                lows.append(found.min)
                highs.append(found.max)
        return (min(lows), max(highs)) if lows else None

    def is_null(self, column: str) -> bool:
        """Say whether all files have a column that is null throughout, of a writer that knew no type."""
        return all(self._is_null(group, column) for group in self.groups)

    def id_kinds(self, recipe: Recipe) -> dict[str, IdKind]:
        """Return what `id_kinds` does of the split's columns."""
        found = id_kinds(recipe, {field.name: field.type for field in self.schema})
        return {name: kind for name, kind in found.items() if not self.is_null(recipe.column(name))}

    def _is_null(self, group: RowGroup, column: str) -> bool:
        """Say whether a file has a column that is null throughout, or lists of null, of a writer that knew no type."""
        place = self._leaf(group, column)
        if place is None:
            return False
        kind = self._metadata(group.path).schema.column(place).logical_type.type
        return kind == "UNKNOWN"  # as Parquet calls what is null throughout

    def nulls(self, column: str) -> int:
        """Return how many nulls a column has; read only where its footers do not say. Of unreadable rows none counts.

        Raises:
            BadInput: a file cannot be read.
        """
        return sum(self._nulls(group, column) for group in self.groups)

    def _nulls(self, group: RowGroup, column: str) -> int:
        found = self.statistics(group, column)
        if found is not None and found.has_null_count:
            return found.null_count
        try:
            return self.read(group, [column]).column(0).null_count
        except CorruptGroup:  # of which others speak, as the recipe's on_corrupt says
            return 0

    def read(self, group: RowGroup, columns: list[str]) -> pa.Table:
        """Read some columns of a row group, in the calling thread.

        A failed read is tried a second time, so a lost connection is not taken for a broken file.

        Raises:
            CorruptGroup: the bytes are there and do not decode.
            BadInput: the file cannot be read at all.
        """
        try:
            return self._decode(group, columns)
        except (pa.ArrowException, OSError) as first:
            log.info("%s, row group %d: %s; reading it again", self.shown(group.path), group.index, first)
        try:
            return self._decode(group, columns)
        except (pa.ArrowException, OSError) as error:
            place = self.place(group)
            if not self._arrives(group):
                raise BadInput(
                    f"{place}: the file cannot be read ({short(error)}); restore it or the access to it"
                ) from error
            raise CorruptGroup(
                f"{place}: its {group.rows} rows do not decode ({short(error)}); write the file again, or set "
                "data.on_corrupt: skip to train without them"
            ) from error

    def _decode(self, group: RowGroup, columns: list[str]) -> pa.Table:
        files: dict[str, pq.ParquetFile] = self._open.__dict__  # this thread's, the last one used at the end
        file = files.pop(group.path, None) or self._opened(group.path)
        table = file.read_row_group(group.index, columns=columns, use_threads=False)
        if table.num_rows != group.rows:
            raise pa.ArrowInvalid(f"{table.num_rows} rows instead of {group.rows}")
        while len(files) >= _OPEN_FILES:
            del files[next(iter(files))]
        files[group.path] = file  # a file that could not be read is not kept: its second try opens it again
        fields = pa.schema([self.schema.field(name) for name in columns])
        return pa.Table.from_arrays([_as(table.column(field.name), field.type) for field in fields], schema=fields)

    def _opened(self, path: str) -> pq.ParquetFile:
        return pq.ParquetFile(
            self.filesystem.open_input_file(path),
            metadata=self._metadata(path),
            # Far away, one wide read is cheaper than many narrow ones.
            pre_buffer=not isinstance(self.filesystem, fs.LocalFileSystem),
            page_checksum_verification=True,
        )

    def _arrives(self, group: RowGroup) -> bool:
        """Say whether the row group's bytes can be fetched, whatever they hold."""
        chunk = self._metadata(group.path).row_group(group.index).column(0)
        try:
            with self.filesystem.open_input_file(group.path) as handle:
                handle.read_at(chunk.total_compressed_size, chunk.dictionary_page_offset or chunk.data_page_offset)
        except OSError:
            return False
        return True

    def _metadata(self, path: str) -> pq.FileMetaData:
        if path not in self._footers:
            self._footers[path] = read_footer(self.filesystem, path)[0]
        return self._footers[path]

    def __getstate__(self) -> dict:
        # Footers can be large; a worker reads those that it needs.
        return {name: value for name, value in self.__dict__.items() if name != "_open"} | {
            "_footers": {},
            "_leaves": {},
        }

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _open=threading.local())


def _as(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return a column as it is stored in the type that its split gives it; no number changes by this."""
    return column if column.type == kind else column.cast(kind)


def _places(schema: pa.Schema) -> dict[str, int]:
    """Return the number of each column's first leaf; of columns that share a name none."""
    starts, often = np.cumsum([0, *(_leaf_count(column.type) for column in schema)]).tolist(), Counter(schema.names)
    return {name: starts[place] for place, name in enumerate(schema.names) if often[name] == 1}


def _leaf_count(kind: pa.DataType) -> int:
    """Return how many columns Parquet stores a column as."""
    return sum(_leaf_count(kind.field(n).type) for n in range(kind.num_fields)) if kind.num_fields else 1


@dataclass(frozen=True)
class Statistics:
    """What one pass over a split's labels and dense columns tells.

    Args:
        rows: rows read.
        mean: of each dense feature's columns that are normalised, over the rows that have them; 0 where none has.
        std: their population deviation; 1 where a column is constant.
        rate: mean of each task's known labels: of a binary one the share of positives.
        unknown: share of the rows whose label is not known yet, by task.
        single: the one value that all known labels have, of each task of which that is so.
        quantiles: of each feature that is cut at them.
    """

    rows: int
    mean: dict[str, list[float]]
    std: dict[str, list[float]]
    rate: dict[str, float]
    unknown: dict[str, float] = field(default_factory=dict)
    single: dict[str, float] = field(default_factory=dict)
    quantiles: dict[str, list[float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Statistics":
        """Undo `to_dict`."""
        return cls(**values)


def scan(source: Source, recipe: Recipe, progress: Callable[[int], None] | None = None) -> Statistics:
    """Check and measure a split's labels and its features that are made of numbers in one streaming pass.

    Row groups are read in parallel, at most one per processor at a time, and merged in file order, so the result does
    not depend on the threads. Quantiles are those of the same 65,536 rows each time, or of all if these are fewer. The
    label column of a row group whose footer says that it is constant is not read.

    Args:
        source: the split.
        recipe: names the features and labels; `data.on_corrupt` says whether an unreadable row group stops the scan.
        progress: called with the rows of every row group that is done.

    Raises:
        BadInput: a label that is not of its task's kind, a null label of a task without `unknown: true`, a sample
            weight that is null, negative or infinite, NaN or an infinite value in a dense feature (a missing value is
            null), a value that float32 cannot hold, a vector of another length than its feature's,
            or weights or vectors of ids that are not one of each id, or not finite.
        CorruptGroup: with `on_corrupt: stop`.
    """
    measure, tasks = Measure(recipe), recipe.tasks
    numbers, labels, rows = measure.nothing, _Labels.of([np.zeros(0)] * len(tasks), 0), 0
    firsts = np.cumsum([0] + [group.rows for group in source.groups]).tolist()
    with ThreadPoolExecutor(pa.cpu_count()) as pool:
        groups = zip(source.groups, firsts, strict=False)
        jobs = [pool.submit(_scan_group, source, group, first, measure, tasks) for group, first in groups]
        for group, job in zip(source.groups, jobs, strict=True):
            found = _result(job, pool, recipe.data.on_corrupt == "skip")
            if found is not None:
                numbers, labels, rows = numbers.merge(found[0]), labels.merge(found[1]), rows + group.rows
            if progress is not None:
                progress(group.rows)
    if not rows:
        raise BadInput(f"{source.folder}: not one row group can be read; prepare the data again")
    mean, std, quantiles = measure.tell(numbers)
    return Statistics(
        rows=rows,
        mean=mean,
        std=std,
        rate=dict(zip(tasks, (labels.total / np.maximum(labels.known, 1)).tolist(), strict=True)),
        unknown=dict(zip(tasks, (1 - labels.known / rows).tolist(), strict=True)),
        single={task: float(labels.least[t]) for t, task in enumerate(tasks) if labels.least[t] == labels.most[t]},
        quantiles=quantiles,
    )


@dataclass(frozen=True)
class _Labels:
    """Sum, number, least and largest of T tasks' known labels, each (T,) float64."""

    total: np.ndarray
    known: np.ndarray
    least: np.ndarray
    most: np.ndarray

    @classmethod
    def of(cls, labels: list[np.ndarray], times: np.ndarray | int) -> "_Labels":
        """Count each task's known labels, of which every one stands for so many rows: (T,), or a number for all."""
        return cls(
            times * np.array([part.sum() for part in labels], float),
            times * np.array([len(part) for part in labels], float),
            np.array([part.min(initial=np.inf) for part in labels]),
            np.array([part.max(initial=-np.inf) for part in labels]),
        )

    def merge(self, other: "_Labels") -> "_Labels":
        ends = np.minimum(self.least, other.least), np.maximum(self.most, other.most)
        return _Labels(self.total + other.total, self.known + other.known, *ends)


def _result(job: Future, pool: ThreadPoolExecutor, skip: bool) -> tuple[Measured, _Labels] | None:
    """Return one row group's figures, or None for a corrupt one that may be skipped."""
    try:
        return job.result()
    except BaseException as error:
        if skip and isinstance(error, CorruptGroup):
            log.warning("left out of the statistics: %s", error)
            return None
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _scan_group(
    source: Source, group: RowGroup, first: int, measure: Measure, tasks: dict[str, Task]
) -> tuple[Measured, _Labels]:
    """Return what is measured of one row group, whose first row is so many in the split, and its known labels."""
    columns = {task.label for task in tasks.values()}
    constant = {column: value for column in columns if (value := _constant(source, group, column)) is not None}
    weights = [task.sample_weight for task in tasks.values() if task.sample_weight]
    table = source.read(group, list(dict.fromkeys([*measure.columns, *sorted(columns - constant.keys()), *weights])))
    labels, times = [], np.array([group.rows if task.label in constant else 1 for task in tasks.values()])
    for name, task in tasks.items():
        values = pa.chunked_array([[constant[task.label]]]) if task.label in constant else table.column(task.label)
        labels.append(_labels(source, group, name, task, values))
        if task.sample_weight:
            _check_weights(source, group, name, task.sample_weight, table.column(task.sample_weight))
    return measure.of(table, first, source.place(group)), _Labels.of(labels, times)


def _constant(source: Source, group: RowGroup, column: str) -> int | None:
    """Return the one value of a column in a row group, where its footer proves that there is but one.

    A float column's footer proves nothing: its minimum and maximum leave out NaN.
    """
    found = source.statistics(group, column)
    if found is None or not found.has_min_max or not found.has_null_count or found.null_count:
        return None
    return int(found.min) if isinstance(found.min, int) and found.min == found.max else None


def _labels(source: Source, group: RowGroup, name: str, task: Task, column: pa.ChunkedArray) -> np.ndarray:
    """Return a task's known labels, float64."""
    kind = kinds({name: task})[name]
    numbers = column.cast(pa.float64(), safe=False).to_numpy()  # null = NaN
    known = ~np.isnan(numbers)
    bad = ~kind.fits(numbers)
    if task.unknown:
        bad &= known
    if bad.any():
        first = int(bad.argmax())
        mend = "" if known[first] else ", set unknown: true if it is not known yet"
        raise BadInput(
            f"{source.place(group)}, row {first}: tasks.{name}.label '{task.label}' "
            f"holds {column[first].as_py()}, but a label is {kind.wanted}; correct the data{mend}, or leave such rows "
            "out"
        )
    return numbers[known]


def _check_weights(source: Source, group: RowGroup, name: str, label: str, column: pa.ChunkedArray) -> None:
    numbers = column.cast(pa.float64(), safe=False).to_numpy()  # null = NaN
    bad = ~((numbers >= 0) & (numbers < np.finfo(np.float32).max))
    if bad.any():
        first = int(bad.argmax())
        raise BadInput(
            f"{source.place(group)}, row {first}: tasks.{name}.sample_weight '{label}' "
            f"holds {column[first].as_py()}, but a weight is a finite number from 0 on; correct the data"
        )
