"""A prepared dataset as the checks see it: its parts in time order, one DuckDB view, and a small fixed sample."""

import datetime
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs.errors import BadInput
from trainers.data import layout
from trainers.data.checks import roles
from trainers.data.checks.findings import Finding, Verdict, listed
from trainers.data.checks.roles import Roles
from trainers.data.files import short

MEMORY = "2GB"  # of DuckDB; what does not fit goes to the temporary folder
MILLISECONDS = 100_000_000_000  # a time above is in ms (1973 and later), below in seconds (until the year 5138)
PIECE = 2048  # rows of the sample that lie together
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

    The view `rows` has every column that all files agree on, and besides `_part` (number of the part in time order) and
    `_day` (integer day: since 1970-01-01 where there are days or a time column, otherwise the part's number).
    """

    folder: Path
    manifest: dict[str, Any]
    parts: list[Part]
    by_day: bool
    schema: pa.Schema
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

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def learned(self) -> int:
        """How many of the parts, from the first, a model learns from: train/, or every day but the last."""
        return max(len(self.parts) - 1, 1) if self.by_day else 1

    def query(self, sql: str) -> list[tuple]:
        """Return the rows of a query on the view `rows`.

        Raises:
            BadInput: a file does not decode.
        """
        try:
            return self.connection.execute(sql).fetchall()
        except (duckdb.IOException, duckdb.InvalidInputException, duckdb.ConversionException) as error:
            raise BadInput(f"{self.folder}: the files cannot be read ({short(error)}); write them again") from error

    def day(self, number: int) -> str:
        """Return the name of a value of `_day`."""
        if not self.dated:
            return self.parts[number].name
        return (datetime.date(1970, 1, 1) + datetime.timedelta(days=int(number))).isoformat()

    def sample(self, columns: list[str], parts: list[Part], most: int) -> pa.Table:
        """Return about `most` rows of some parts, always the same ones: the first rows of evenly spaced row groups."""
        groups = [(f, g, m) for p in parts for f, m in zip(p.files, p.footers, strict=True) for g in _groups(m)]
        chosen = spaced(len(groups), math.ceil(most / PIECE))
        quota = max(PIECE, math.ceil(most / max(len(chosen), 1)))
        schema = pa.schema([self.schema.field(name) for name in columns])
        pieces = []
        for path, group, footer in (groups[place] for place in chosen):
            with pq.ParquetFile(path, metadata=footer) as file:
                batches = file.iter_batches(quota, row_groups=[group], columns=columns, use_threads=False)
                pieces += [pa.Table.from_batches([batch]).select(columns).cast(schema) for batch in _first(batches)]
        return pa.concat_tables(pieces) if pieces else schema.empty_table()


def spaced(count: int, most: int) -> list[int]:
    """Return at most `most` of the numbers 0..count-1, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist() if count else []


def _first(batches):
    batch = next(batches, None)
    return [] if batch is None else [batch]


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
            footer, schemas[path] = _footer(path)
            part.footers.append(footer)
    manifest = layout.finished(folder) or {}
    schema, findings = _common(schemas, manifest)
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
    return sorted(path for path in folder.glob("*.parquet") if not path.name.startswith((".", "_")))


def _footer(path: Path) -> tuple[pq.FileMetaData, pa.Schema]:
    try:
        with pq.ParquetFile(path) as file:
            return file.metadata, file.schema_arrow.remove_metadata()
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path}: not a complete Parquet file ({short(error)}); write or copy it again") from error


def _common(schemas: dict[Path, pa.Schema], manifest: dict[str, Any]) -> tuple[pa.Schema, list[Finding]]:
    """Return the columns that are the same in all files, and findings about the rest."""
    if not schemas:
        return pa.schema([]), []
    (first_path, first), *others = schemas.items()
    findings, bad = [], set()
    for name in dict.fromkeys(name for schema in schemas.values() for name in schema.names):
        kinds = {path: str(s.field(name).type) if name in s.names else None for path, s in schemas.items()}
        if len(set(kinds.values())) > 1:
            bad.add(name)
            usual = max(kinds.values(), key=list(kinds.values()).count)
            odd = next(path for path, kind in kinds.items() if kind != usual)
            text = f"{kinds[odd] or 'absent'} in {odd}, {usual or 'absent'} elsewhere; write all files with one schema"
            findings.append(Finding("schema", name, Verdict.wrong, text))
    for name, kind in manifest.get("columns", {}).items() if isinstance(manifest.get("columns"), dict) else ():
        if name not in first.names:
            findings.append(Finding("schema", name, Verdict.wrong, "dataset.json names it, and no file has it"))
        elif name not in bad and str(first.field(name).type) != kind:
            text = f"{first.field(name).type} in the files, {kind} in dataset.json; prepare the data again"
            findings.append(Finding("schema", name, Verdict.wrong, text))
    if not findings:
        text = f"{len(first)} columns, the same in {len(schemas)} files"
        findings.append(Finding("schema", "all files", Verdict.ok, text))
    return pa.schema([column for column in first if column.name not in bad]), findings


def _empty(parts: list[Part]) -> list[Finding]:
    names = [part.name for part in parts if not part.rows]
    if not names:
        return []
    return [Finding("rows", listed(names), Verdict.wrong, "no rows here; prepare it again, or remove the folder")]


def _define(dataset: Dataset) -> None:
    """Create the view `rows`."""
    db, time = dataset.connection, dataset.roles.time
    db.execute(f"SET memory_limit = '{MEMORY}'; SET temp_directory = {_text(dataset._spill.name)}")
    db.execute("SET preserve_insertion_order = false")
    names = ", ".join(map(quoted, dataset.schema.names))
    pieces = []
    for number, part in enumerate(dataset.parts):
        files = ", ".join(_text(str(path)) for path in part.files)
        day = datetime.date.fromisoformat(part.name).toordinal() - _EPOCH if dataset.by_day else number
        if files:
            read = f"read_parquet([{files}], hive_partitioning = false, union_by_name = true)"
            pieces.append(f"SELECT {names}, {number} AS _part, {day} AS _day FROM {read}")
    db.execute(f"CREATE VIEW parts AS {' UNION ALL '.join(pieces)}")
    dataset.dated = dataset.by_day
    view = "SELECT * FROM parts"
    last = dataset.query(f"SELECT max({quoted(time)}) FROM parts")[0][0] if time else None
    dataset.unit = 1000 if last is not None and last > MILLISECONDS else 1
    if last is not None and not dataset.by_day:
        offset = int(dataset.manifest.get("utc_offset_s", 0))
        day = f"CAST(floor(({quoted(time)} / {dataset.unit} + {offset}) / 86400) AS INTEGER)"
        view, dataset.dated = f"SELECT * EXCLUDE _day, {day} AS _day FROM parts", True
    db.execute(f"CREATE VIEW rows AS {view}")


_EPOCH = datetime.date(1970, 1, 1).toordinal()


def quoted(name: str) -> str:
    """Return a column's name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
