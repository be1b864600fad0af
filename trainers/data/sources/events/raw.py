"""Raw files as DuckDB views: found, their columns checked, and every complaint in one sentence."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from livetrain.configs.errors import BadInput, nearest
from livetrain.trainers.data.sources.events.model import Adapter, RawFile

_NULLS = ("", "NULL", "null", "NaN", "nan", "None", "\\N")
_ARRAY = pa.schema([("row", pa.int64()), ("vector", pa.list_(pa.float32()))])
_ROWS = 65_536  # vectors of an array in memory at a time
_EARLIEST, _LATEST = 946_684_800_000, 4_102_444_800_000  # ms: the years 2000 to 2100


def open_raw(connection: duckdb.DuckDBPyConnection, adapter: Adapter, folder: Path) -> list[str]:
    """Make a view a raw table of the adapter, with exactly the columns that it declares.

    Returns:
        What the report should say: columns that nothing reads, and optional files that are missing.

    Raises:
        BadInput: no such folder, a required file or column is missing, a file is no CSV or Parquet.
    """
    if not folder.is_dir():
        raise BadInput(f"--raw: there is no folder {folder}; give the one that holds {_wanted(adapter)}")
    notes = []
    for table, raw in adapter.files.items():
        paths = sorted({path for name in raw.names for path in folder.glob(name)})
        if not paths and raw.required:
            raise BadInput(f"{folder}: there is no {' or '.join(raw.names)}; --raw needs {_wanted(adapter)}")
        if not paths:
            notes.append(f"there is no {raw.names[0]}: nothing is known of what it tells")
        parts = [_select(connection, path, raw, notes) for path in paths] or [_empty(raw)]
        try:
            connection.execute(f"CREATE OR REPLACE VIEW {table} AS {' UNION ALL '.join(parts)}")
        except duckdb.Error as error:
            why = str(error).strip().splitlines()[0]
            raise BadInput(f"{paths[0]}: a column is of another type than published ({why}); correct it") from None
    return notes


def _wanted(adapter: Adapter) -> str:
    return ", ".join(raw.names[0] for raw in adapter.files.values() if raw.required)


def _select(connection: duckdb.DuckDBPyConnection, path: Path, raw: RawFile, notes: list[str]) -> str:
    """Return the SELECT of one file's declared columns."""
    found = _columns(path)
    declared = raw.columns | raw.optional
    for column in raw.columns:
        if column not in found:
            raise BadInput(f"{path} has no column '{column}'{nearest(column, found)}; its columns must be as published")
    notes += [
        f"{path.name}: unknown column '{name}' is not read" for name in found if name not in {*declared, *raw.unused}
    ]
    if path.suffix == ".npy":
        source = _stored(connection, path)
    elif path.suffix == ".parquet":
        source = f"read_parquet({text(str(path))}, hive_partitioning = false)"
    else:
        types = ", ".join(f"{text(name)}: {text(declared.get(name, 'VARCHAR'))}" for name in found)
        nulls = ", ".join(map(text, _NULLS))
        source = (
            f"read_csv({text(str(path))}, header = true, auto_detect = false, delim = ',', quote = '\"', "
            f"escape = '\"', columns = {{{types}}}, nullstr = [{nulls}])"
        )
    chosen = (
        f'CAST("{name}" AS {kind}) AS "{name}"' if name in found else f'CAST(NULL AS {kind}) AS "{name}"'
        for name, kind in declared.items()
    )
    return f"SELECT {', '.join(chosen)} FROM {source}"


def _empty(raw: RawFile) -> str:
    columns = ", ".join(f'CAST(NULL AS {kind}) AS "{name}"' for name, kind in (raw.columns | raw.optional).items())
    return f"SELECT {columns} WHERE false"


def _columns(path: Path) -> list[str]:
    """Return the names of a file's columns, in order."""
    try:
        if path.suffix == ".npy":
            return list(_ARRAY.names)
        if path.suffix == ".parquet":
            return pq.read_schema(path).names
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file), [])
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read ({str(error).splitlines()[0]}); write or copy it again") from None
    if not names:
        raise BadInput(f"{path} is empty; its first line must name its columns")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInput(f"{path}, line 1: column '{twice}' stands twice; leave one of them out")
    return names


def _stored(connection: duckdb.DuckDBPyConnection, path: Path) -> str:
    """Copy an array of vectors to a table of the database, a part at a time, and return its name.

    Raises:
        BadInput: it is no array of float vectors.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read ({str(error).splitlines()[0]}); write or copy it again") from None
    if array.ndim != 2 or array.dtype.kind != "f":
        raise BadInput(f"{path} is an array {array.shape} of {array.dtype}; write vectors of floats, a row for each")

    def parts() -> Iterator[pa.RecordBatch]:
        for first in range(0, len(array), _ROWS):
            part = np.ascontiguousarray(array[first : first + _ROWS], np.float32)
            offsets = np.arange(len(part) + 1, dtype=np.int32) * array.shape[1]
            vectors = pa.ListArray.from_arrays(pa.array(offsets), pa.array(part.ravel()))
            rows = pa.array(np.arange(first, first + len(part)))
            yield pa.RecordBatch.from_arrays([rows, vectors], schema=_ARRAY)

    table = f'"array {path}"'
    found = pa.RecordBatchReader.from_batches(_ARRAY, parts())
    connection.register("found_array", found)
    connection.execute(f"CREATE OR REPLACE TABLE {table} AS FROM found_array")
    connection.unregister("found_array")
    return table


def check_path(option: str, path: Path) -> None:
    """Refuse the path of a folder that SQL would read as something else."""
    if set("'*?[]") & set(str(path)):
        raise BadInput(f"{option} {path}: DuckDB takes ' * ? [ ] in a path for a pattern; choose one without them")


def text(value: str) -> str:
    """Return text as SQL writes it."""
    return "'" + value.replace("'", "''") + "'"


def complaint(error: duckdb.Error, folder: Path) -> BadInput:
    """Return one sentence about raw data that DuckDB cannot read."""
    words = str(error)
    file, line = re.search(r"^ *file = (.+)$", words, re.M), re.search(r"CSV Error on Line: (\d+)", words)
    place = (file.group(1).strip() if file else str(folder)) + (f", line {line.group(1)}" if line else "")
    if what := re.search(r'converting column "([^"]+)"\. Could not convert string "(.*?)" to \'(\w+)', words, re.S):
        column, value, kind = what.groups()
        return BadInput(f"{place}: {column} is '{value}', not {_KINDS.get(kind, kind)}; correct the file")
    if what := re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", words):
        return BadInput(f"{place}: {what.group(2)} fields where {what.group(1)} belong; correct the file")
    return BadInput(f"{place}: it cannot be read ({words.strip().splitlines()[0]}); correct the file")


_KINDS = {"BIGINT": "a whole number", "DOUBLE": "a number", "DATE": "a date", "TIMESTAMP": "a time"}


def check_times(name: str, least: int | None, most: int | None) -> None:
    """Refuse times that are no milliseconds since 1970, which would make days of no meaning."""
    for time in (least, most):
        if time is not None and not _EARLIEST <= time <= _LATEST:
            raise BadInput(
                f"{name}: an exposure's time is {time}, as milliseconds since 1970 outside the years 2000 to 2100; "
                "correct the log's times"
            )
