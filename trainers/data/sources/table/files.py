"""The files of one table as a DuckDB view, whatever their format and wherever they lie.

A column of CSV that has numbers throughout is one of numbers in expressions; its text stands beside it, so that nothing
is lost where the spec says that it is something else. A CSV line that does not parse
is left out and counted. CSV and JSON lines at a URI are copied to the work folder first; Parquet and ORC are read where
they lie.
"""

import csv
import glob
import io
import os
import re
import shutil
from pathlib import Path
from typing import TextIO

import duckdb
import pyarrow as pa
import pyarrow.dataset

from livetrain.configs.errors import BadInput, without_credentials
from livetrain.configs.spec import Files
from livetrain.trainers.data.expression import alone, named
from livetrain.trainers.runtime import reach

ENDINGS = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".dat": "csv", ".json": "json", ".jsonl": "json"}
ENDINGS |= {".ndjson": "json", ".parquet": "parquet", ".pq": "parquet", ".orc": "orc"}
_PACKED = (".gz", ".zst")
NULLS = ("", "NULL", "null", "NaN", "nan", "None", "\\N")
_LONGEST_LINE = 2**24  # bytes
COPY = 2**22  # bytes
_HEAD = 200_000  # rows of a CSV file that tell which of its columns are numbers
_TEXT = "text of "  # before the name of a column of numbers: the text that its file has
_WHOLE = "regexp_full_match({0}, '[+-]?[0-9]+')"
_FILLED = "coalesce({0}, '') != ''"


def found(files: Files, folder: Path) -> list[str]:
    """Return the paths and URIs that a spec's patterns name.

    Raises:
        BadInput: a pattern names nothing or a folder, or a file is named twice.
    """
    paths: dict[str, str] = {}  # real path -> as it was found
    for pattern in files.files:
        whole = folder / pattern
        here = [pattern] if "://" in pattern else [str(whole)] if whole.exists() else sorted(glob.glob(str(whole)))
        if not here:
            raise BadInput(f"there is no file {whole}; correct the path, which is seen from {folder}/")
        for path in here:
            real = path if "://" in path else os.path.realpath(path)
            if os.path.isdir(real):
                raise BadInput(f"{path} is a folder; name its files, as {path}/*.parquet")
            if real in paths:
                shown = without_credentials(path)
                raise BadInput(f"{shown} is named twice, so that every row would stand twice; name each file once")
            paths[real] = path
    return list(paths.values())


def kind_of(files: Files, path: str) -> str:
    """Return the format of a file: what the spec says, or else its name's ending.

    Raises:
        BadInput: neither does.
    """
    name = path
    for ending in _PACKED:
        name = name.removesuffix(ending)
    kind = files.format or ENDINGS.get(Path(name).suffix.lower())
    if kind is None:
        raise BadInput(
            f"{without_credentials(path)}: its name ends with none of {', '.join(ENDINGS)}; say format: csv, json, "
            "parquet or orc"
        )
    return kind


