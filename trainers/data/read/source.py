"""A split on disk: its files found, what their footers say, its columns checked against the recipe."""

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

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
    flat_schema,
    id_kinds,
    of_candidates,
    settled,
    wanted_columns,
    worded,
)
from livetrain.trainers.data.read.distant import Ahead, Distant
from livetrain.trainers.data.read.files import Folder, short, shown, split_folders
from livetrain.trainers.data.read.index import Figures, Groups, Index, RowGroup, leaf_places, look, restored, stored
from livetrain.trainers.data.read.requests import Candidates
from livetrain.trainers.data.read.sidecar import Kept, Sidecar
from livetrain.trainers.data.read.slices import Slices
from livetrain.trainers.data.read.spread import HERE, Looking, in_threads

log = logging.getLogger(__name__)

_INDEX = "index"  # its name in a sidecar
_FOOTERS, _FOOTER_THREADS = 64, 16  # files that a thread looks at in one go; footers are far away: waiting, not work
_OPEN_FILES = 4  # that a thread keeps open
_BUFFER = 2**16  # bytes of each column that are read at a time of a local file


class CorruptGroup(BadInput):
    """A row group whose bytes arrive but do not decode."""


@dataclass(frozen=True)
class Partition:
    """One folder of a split's files: its row groups are those from `start` to `stop`."""

    sidecar: Sidecar
    start: int
    stop: int


