"""A prepared dataset as the checks see it: its parts in time order, one DuckDB view, and a small fixed sample."""

import datetime
import functools
import itertools
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.checks import roles
from livetrain.trainers.data.checks.findings import Finding, Verdict, listed
from livetrain.trainers.data.checks.roles import Roles
from livetrain.trainers.data.checks.schema import agreed, quoted, selected
from livetrain.trainers.data.read.columns import flat_schema, is_list
from livetrain.trainers.data.read.files import find_files, read_footer, short
from livetrain.trainers.data.read.requests import Candidates
from livetrain.trainers.data.write import layout

T = TypeVar("T")

MEMORY = "2GB"  # of DuckDB; what does not fit goes to the temporary folder
MILLISECONDS = 100_000_000_000  # a time above is in ms (1973 and later), below in seconds (until the year 5138)
_YEARS = (-62_135_596_800, 253_402_300_799)  # the first second of year 1 and the last of year 9999
PIECE = 2048  # rows of the sample that lie together
ELEMENTS = 2**23  # of the lists of a column, over all rows of the sample
_PREFIX = "date="


@dataclass
class Part:
    """A split or a day: its name and its files."""

    name: str
    files: list[Path]
    footers: list[pq.FileMetaData] = field(default_factory=list, repr=False)

    @property
    def rows(self) -> int:
        return sum(footer.num_rows for footer in self.footers)


