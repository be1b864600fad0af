"""A split on disk: its files found, its footers read, its columns checked against the recipe."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from configs.errors import BadInput
from configs.schema import DenseFeature, Recipe, Task
from modules.tasks import kinds
from trainers.data.files import check_columns, check_same, short, shown, split_files, wanted_columns

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
    schema: pa.Schema  # of the columns that the recipe names, and of no others
    _footers: dict[str, pq.FileMetaData] = field(default_factory=dict, repr=False)
    _open: threading.local = field(default_factory=threading.local, repr=False, compare=False)

    @classmethod
    def open(cls, recipe: Recipe, split: str) -> "Source":
        """Open a split of `data.path`, in a local folder or at any address that pyarrow knows.

        The address chooses the filesystem: file://, s3://, gs://, hdfs://, abfs://, and fsspec+NAME:// for whatever an
        installed fsspec offers. Credentials come from the environment, as each filesystem documents.

        Raises:
            BadInput: whatever footers can show: no folder, no files, no rows, a file that is not whole, a missing
                column, a column of the wrong type, files that differ.
        """
        filesystem, folder, paths = split_files(recipe, split)
        source = cls(folder, filesystem, [], pa.schema([]))
        with ThreadPoolExecutor(min(_FOOTER_THREADS, len(paths))) as pool:
            opened = list(pool.map(source._footer, paths))
        wanted = wanted_columns(recipe)
        for path, (footer, schema) in zip(paths, opened, strict=True):
            columns = check_columns(source.shown(path), schema, wanted)
            if source.schema.names:
                check_same(source.shown(path), columns, source.shown(paths[0]), source.schema)
            source.schema = source.schema if source.schema.names else columns
            source._footers[path] = footer
            source.groups += [RowGroup(path, i, footer.row_group(i).num_rows) for i in range(footer.num_row_groups)]
        if not source.rows:
            raise BadInput(f"{source.folder}: the split has no rows; prepare the data again with a non-empty {split}")
        return source

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

    def statistics(self, group: RowGroup, column: str) -> pq.Statistics | None:
        """Return what the footer says about a column's values, or a list column's elements, in a row group."""
        footer = self._metadata(group.path)
        for place in range(footer.num_columns):
            leaf = footer.schema.column(place)
            if leaf.path == column or (leaf.max_repetition_level and leaf.path.startswith(f"{column}.")):
                return footer.row_group(group.index).column(place).statistics
        return None

    def id_range(self, column: str) -> tuple[int, int] | None:
        """Return the least and the largest id of a column; None where the footers do not say, or there are no ids."""
        lows, highs = [], []
        for group in self.groups:
            found = self.statistics(group, column)
            if found is None or not (found.has_min_max or found.num_values == 0):
                return None
            if found.has_min_max:
                lows.append(found.min)
                highs.append(found.max)
        return (min(lows), max(highs)) if lows else None

    def nulls(self, column: str) -> int:
        """Return how many nulls the footers know of in a column."""
        found = [self.statistics(group, column) for group in self.groups]
        return sum(s.null_count for s in found if s is not None and s.has_null_count)

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
            place = f"{self.shown(group.path)}, row group {group.index}"
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
        # Files may differ in what their schemas say besides the types.
        fields = pa.schema([self.schema.field(name) for name in columns])
        return pa.Table.from_arrays([table.column(name) for name in columns], schema=fields)

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
            self._footers[path] = self._footer(path)[0]
        return self._footers[path]

    def _footer(self, path: str) -> tuple[pq.FileMetaData, pa.Schema]:
        try:
            with self.filesystem.open_input_file(path) as handle:
                file = pq.ParquetFile(handle)
                return file.metadata, file.schema_arrow
        except (pa.ArrowException, OSError) as error:
            raise BadInput(
                f"{self.shown(path)}: not a complete Parquet file ({short(error)}); write or copy it again"
            ) from error

    def __getstate__(self) -> dict:
        # Footers can be large; a worker reads those that it needs.
        return {name: value for name, value in self.__dict__.items() if name != "_open"} | {"_footers": {}}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _open=threading.local())


@dataclass(frozen=True)
class Statistics:
    """What one pass over a split's labels and dense columns tells.

    Args:
        rows: rows read.
        mean: of each dense feature, over the rows that have it; 0 where none has.
        std: population deviation of each dense feature; 1 where it is constant.
        rate: mean of the known labels, a task: of a binary one the share of positives.
        unknown: share of the rows whose label is not known yet, a task.
    """

    rows: int
    mean: dict[str, float]
    std: dict[str, float]
    rate: dict[str, float]
    unknown: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Statistics":
        """Undo `to_dict`."""
        return cls(**values)


def scan(source: Source, recipe: Recipe, progress: Callable[[int], None] | None = None) -> Statistics:
    """Check and measure a split's labels and dense features in one streaming pass.

    Row groups are read in parallel, at most one a processor at a time, and merged in file order (Chan, Golub and
    LeVeque 1979, equation 2.1, in float64), so the result does not depend on the threads. The label column of a row
    group whose footer says that it is constant is not read.

    Args:
        source: the split.
        recipe: names the features and labels; `data.on_corrupt` says whether an unreadable row group stops the scan.
        progress: called with the rows of every row group that is done.

    Raises:
        BadInput: a label that is not of its task's kind, a null label of a task without `unknown: true`, a sample
            weight that is null, negative or infinite, NaN or an infinite value in a dense feature (a missing value is
            null), or a value that float32 cannot hold.
        CorruptGroup: with `on_corrupt: stop`.
    """
    dense = {name: recipe.column(name) for name, f in recipe.features.items() if isinstance(f, DenseFeature)}
    tasks = recipe.tasks
    moments, labels, rows = _Moments(*np.zeros((3, len(dense)))), np.zeros((2, len(tasks))), 0
    with ThreadPoolExecutor(pa.cpu_count()) as pool:
        jobs = [pool.submit(_scan_group, source, group, dense, tasks) for group in source.groups]
        for group, job in zip(source.groups, jobs, strict=True):
            found = _result(job, pool, recipe.data.on_corrupt == "skip")
            if found is not None:
                moments, labels, rows = moments.merge(found[0]), labels + found[1], rows + group.rows
            if progress is not None:
                progress(group.rows)
    if not rows:
        raise BadInput(f"{source.folder}: not one row group can be read; prepare the data again")
    deviation = np.sqrt(moments.squares / np.maximum(moments.count, 1))
    return Statistics(
        rows=rows,
        mean=dict(zip(dense, moments.mean.tolist(), strict=True)),
        std=dict(zip(dense, np.where(deviation > 0, deviation, 1.0).tolist(), strict=True)),
        rate=dict(zip(tasks, (labels[0] / np.maximum(labels[1], 1)).tolist(), strict=True)),
        unknown=dict(zip(tasks, (1 - labels[1] / rows).tolist(), strict=True)),
    )


@dataclass(frozen=True)
class _Moments:
    """Count, mean and sum of squared deviations of D columns, each (D,) float64."""

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray

    def merge(self, other: "_Moments") -> "_Moments":
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        delta = other.mean - self.mean
        squares = self.squares + other.squares + delta * delta * self.count * share
        return _Moments(count, self.mean + delta * share, squares)


def _result(job: Future, pool: ThreadPoolExecutor, skip: bool) -> tuple[_Moments, np.ndarray] | None:
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
    source: Source, group: RowGroup, dense: dict[str, str], tasks: dict[str, Task]
) -> tuple[_Moments, np.ndarray]:
    """Return one row group's moments of the dense columns, and (2, T): sum and number of every task's known labels."""
    columns = {task.label for task in tasks.values()}
    constant = {column: value for column in columns if (value := _constant(source, group, column)) is not None}
    weights = [task.sample_weight for task in tasks.values() if task.sample_weight]
    table = source.read(group, list(dict.fromkeys([*dense.values(), *sorted(columns - constant.keys()), *weights])))
    moments = np.zeros((3, len(dense)))
    for place, (name, column) in enumerate(dense.items()):
        moments[:, place] = _moments(source, group, name, table.column(column))
    labels = np.zeros((2, len(tasks)))
    for place, (name, task) in enumerate(tasks.items()):
        values = pa.chunked_array([[constant[task.label]]]) if task.label in constant else table.column(task.label)
        found = _labels(source, group, name, task, values)
        labels[:, place] = found * (group.rows if task.label in constant else 1)
        if task.sample_weight:
            _check_weights(source, group, name, task.sample_weight, table.column(task.sample_weight))
    return _Moments(*moments), labels


def _constant(source: Source, group: RowGroup, column: str) -> int | None:
    """Return the one value of a column in a row group, where its footer proves that there is but one.

    A float column's footer proves nothing: its minimum and maximum leave out NaN.
    """
    found = source.statistics(group, column)
    if found is None or not found.has_min_max or not found.has_null_count or found.null_count:
        return None
    return int(found.min) if isinstance(found.min, int) and found.min == found.max else None


def _moments(source: Source, group: RowGroup, name: str, column: pa.ChunkedArray) -> tuple[float, float, float]:
    numbers = column.drop_null().cast(pa.float64(), safe=False).to_numpy()
    if not len(numbers):
        return 0.0, 0.0, 0.0
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(numbers.astype(np.float32))
    if bad.any():
        present = np.flatnonzero(column.is_valid().to_numpy())
        raise BadInput(
            f"{source.shown(group.path)}, row group {group.index}, row {present[bad.argmax()]}: features.{name} holds "
            f"{numbers[bad.argmax()]}; store finite float32 numbers, and null where there is none"
        )
    apart = numbers - numbers[0]  # exact zeros where the column is constant
    mean = apart.mean()
    return float(len(numbers)), float(numbers[0] + mean), float(np.square(apart - mean).sum())


def _labels(source: Source, group: RowGroup, name: str, task: Task, column: pa.ChunkedArray) -> np.ndarray:
    """Return the sum and the number of a task's known labels, (2,)."""
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
            f"{source.shown(group.path)}, row group {group.index}, row {first}: tasks.{name}.label '{task.label}' "
            f"holds {column[first].as_py()}, but a label is {kind.wanted}; correct the data{mend}, or leave such rows "
            "out"
        )
    return np.array([numbers[known].sum(), known.sum()])


def _check_weights(source: Source, group: RowGroup, name: str, label: str, column: pa.ChunkedArray) -> None:
    numbers = column.cast(pa.float64(), safe=False).to_numpy()  # null = NaN
    bad = ~((numbers >= 0) & (numbers < np.finfo(np.float32).max))
    if bad.any():
        first = int(bad.argmax())
        raise BadInput(
            f"{source.shown(group.path)}, row group {group.index}, row {first}: tasks.{name}.sample_weight '{label}' "
            f"holds {column[first].as_py()}, but a weight is a finite number from 0 on; correct the data"
        )
