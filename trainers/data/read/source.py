"""A split on disk: its files found, its footers read, its columns checked against the recipe."""

import logging
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.trainers.data.read.columns import (
    IdKind,
    check_columns,
    common,
    id_kinds,
    settled,
    wanted_columns,
    worded,
)
from livetrain.trainers.data.read.distant import Distant
from livetrain.trainers.data.read.files import read_footer, short, shown, split_files
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
    _distant: Distant | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.filesystem, fs.LocalFileSystem):
            self._distant = Distant(self.filesystem)

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

        Bytes that do not decode are read a second time. What lies behind a network is fetched whole first, and as
        often as it takes (`trainers.runtime.reach`): a lost connection is never taken for a broken file.

        Raises:
            CorruptGroup: the bytes are there and do not decode.
            BadInput: the file cannot be read at all.
        """
        for last in (False, True):
            try:
                return self._decode(group, columns)
            except (pa.ArrowException, OSError) as error:
                if not last and self._distant is None:
                    log.info("%s: %s; reading it again", self.place(group), error)
                    continue
                if self._distant is None and not self._arrives(group):
                    raise BadInput(
                        f"{self.place(group)}: the file cannot be read ({short(error)}); restore it or the access to it"
                    ) from error
                raise CorruptGroup(
                    f"{self.place(group)}: its {group.rows} rows do not decode ({short(error)}); write the file again, "
                    "or set data.on_corrupt: skip to train without them"
                ) from error
        raise AssertionError  # the last try returned or raised

    def _decode(self, group: RowGroup, columns: list[str]) -> pa.Table:
        if self._distant is None:
            table = self._stored(group, columns)
        else:
            table = self._distant.read(group.path, group.index, columns)
        if table.num_rows != group.rows:
            raise pa.ArrowInvalid(f"{table.num_rows} rows instead of {group.rows}")
        fields = pa.schema([self.schema.field(name) for name in columns])
        return pa.Table.from_arrays([_as(table.column(field.name), field.type) for field in fields], schema=fields)

    def _stored(self, group: RowGroup, columns: list[str]) -> pa.Table:
        files: dict[str, pq.ParquetFile] = self._open.__dict__  # this thread's, the last one used at the end
        file = files.pop(group.path, None) or self._opened(group.path)
        table = file.read_row_group(group.index, columns=columns, use_threads=False)
        while len(files) >= _OPEN_FILES:
            del files[next(iter(files))]
        files[group.path] = file  # a file that could not be read is not kept: its second try opens it again
        return table

    def _opened(self, path: str) -> pq.ParquetFile:
        return pq.ParquetFile(
            self.filesystem.open_input_file(path),
            metadata=self._metadata(path),
            pre_buffer=False,
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
        return {name: value for name, value in self.__dict__.items() if name not in ("_open", "_distant")} | {
            "_footers": {},
            "_leaves": {},
        }

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _open=threading.local(), _distant=None)
        self.__post_init__()


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
