"""What the footers of Parquet files say, in a few arrays: their schemas, their row groups, and their columns' ends."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from livetrain.trainers.data.read.files import read_footer


@dataclass(frozen=True)
class RowGroup:
    """One row group: its file's path within the filesystem, its number in the file, its rows."""

    path: str
    index: int
    rows: int


@dataclass(frozen=True, eq=False)
class Groups(Sequence[RowGroup]):
    """The row groups of G in which rows are, of files in their order: 16 bytes each, and the paths.

    Example:
        >>> groups = Groups(["a.parquet", "b.parquet"], np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([5, 2, 3]))
        >>> len(groups), groups[1], int(groups.rows.sum())
        (3, RowGroup(path='a.parquet', index=1, rows=2), 10)
    """

    paths: list[str]
    files: np.ndarray  # (G,) int32, each one's file as a place in `paths`
    numbers: np.ndarray  # (G,) int32, its number in that file
    rows: np.ndarray  # (G,) int64

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, start: int, stop: int) -> "Groups":
        """Return the groups from `start` to `stop`, one at least, with the paths of their files alone."""
        files = self.files[start:stop]
        first, last = int(files[0]), int(files[-1])
        return Groups(self.paths[first : last + 1], files - first, self.numbers[start:stop], self.rows[start:stop])

    def __getitem__(self, place: Any) -> Any:
        return RowGroup(self.paths[self.files[place]], int(self.numbers[place]), int(self.rows[place]))

    def __iter__(self) -> Iterator[RowGroup]:
        return (self[place] for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Groups) and len(self) == len(other) and all(map(RowGroup.__eq__, self, other))


@dataclass(frozen=True)
class Figures:
    """What footers say of a column, or of a list column's elements, in some row groups.

    Args:
        groups: how many these are.
        values: how many values these have of it, nulls and empty lists included, which count as one each.
        told: whether the footers say in all of them between which values the others lie.
        low: the least, a number or the text of a time; None where there are no values.
        high: the largest.
        nulls: how many; None where a footer does not say.
        null: whether all have a column that is null throughout, or lists of null, of a writer that knew no type.
    """

    groups: int
    values: int
    told: bool
    low: Any
    high: Any
    nulls: int | None
    null: bool

    def merge(self, other: "Figures") -> "Figures":
        lows = [part.low for part in (self, other) if part.low is not None]
        highs = [part.high for part in (self, other) if part.high is not None]
        alike = len({isinstance(low, str) for low in lows}) < 2
        told = self.told and other.told and alike
        nulls = None if self.nulls is None or other.nulls is None else self.nulls + other.nulls
        low, high = (min(lows), max(highs)) if told and lows else (None, None)
        groups, values = self.groups + other.groups, self.values + other.values
        return Figures(groups, values, told, low, high, nulls, self.null and other.null)


@dataclass(frozen=True)
class Index:
    """What the footers of F files say; the footers themselves are not kept.

    Args:
        paths: of the files.
        schemas: every one that a file has, once, in the order in which they are met; without metadata.
        kinds: (F,) int32, each file's place in `schemas`.
        groups: their row groups that hold rows.
        figures: by column, of those that share their name with no other.
    """

    paths: list[str]
    schemas: list[pa.Schema]
    kinds: np.ndarray
    groups: Groups
    figures: dict[str, Figures]

    @classmethod
    def join(cls, parts: Sequence["Index"]) -> "Index":
        """Return the index of all parts' files, one part after the other."""
        schemas: dict[bytes, int] = {}
        kinds, figures = list[np.ndarray](), dict[str, Figures]()
        for part in parts:
            places = [schemas.setdefault(_packed(schema), len(schemas)) for schema in part.schemas]
            kinds.append(np.array(places, np.int32)[part.kinds])
            for column, found in part.figures.items():
                figures[column] = figures[column].merge(found) if column in figures else found
        firsts = np.cumsum([0, *(len(part.paths) for part in parts)])
        paths = [path for part in parts for path in part.paths]
        groups = Groups(
            paths,
            np.concatenate([part.groups.files + first for part, first in zip(parts, firsts, strict=False)]).astype(
                np.int32
            ),
            np.concatenate([part.groups.numbers for part in parts]),
            np.concatenate([part.groups.rows for part in parts]),
        )
        return cls(paths, [_unpacked(text) for text in schemas], np.concatenate(kinds), groups, figures)

    def first(self, kind: int) -> str:
        """Return the path of the first file that has a schema."""
        return self.paths[int((self.kinds == kind).argmax())]