def open_files(
    connection: duckdb.DuckDBPyConnection, table: str, files: Files, folder: Path, work: Path
) -> dict[str, str]:
    """Make the view `table` of all rows of some files; return the SQL of each column as the files have it, by its name.

    A column's own name is its value in expressions: of a column of CSV that has numbers throughout a number, null where
    a later row has none.

    Args:
        connection: gets the view.
        table: its name.
        files: of a spec.
        folder: that paths are seen from.
        work: for copies of text files that lie at a URI.

    Raises:
        BadInput: a file is missing, cannot be read or has other columns than the first.
    """
    parts: list[str] = []
    first: list[str] = []
    kinds: set[str] = set()
    for place, path in enumerate(found(files, folder)):
        kind = kind_of(files, path)
        try:
            if "://" in path and kind in ("csv", "json"):
                path = copied(path, kind, f"{table}_{place}", work)
            if kind == "csv" and files.encoding != "utf-8":
                path = _recoded(path, files.encoding, work / f"{table}_{place}.utf-8.csv")
            select = _select(connection, files, path, kind, f"{table}_{place}")
            columns = [name for name, *_ in connection.execute(f"DESCRIBE {select}").fetchall()]
        except (duckdb.Error, pa.ArrowException, OSError, UnicodeError, csv.Error) as error:
            why = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise BadInput(f"{without_credentials(path)} cannot be read ({why}); write it again") from error
        if sorted(columns) != sorted(first or columns):
            other = next(name for name in (*columns, *first) if (name in columns) != (name in first))
            raise BadInput(f"{path}: column '{other}' is not in all files of this table; name files of one kind")
        first = first or columns
        parts.append(select)
        kinds.add(kind)
    numeric = _numeric(connection, parts, first, files.decimal) if kinds == {"csv"} else {}
    if files.where:
        named("where", files.where)
    where = f" WHERE {alone(files.where)}" if files.where else ""
    union = " UNION ALL BY NAME ".join(parts)
    as_numbers = [f"{number(quoted(name), files.decimal, kind)} AS {quoted(name)}" for name, kind in numeric.items()]
    texts = "".join(f", {quoted(name)} AS {quoted(_TEXT + name)}" for name in numeric)
    replaced = f" REPLACE ({', '.join(as_numbers)})" if as_numbers else ""
    connection.execute(
        f"CREATE OR REPLACE VIEW {quoted('all of ' + table)} AS SELECT *{replaced}{texts} FROM ({union})"
    )
    try:
        connection.execute(
            f"CREATE OR REPLACE VIEW {quoted(table)} AS SELECT * FROM {quoted('all of ' + table)}{where}"
        )
    except duckdb.Error as error:
        raise BadInput(f"where: {short(error)}") from None
    return {name: quoted(_TEXT + name if name in numeric else name) for name in first}


def _numeric(connection: duckdb.DuckDBPyConnection, parts: list[str], names: list[str], decimal: str) -> dict[str, str]:
    """Return the columns of CSV files that have numbers throughout the first rows of each, and DuckDB's type of them.

    Whole numbers with a leading 0 and those beyond 64 bits are codes, which stay text.
    """
    asked = []
    for name in map(quoted, names):
        bare = f"trim({name})"
        whole = _WHOLE.format(bare)
        asked += [
            f"bool_and({number(name, decimal)} IS NOT NULL) FILTER ({_FILLED.format(bare)}) AND NOT "
            f"bool_or(regexp_full_match({bare}, '[+-]?0[0-9]+') OR {whole} AND TRY_CAST({bare} AS BIGINT) IS NULL)",
            f"bool_and({whole}) FILTER ({_FILLED.format(bare)})",
        ]
    heads = " UNION ALL BY NAME ".join(f"({part} LIMIT {_HEAD})" for part in parts)
    found = connection.execute(f"SELECT {', '.join(asked)} FROM ({heads})").fetchall()[0]
    pairs = zip(names, found[::2], found[1::2], strict=True)
    return {name: "BIGINT" if whole else "DOUBLE" for name, numbers, whole in pairs if numbers}


def number(sql: str, decimal: str, kind: str = "DOUBLE") -> str:
    """Return SQL for the number that a text is, null where it is none; it may have thousands, in groups of three."""
    point, group = re.escape(decimal), re.escape("." if decimal == "," else ",")
    bare = f"trim({sql})"
    if kind == "BIGINT":
        return f"CASE WHEN {_WHOLE.format(bare)} THEN TRY_CAST({bare} AS BIGINT) END"
    grouped = f"regexp_full_match({bare}, '[+-]?[0-9]{{1,3}}({group}[0-9]{{3}})+({point}[0-9]*)?')"
    single = f"regexp_full_match({bare}, '[+-]?([0-9]+({point}[0-9]*)?|{point}[0-9]+)([eE][+-]?[0-9]+)?')"
    digits = f"translate({bare}, '{decimal}{group[-1]}', '.')"
    return f"CASE WHEN {grouped} OR {single} THEN TRY_CAST({digits} AS {kind}) END"