@dataclass
class Dataset:
    """Opened by `open_dataset`; use as a context manager, which ends the DuckDB connection.

    The view `rows` has every column that all files agree on and that SQL can name, and besides `_part` (number of the
    part in time order) and `_day` (integer day: since 1970-01-01 where there are days or a time column, otherwise the
    part's number).
    """

    folder: Path
    manifest: dict[str, Any]
    parts: list[Part]
    by_day: bool
    schema: pa.Schema  # of plain types, see trainers.data.read.columns.plain
    roles: Roles
    findings: list[Finding]  # made while opening
    dated: bool = False  # whether _day is a date
    unit: int = 1  # of the time column: 1000 where it is in milliseconds
    connection: duckdb.DuckDBPyConnection = field(default_factory=duckdb.connect, repr=False)
    _spill: Any = field(default_factory=tempfile.TemporaryDirectory, repr=False)

    def __enter__(self) -> "Dataset":
        return self

    def __exit__(self, *error: object) -> None:
        self.connection.close()
        self._spill.cleanup()

    @functools.cached_property
    def rows(self) -> int:
        if self.requests is not None:  # of which footers count no candidates
            return self.query("SELECT count(*) FROM rows")[0][0]
        return sum(part.rows for part in self.parts)

    @property
    def requests(self) -> Candidates | None:
        """What makes rows of the files' requests, where dataset.json says that they hold such."""
        told = self.manifest.get("requests")
        return None if told is None else Candidates(told["candidates"], told["most"])

    @property
    def learned(self) -> int:
        """How many of the parts, from the first, a model learns from: train/, or every day but the last."""
        return max(len(self.parts) - 1, 1) if self.by_day else 1

    @property
    def _offset(self) -> int:
        return int(self.manifest.get("utc_offset_s", 0))

    def query(self, sql: str) -> list[tuple]:
        """Return the rows of a query on the view `rows`.

        Raises:
            BadInput: a file does not decode.
        """
        try:
            return self.connection.execute(sql).fetchall()
        except duckdb.Error as error:
            raise BadInput(f"{self.folder}: the files cannot be read ({short(error)}); write them again") from error

    def day(self, number: int) -> str:
        """Return the name of a value of `_day`."""
        if not self.dated:
            return self.parts[number].name
        return (datetime.date(1970, 1, 1) + datetime.timedelta(days=int(number))).isoformat()

    def date(self, time: float) -> str:
        """Return the date of a value of the time column."""
        seconds = time // self.unit + self._offset
        return (datetime.date(1970, 1, 1) + datetime.timedelta(days=seconds // 86400)).isoformat()

    def sample(self, columns: list[str], parts: list[Part], most: int) -> pa.Table:
        """Return about `most` rows of some parts, always the same ones: evenly spaced stretches of PIECE rows.

        They are fewer where lists are long, as `bounded` says.
        """
        groups = [(f, g, m) for p in parts for f, m in zip(p.files, p.footers, strict=True) for g in _groups(m)]
        chosen = [groups[place] for place in spaced(len(groups), math.ceil(most / PIECE))]
        each = math.ceil(most / PIECE / max(len(chosen), 1))
        count = sum(min(each, math.ceil(footer.row_group(group).num_rows / PIECE)) for _, group, footer in chosen)
        schema, requests = pa.schema([self.schema.field(name) for name in columns]), self.requests
        read = columns if requests is None else list({*columns, min(requests.names)})
        pieces = []
        for path, group, footer in chosen:
            try:
                with pq.ParquetFile(path, metadata=footer) as file:
                    batches = file.iter_batches(PIECE, row_groups=[group], columns=read, use_threads=False)
                    for batch in picked(batches, footer.row_group(group).num_rows, each):
                        table = pa.Table.from_batches([batch])
                        if requests is not None:
                            where = f"{path}, row group {group}"
                            enough = np.searchsorted(np.cumsum(requests.counts(table, where)), PIECE) + 1
                            table = requests.flattened(table[: int(enough)], where)[:PIECE]
                        pieces.append(bounded(table.select(columns), count).cast(schema))
            except (pa.ArrowException, OSError) as error:
                raise BadInput(
                    f"{path}, row group {group}: it does not decode ({short(error)}); write the file again"
                ) from error
        return pa.concat_tables(pieces) if pieces else schema.empty_table()


def spaced(count: int, most: int) -> list[int]:
    """Return at most `most` of the numbers 0..count-1, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist() if count else []


def picked(stretches: Iterator[T], rows: int, most: int, piece: int = PIECE) -> Iterator[T]:
    """Yield evenly spaced ones of the stretches of `piece` rows that a row group is read in, and read no further."""
    chosen = spaced(math.ceil(rows / piece), most)
    found = itertools.islice(stretches, chosen[-1] + 1)
    return (stretch for place, stretch in enumerate(found) if place in chosen)


def bounded(table: pa.Table, pieces: int) -> pa.Table:
    """Return a table's first rows: one at least, and no column has more in its lists than one of `pieces` may."""
    rows = len(table)
    for column in table.columns:
        if is_list(column.type):
            ends = np.cumsum(pc.fill_null(pc.list_value_length(column), 0).to_numpy())
            rows = min(rows, int(np.searchsorted(ends, ELEMENTS // pieces, side="right")))
    return table if rows == len(table) else table.take(np.arange(max(rows, 1)))  # a slice would hold on to all


def _groups(footer: pq.FileMetaData) -> list[int]:
    return [group for group in range(footer.num_row_groups) if footer.row_group(group).num_rows]


def open_dataset(folder: Path) -> Dataset:
    """Find a dataset's parts, read all footers and define the view.

    Raises:
        BadInput: there is no dataset or an unfinished one, or a file that is no whole Parquet file.
    """
    if layout.unfinished(folder):
        raise BadInput(f"{folder}: its preparation has not finished; run the same `livetrain data` command again")
    parts, by_day = _parts(folder)
    schemas = {}
    for part in parts:
        for path in part.files:
            footer, schemas[path] = read_footer(fs.LocalFileSystem(), str(path))
            part.footers.append(footer)
    manifest = layout.finished(folder) or {}
    if (told := manifest.get("requests")) is not None:
        schemas = {path: flat_schema(schema, frozenset(told["candidates"])) for path, schema in schemas.items()}
    schema, findings = agreed(schemas, manifest)
    if not any(part.rows for part in parts):
        raise BadInput(f"{folder}: not one row in {len(schemas)} files; prepare the data again")
    findings += _empty(parts)
    settled, more = roles.settle(manifest, schema)
    dataset = Dataset(folder, manifest, parts, by_day, schema, settled, findings + more)
    _define(dataset)
    return dataset


def _parts(folder: Path) -> tuple[list[Part], bool]:
    """Return the days date=YYYY-MM-DD where there are some, otherwise the splits, in time order."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: there is no such folder; name one that `livetrain data` has written")
    days = sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_dir())
    for day in days:
        try:
            datetime.date.fromisoformat(day.name.removeprefix(_PREFIX))
        except ValueError:
            raise BadInput(f"{day}: '{day.name}' is no day; name it {_PREFIX}YYYY-MM-DD") from None
    splits = [folder / split for split in layout.SPLITS if (folder / split).is_dir()]
    found = [Part(path.name.removeprefix(_PREFIX), _files(path)) for path in days or splits]
    if not found or not days and splits[0].name != "train":
        raise BadInput(f"{folder}: neither train/ nor {_PREFIX}YYYY-MM-DD/ is there; name a prepared dataset")
    return found, bool(days)


def _files(folder: Path) -> list[Path]:
    return [Path(info.path) for info in find_files(fs.LocalFileSystem(), str(folder))]


def _empty(parts: list[Part]) -> list[Finding]:
    names = [part.name for part in parts if not part.rows]
    if not names:
        return []
    return [Finding("rows", listed(names), Verdict.wrong, "no rows here; prepare it again, or remove the folder")]


def _define(dataset: Dataset) -> None:
    """Create the view `rows`."""
    db = dataset.connection
    db.execute(f"SET memory_limit = '{MEMORY}'; SET temp_directory = {_text(dataset._spill.name)}")
    db.execute("SET preserve_insertion_order = false")
    columns = [selected(column) for column in dataset.schema]
    pieces = []
    for number, part in enumerate(dataset.parts):
        files = ", ".join(_text(_without_globs(str(path))) for path in part.files)
        of_day = datetime.date.fromisoformat(part.name).toordinal() - _EPOCH if dataset.by_day else number
        if files:
            read = f"read_parquet([{files}], hive_partitioning = false, union_by_name = true)"
            if dataset.requests is not None:
                names = map(quoted, sorted(dataset.requests.names))
                read = f"(SELECT * REPLACE ({', '.join(f'unnest({name}) AS {name}' for name in names)}) FROM {read})"
            pieces.append(f"SELECT {', '.join([*columns, f'{number} AS _part', f'{of_day} AS _day'])} FROM {read}")
    dataset.query(f"CREATE VIEW parts AS {' UNION ALL '.join(pieces)}")
    dataset.dated = dataset.by_day
    view, time = "SELECT * FROM parts", _settle_time(dataset)
    if time is not None and not dataset.by_day:
        day = f"CAST(floor(({quoted(time)} / {dataset.unit} + {dataset._offset}) / 86400) AS INTEGER)"
        view, dataset.dated = f"SELECT * EXCLUDE _day, {day} AS _day FROM parts", True
    dataset.query(f"CREATE VIEW rows AS {view}")


def _settle_time(dataset: Dataset) -> str | None:
    """Find the time column's unit and return its name, if it holds any time. What is no time loses that role."""
    time = dataset.roles.time
    if time is None:
        return None
    ends = dataset.query(f"SELECT min({quoted(time)}), max({quoted(time)}) FROM parts")[0]
    if ends[0] is None:
        return None
    dataset.unit = 1000 if ends[1] > MILLISECONDS else 1
    if _YEARS[0] <= ends[0] // dataset.unit and ends[1] // dataset.unit <= _YEARS[1]:
        return time
    text = f"from {ends[0]} to {ends[1]}, which is no time in s or ms since 1970; convert it when preparing the data"
    dataset.findings.append(Finding("time order", time, Verdict.wrong, text))
    dataset.roles = replace(dataset.roles, time=None)
    return None


def _without_globs(path: str) -> str:
    """Return a path as DuckDB's patterns write it."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path)


_EPOCH = datetime.date(1970, 1, 1).toordinal()


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