def look(filesystem: fs.FileSystem, paths: list[str]) -> Index:
    """Read the footers of some files, at least one.

    Raises:
        BadInput: one is not a whole Parquet file, or cannot be opened.
    """
    return Index.join([_of(path, *read_footer(filesystem, path)) for path in paths])


def _of(path: str, footer: pq.FileMetaData, schema: pa.Schema) -> Index:
    rows = np.array([footer.row_group(number).num_rows for number in range(footer.num_row_groups)], np.int64)
    numbers = np.flatnonzero(rows).astype(np.int32)
    groups = Groups([path], np.zeros(len(numbers), np.int32), numbers, rows[numbers])
    bare = pa.schema([pa.field(field.name, field.type) for field in schema])
    figures: dict[str, Figures] = {}
    leaves = {
        column: (place, footer.schema.column(place).logical_type.type == "UNKNOWN")  # null throughout, in Parquet
        for column, place in leaf_places(footer.schema.to_arrow_schema()).items()
    }
    for number in numbers.tolist():
        group = footer.row_group(number)
        for column, (place, null) in leaves.items():
            found = _figures(group.column(place), null)
            figures[column] = figures[column].merge(found) if column in figures else found
    return Index([path], [bare], np.zeros(1, np.int32), groups, figures)


def _figures(column: pq.ColumnChunkMetaData, null: bool) -> Figures:
    """Return what one row group's footer says of a column; of texts the order is not that of their ids."""
    found, values = column.statistics, column.num_values
    if found is None:
        return Figures(1, values, null, None, None, None, null)
    nulls = found.null_count if found.has_null_count else None
    if not found.has_min_max:
        return Figures(1, values, found.num_values == 0, None, None, nulls, null)
    if found.physical_type not in ("BOOLEAN", "INT32", "INT64", "FLOAT", "DOUBLE"):
        return Figures(1, values, False, None, None, nulls, null)
    low, high = _end(found.min), _end(found.max)
    return Figures(1, values, low is not None, low, high, nulls, null)


def _end(value: Any) -> int | float | str | None:
    if isinstance(value, int | float):
        return value
    return str(value) if hasattr(value, "isoformat") else None


def leaf_places(schema: pa.Schema) -> dict[str, int]:
    """Return the number of each column's first leaf; of columns that share a name none."""
    starts, often = np.cumsum([0, *(_leaf_count(column.type) for column in schema)]).tolist(), Counter(schema.names)
    return {name: starts[place] for place, name in enumerate(schema.names) if often[name] == 1}


def _leaf_count(kind: pa.DataType) -> int:
    """Return how many columns Parquet stores a column as."""
    return sum(_leaf_count(kind.field(n).type) for n in range(kind.num_fields)) if kind.num_fields else 1


def _packed(schema: pa.Schema) -> bytes:
    return schema.serialize().to_pybytes()


def _unpacked(packed: bytes) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(packed))


def stored(index: Index) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return an index as JSON's values and arrays, without the paths; see `restored`."""
    told = {
        "schemas": [_packed(schema).hex() for schema in index.schemas],
        "figures": {
            column: [part.groups, part.values, part.told, part.low, part.high, part.nulls, part.null]
            for column, part in index.figures.items()
        },
    }
    groups = index.groups
    return told, {"kinds": index.kinds, "files": groups.files, "numbers": groups.numbers, "rows": groups.rows}


def restored(told: dict[str, Any], arrays: dict[str, np.ndarray], paths: list[str]) -> Index:
    """Undo `stored`, given where the files lie now."""
    groups = Groups(paths, arrays["files"], arrays["numbers"], arrays["rows"])
    schemas = [_unpacked(bytes.fromhex(text)) for text in told["schemas"]]
    figures = {column: Figures(*part) for column, part in told["figures"].items()}
    return Index(paths, schemas, arrays["kinds"], groups, figures)