@dataclass
class Source:
    """One split of the data, opened once: its index at hand, columns checked. Picklable.

    A row's number is its position in (sorted files, row groups, rows). What it holds grows by 16 bytes per row group
    and by the files' paths; footers are read again with the rows, and go with the file that they are of.
    """

    folder: str  # for messages, without credentials
    filesystem: fs.FileSystem
    groups: Groups
    schema: pa.Schema  # of the columns that the recipe names, and of no others; files may store them otherwise
    candidates: Candidates | None = None  # where a stored row is a request: its candidates are the rows of `schema`
    partitions: list[Partition] = field(default_factory=list)
    drawn: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # rows added to each, read/negatives.py
    _stored: pa.Schema = field(default_factory=lambda: pa.schema([]), repr=False)  # `schema` as files have it
    _figures: dict[str, Figures] = field(default_factory=dict, repr=False)
    _open: threading.local = field(default_factory=threading.local, repr=False, compare=False)
    _distant: Distant | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.filesystem, fs.LocalFileSystem):
            self._distant = Distant(self.filesystem)

    @classmethod
    def open(
        cls, recipe: Recipe, split: str, looking: Looking = HERE, besides: Sequence[tuple[str, str, str]] = ()
    ) -> "Source":
        """Open a split of `data.path`, in a local folder or at any address that pyarrow knows.

        The address chooses the filesystem: file://, s3://, gs://, hdfs://, abfs://, and fsspec+NAME:// for whatever an
        installed fsspec offers. Credentials come from the environment, as each filesystem documents.

        Args:
            recipe: the run.
            split: train, valid or test.
            looking: how files are looked at of which nothing is kept.
            besides: (column, kind, recipe key) of what is read besides `wanted_columns`.

        Raises:
            BadInput: whatever footers can show: no folder, no files, no rows, a file that is not whole, a missing
                column, a column of the wrong type, files that differ, a slice whose condition cannot be asked.
        """
        filesystem, name, folders = split_folders(recipe, split)
        sidecars = [Sidecar.of(filesystem, folder, looking.spare) for folder in folders]
        source = cls.of(recipe, filesystem, name, folders, sidecars, looking, besides)
        if not source.rows:
            raise BadInput(f"{source.folder}: the split has no rows; prepare the data again with a non-empty {split}")
        return source

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        filesystem: fs.FileSystem,
        name: str,
        folders: list[Folder],
        sidecars: list[Sidecar],
        looking: Looking = HERE,
        besides: Sequence[tuple[str, str, str]] = (),
    ) -> Self:
        """Open the files of some folders, as `open` does, which finds them.

        Args:
            recipe: the run.
            filesystem: where they are.
            name: of them all, for messages.
            folders: partitions, each with a file at least.
            sidecars: of each, what is kept of it.
            looking, besides: as of `open`.

        Raises:
            BadInput: as `open`, but for rows that are not there.
        """
        kept = in_threads(lambda sidecar: sidecar.read(_INDEX), sidecars, threads=_FOOTER_THREADS)
        parts = [
            indexed(filesystem, [info.path for info in folder.files], sidecar, found, looking)
            for folder, sidecar, found in zip(folders, sidecars, kept, strict=True)
        ]
        wanted = [*wanted_columns(recipe), *besides]
        source = cls._of(name, filesystem, Index.join(parts), wanted, recipe.data.candidates)
        ends = np.cumsum([0, *(len(part.groups) for part in parts)]).tolist()
        source.partitions = [Partition(*each) for each in zip(sidecars, ends, ends[1:], strict=False)]
        Slices(recipe.evaluate.slices).check(source.schema, source.folder)
        return source

    @classmethod
    def _of(
        cls,
        name: str,
        filesystem: fs.FileSystem,
        index: Index,
        wanted: list[tuple[str, str, str]],
        most: int | None = None,
    ) -> Self:
        """Check the files' columns, and return the source of the row groups that hold rows.

        With `most` rows are requests of so many candidates.
        """
        found: dict[str, tuple[str, pa.DataType]] = {}
        for kind, schema in enumerate(index.schemas):  # of equal files the first is named
            path = index.first(kind)
            for column, type_ in check_columns(shown(filesystem, path), schema, wanted, most is not None).items():
                found[column] = _joined(filesystem, column, path, type_, *found.get(column, (path, type_)))
        schema = kept = settled({column: type_ for column, (_, type_) in found.items()}, wanted)
        candidates = None
        if most is not None:
            candidates = Candidates(of_candidates(kept, wanted), most)
            schema = flat_schema(kept, candidates.names)
        return cls(name, filesystem, index.groups, schema, candidates, _stored=kept, _figures=index.figures)

    @property
    def rows(self) -> int:
        """Rows of the split as stored: requests where it has `candidates`."""
        return int(self.groups.rows.sum())

    def stored(self, partition: Partition) -> int:
        """Return how many rows a partition has."""
        return int(self.groups.rows[partition.start : partition.stop].sum())

    def length(self, column: str) -> float:
        """Return how many values a row has of a column in the mean, as the footers say: an empty list counts as one."""
        found = self._told(column)
        return 1.0 if found is None else found.values / self.rows

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
        """Return what the footer says about a column's values, or a list column's elements, in a row group.

        The file stays open for this thread, which is to read of it.
        """
        far = self._distant
        footer = self._file(group.path).metadata if far is None else far.footer(group.path)
        place = leaf_places(footer.schema.to_arrow_schema()).get(column)
        return None if place is None else footer.row_group(group.index).column(place).statistics

    def id_range(self, column: str) -> tuple[Any, Any] | None:
        """Return the least and the largest id of a column; None where the footers do not say, or there are no ids."""
        found = self._told(column)
        return None if found is None or not found.told or found.low is None else (found.low, found.high)

    def is_null(self, column: str) -> bool:
        """Say whether all files have a column that is null throughout, of a writer that knew no type."""
        found = self._told(column)
        return found is not None and found.null

    def _told(self, column: str) -> Figures | None:
        """Return what the footers say of a column; None where not every file has it."""
        found = self._figures.get(column)
        return found if found is not None and found.groups == len(self.groups) else None

    def id_kinds(self, recipe: Recipe) -> dict[str, IdKind]:
        """Return what `id_kinds` does of the split's columns."""
        found = id_kinds(recipe, {field.name: field.type for field in self.schema})
        return {name: kind for name, kind in found.items() if not self.is_null(recipe.column(name))}

    def nulls(self, column: str) -> int:
        """Return how many nulls a column has; read only where its footers do not say. Of unreadable rows none counts.

        Raises:
            BadInput: a file cannot be read.
        """
        found = self._told(column)
        listed = self.candidates is not None and column in self.candidates.names  # footers count empty lists as nulls
        if found is not None and found.nulls is not None and not listed:
            return found.nulls
        return sum(self._nulls(group, column) for group in self.groups)

    def ahead(self, columns: list[str]) -> contextlib.AbstractContextManager[Ahead | None]:
        """Return what fetches row groups before they are decoded; nothing on this machine's disk, which is near."""
        return contextlib.nullcontext() if self._distant is None else Ahead(self._distant, columns)

    def _nulls(self, group: RowGroup, column: str) -> int:
        try:
            return self.read(group, [column]).column(0).null_count
        except CorruptGroup:  # of which others speak, as the recipe's on_corrupt says
            return 0

    def read(self, group: RowGroup, columns: list[str]) -> pa.Table:
        """Read some columns of a row group, in the calling thread: of requests a row per candidate.

        Raises:
            CorruptGroup: as `as_stored`.
            BadInput: likewise; or a request's lists are not one value per candidate.
        """
        return self._flat(self.as_stored(group, self._stored_of(columns)), group, columns)

    def stretches(self, group: RowGroup, columns: list[str], rows: int) -> Iterator[pa.Table]:
        """Read some columns of a row group as `read` does, in tables of so many stored rows.

        Raises:
            ArrowException, OSError, BadInput: something cannot be read; `read` says what is wrong.
        """
        for table in self.stream([group], self._stored_of(columns), rows):
            yield self._flat(table, group, columns)

    def _stored_of(self, columns: list[str]) -> list[str]:
        """Return what is read for some columns: of requests at least one that has a value per candidate."""
        if self.candidates is None or self.candidates.names.intersection(columns):
            return columns
        return [*columns, min(self.candidates.names)]

    def _flat(self, table: pa.Table, group: RowGroup, columns: list[str]) -> pa.Table:
        """Return a table with a row per candidate, if rows are requests."""
        if self.candidates is None:
            return table
        return self.candidates.flattened(table, self.place(group)).select(columns)

    def as_stored(self, group: RowGroup, columns: list[str]) -> pa.Table:
        """Read some columns of a row group, in the calling thread.

        Bytes that do not decode are read a second time. What lies behind a network is fetched whole first, and as
        often as it takes (`trainers.runtime.reach`): a lost connection is never taken for a broken file.

        Raises:
            CorruptGroup: the bytes are there and do not decode.
            BadInput: the file cannot be read at all.
        """
        try:
            return self._decode(group, columns)
        except (pa.ArrowException, OSError) as error:
            if self._distant is not None:  # which has fetched it again
                raise self._corrupt(group, error) from error
            log.info("%s: %s; reading it again", self.place(group), error)
        try:
            return self._decode(group, columns)
        except (pa.ArrowException, OSError) as error:
            if not self._arrives(group):
                raise BadInput(
                    f"{self.place(group)}: the file cannot be read ({short(error)}); restore it or the access to it"
                ) from error
            raise self._corrupt(group, error) from error

    def _corrupt(self, group: RowGroup, error: Exception) -> CorruptGroup:
        return CorruptGroup(
            f"{self.place(group)}: its {group.rows} rows do not decode ({short(error)}); write the file again, or set "
            "data.on_corrupt: skip to train without them"
        )

    def stream(
        self, groups: Sequence[RowGroup], columns: list[str], rows: int, ahead: Ahead | None = None
    ) -> Iterator[pa.Table]:
        """Read some columns of one file's row groups, in tables of so many rows, the last ones of a row group fewer.

        The file is opened once. Of a local file's row group no more is held at a time than a table, and of each column
        64 KiB and a page; of a remote one's, its columns' bytes as stored.

        Args:
            groups: one after the other in one file.
            columns: to read.
            rows: per table.
            ahead: has been asked for those of the row groups that are to be there by now, with the same columns.

        Raises:
            ArrowException, OSError: something cannot be read; `read` says what is wrong.
        """
        far = self._distant
        near: Any = self._opened(groups[0].path, _BUFFER) if far is None else None
        for group in groups:
            if ahead is not None:
                file = ahead.file(group.path, group.index)
            else:
                file = near if far is None else far.file(group.path, group.index, columns)
            found = 0
            for batch in file.iter_batches(rows, row_groups=[group.index], columns=columns, use_threads=False):
                found += batch.num_rows
                yield self._settled(pa.Table.from_batches([batch]), columns)
            _check_rows(found, group)

    def _decode(self, group: RowGroup, columns: list[str]) -> pa.Table:
        if self._distant is not None:
            table = self._distant.read(group.path, group.index, columns)
            _check_rows(table.num_rows, group)
            return self._settled(table, columns)
        file = self._file(group.path)
        del self._files[group.path]  # a file that could not be read is not kept: its second try opens it again
        table = file.read_row_group(group.index, columns=columns, use_threads=False)
        _check_rows(table.num_rows, group)
        self._files[group.path] = file
        return self._settled(table, columns)

    def _settled(self, table: pa.Table, columns: list[str]) -> pa.Table:
        """Return columns as they are stored in the types that the split gives them."""
        fields = pa.schema([self._stored.field(name) for name in columns])
        return pa.Table.from_arrays([_as(table.column(field.name), field.type) for field in fields], schema=fields)

    @property
    def _files(self) -> dict[str, pq.ParquetFile]:
        """This thread's open files, the last one used at the end."""
        return self._open.__dict__

    def _file(self, path: str) -> pq.ParquetFile:
        """Return an open file, the last one of this thread's then."""
        files = self._files
        file = files.pop(path, None) or self._opened(path)
        while len(files) >= _OPEN_FILES:
            del files[next(iter(files))]
        files[path] = file
        return file

    def _opened(self, path: str, buffer: int = 0) -> pq.ParquetFile:
        return pq.ParquetFile(
            self.filesystem.open_input_file(path),
            pre_buffer=False,
            buffer_size=buffer,
            page_checksum_verification=True,
        )

    def _arrives(self, group: RowGroup) -> bool:
        """Say whether the row group's bytes can be fetched, whatever they hold."""
        try:
            with self.filesystem.open_input_file(group.path) as handle:
                chunk = pq.read_metadata(handle).row_group(group.index).column(0)
                handle.read_at(chunk.total_compressed_size, chunk.dictionary_page_offset or chunk.data_page_offset)
        except (pa.ArrowException, OSError):
            return False
        return True

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in ("_open", "_distant")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _open=threading.local(), _distant=None)
        self.__post_init__()