def lost(table: str, name: str) -> str:
    """Return SQL that says whether a column of numbers has a text where its number is null."""
    filled = _FILLED.format(f"trim({quoted(table)}.{quoted(_TEXT + name)})")
    return f"{quoted(table)}.{quoted(name)} IS NULL AND {filled}"


def quoted(name: str) -> str:
    """Return a name as SQL takes it, whatever letters it has."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """Return a string as SQL takes it."""
    return "'" + value.replace("'", "''") + "'"


def short(error: duckdb.Error) -> str:
    """Return what DuckDB says of an expression in one line, without the name of its error's class."""
    line = str(error).strip().splitlines()[0]
    for prefix in ("Binder Error: ", "Parser Error: ", "Catalog Error: ", "Conversion Error: "):
        line = line.removeprefix(prefix)
    return line[:1].lower() + line[1:].rstrip(".!")


def known(name: str) -> bool:
    """Return whether a file's ending says its format."""
    for ending in _PACKED:
        name = name.removesuffix(ending)
    return Path(name).suffix.lower() in ENDINGS


def copied(uri: str, kind: str, name: str, work: Path) -> str:
    """Copy a text file to the work folder and return its path."""
    system, inner = reach.from_uri(uri)
    packed = next((ending for ending in _PACKED if inner.endswith(ending)), "")
    copy = work / f"{name}.{kind}{packed}"
    with system.open_input_stream(inner, compression=None) as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target, COPY)
    return str(copy)


def _recoded(path: str, encoding: str, copy: Path) -> str:
    """Write a text file of another encoding as UTF-8, and return its path."""
    with opened(path, encoding) as source, copy.open("w", encoding="utf-8", newline="") as target:
        shutil.copyfileobj(source, target, COPY)
    return str(copy)


def _select(connection: duckdb.DuckDBPyConnection, files: Files, path: str, kind: str, name: str) -> str:
    if kind == "csv":
        nulls = ", ".join(map(text, NULLS))
        columns = ", ".join(f"{text(column)}: 'VARCHAR'" for column in header(files, path))
        return (
            f"SELECT * FROM read_csv({text(escaped(path))}, auto_detect = false, header = {files.header}, skip = 0, "
            f"delim = {text(files.delimiter)}, quote = {text(files.quote)}, escape = {text(files.quote)}, "
            f"columns = {{{columns}}}, nullstr = [{nulls}], ignore_errors = true, "
            f"store_rejects = true, max_line_size = {_LONGEST_LINE})"
        )
    if kind == "json":
        return f"SELECT * FROM read_json({text(escaped(path))}, format = 'newline_delimited', sample_size = -1)"
    if kind == "parquet" and "://" not in path:
        return f"SELECT * FROM read_parquet({text(escaped(path))}, hive_partitioning = false)"
    system, inner = reach.from_uri(path)
    connection.register(f"data of {name}", pyarrow.dataset.dataset(inner, filesystem=system, format=kind))
    return f"SELECT * FROM {quoted(f'data of {name}')}"


def escaped(path: str) -> str:
    """Return a path in which DuckDB sees no pattern."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path)


def header(files: Files, path: str) -> list[str]:
    """Return the names of a text file's columns: each once, in whatever case, and none empty."""
    with opened(path, "utf-8") as file:
        names = next(csv.reader(file, delimiter=files.delimiter, quotechar=files.quote), [])
    if not names:
        raise BadInput(f"{path} is empty; name a file with rows")
    made: list[str] = []
    for number, name in enumerate(names):
        name = (files.header and name.strip()) or f"column{number}"
        taken, tries = {other.casefold() for other in made}, 2
        while name.casefold() in taken:
            name = f"{name.removesuffix(f'_{tries - 1}')}_{tries}"
            tries += 1
        made.append(name)
    return made


def opened(path: str, encoding: str) -> TextIO:
    """Open a text file, packed or not."""
    codec = "utf-8-sig" if encoding == "utf-8" else encoding
    stream = pa.input_stream(path, compression="detect")
    return io.TextIOWrapper(stream, encoding=codec, newline="", errors="replace")