def indexed(
    filesystem: fs.FileSystem, paths: list[str], sidecar: Sidecar, kept: Kept | None, looking: Looking
) -> Index:
    """Return the index of a partition: what its sidecar has kept or, where that is None, what its footers say."""
    if kept is not None:
        return restored(*kept, paths)
    index = looked(filesystem, paths, looking)
    sidecar.write(_INDEX, *stored(index))
    return index


def looked(filesystem: fs.FileSystem, paths: list[str], looking: Looking = HERE) -> Index:
    """Return the index of files from their footers.

    Raises:
        BadInput: as `look`.
    """
    size = min(_FOOTERS, -(-len(paths) // _FOOTER_THREADS))
    stretches = (paths[start : start + size] for start in range(0, len(paths), size))
    found, done = [], 0
    for part in looking.spread(partial(look, filesystem), stretches, threads=_FOOTER_THREADS):
        found.append(part)
        done += len(part.paths)
        looking.tell("files", done, len(paths))
    return Index.join(found)


def _joined(
    filesystem: fs.FileSystem, column: str, path: str, kind: pa.DataType, first: str, before: pa.DataType
) -> tuple[str, pa.DataType]:
    """Return a column's type so far, and the first file that has it: (its type in a file, and in those before).

    Raises:
        BadInput: the two mean different things.
    """
    both = common((before, kind))
    if both is None:
        raise BadInput(
            f"{shown(filesystem, path)}: column '{column}' is {worded(kind)} here and {worded(before)} in "
            f"{shown(filesystem, first)}; write all files of a split with one schema"
        )
    return (first if both == before else path), both


def _check_rows(found: int, group: RowGroup) -> None:
    if found != group.rows:
        raise pa.ArrowInvalid(f"{found} rows instead of {group.rows}")


def _as(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return a column as it is stored in the type that its split gives it; no number changes by this."""
    return column if column.type == kind else column.cast(kind)
