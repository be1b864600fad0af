"""Looking at a file that nobody has described: its dialect, and what is in each column of a sample."""

import codecs
import csv
import datetime
import io
import itertools
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from livetrain.configs.errors import BadInput
from livetrain.configs.spec import Files
from livetrain.trainers.data.sources.table import files
from livetrain.trainers.data.sources.table.files import quoted

SAMPLE = 20_000  # rows of a file whose values are looked at one by one
_HEAD = 2**18  # bytes that tell a text file's dialect
_LINES = 200
_DELIMITERS = (",", "\t", ";", "|", " ")
_TRUE = ("true", "yes", "y", "t", "on", "ja", "oui", "si", "sí", "sim", "是")
_FALSE = ("false", "no", "n", "f", "off", "nein", "non", "no", "no", "não", "否")
_MOST = 0.98  # share of a column's values that must be of a kind
_WHOLE = re.compile(r"[+-]?\d{1,18}(\.0+)?")
_NUMBER = re.compile(r"[$€£¥]?\s?[+-]?(\d+|\d{1,3}(,\d{3})+)(\.\d*)?([eE][+-]?\d+)?\s?[%€$£¥]?|[+-]?\.\d+")
_COMMA = re.compile(r"[$€£¥]?\s?[+-]?(\d+|\d{1,3}(\.\d{3})+),\d+\s?[%€$£¥]?")
_ISO = re.compile(r"\d{4}-\d\d?-\d\d?([ T]\d\d?:\d\d(:\d\d(\.\d+)?)?)?\s?(Z|UTC|[+-]\d\d(:?\d\d)?)?")
_CLOCK = re.compile(r"\d{1,2}:\d\d(:\d\d(\.\d+)?)?")
_DATES: tuple[str, ...] = (
    "%Y/%m/%d",
    "%m/%d/%Y",
    "%d/%m/%Y",
    "%d.%m.%Y",
    "%m-%d-%Y",
    "%d-%m-%Y",
    "%Y.%m.%d",
    "%Y%m%d",
    "%d %b %Y",
)
_DATES += ("%b %d, %Y", "%d-%b-%Y", "%d %B %Y", "%B %d, %Y", "%m/%d/%y", "%d/%m/%y", "%d.%m.%y", "%d-%b-%y", "%b %d %Y")
_CLOCKS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p", " %H:%M:%S.%f", "T%H:%M:%S", ", %H:%M", ", %I:%M %p")
_WHOLE_DATES: tuple[str, ...] = ("%a %b %d %H:%M:%S %Y", "%d/%b/%Y:%H:%M:%S %z", "%a, %d %b %Y %H:%M:%S")
PATTERNS = (*(date + clock for date, clock in itertools.product(_DATES, _CLOCKS)), *_WHOLE_DATES)


@dataclass
class Looked:
    """A column of a file, by a sample of its values.

    Args:
        name: as the file has it, or made where it has none.
        type: DuckDB's; VARCHAR of everything in a CSV.
        values: (sampled rows,) as text, None where there is none; of a list its text.
        distinct: about how many different values the file has.
        rows: of the file.
        kind: empty, constant, flag, whole, number, time, clock, tags, ids, vector, words or string.
        detail: of a flag the word for true, of a time its format, of a list its separator.
        width: of a vector.
    """

    name: str
    type: str
    values: list[str | None]
    distinct: int
    rows: int
    kind: str = "string"
    detail: str = ""
    width: int = 0
    given: list[str] = field(default_factory=list)

    @property
    def numbers(self) -> list[float]:
        """The values of a column of numbers."""
        return [number for text in self.given if (number := as_number(text)) is not None]


@dataclass
class LookedFile:
    """A file: how it is read, how many rows it has, and its columns."""

    path: str
    files: Files
    rows: int
    columns: list[Looked]

    def column(self, name: str) -> Looked:
        return next(column for column in self.columns if column.name == name)


def as_number(text: str) -> float | None:
    """Return a number that is written with a point or a comma, thousands, a currency or a per cent."""
    bare = re.sub(r"[\s$€£¥%]", "", text)
    bare = bare.replace(".", "").replace(",", ".") if _COMMA.fullmatch(text.strip()) and "," in bare[-4:] else bare
    try:
        return float(re.sub(r",(\d{3})", r"\1", bare))
    except ValueError:
        return None


def look(connection: duckdb.DuckDBPyConnection, path: str, number: int, work: Path) -> LookedFile:
    """Look at one file, whose rows become the view `file NUMBER`.

    Raises:
        BadInput: it is missing, empty, or of no format that is known.
    """
    folder = Path("/") if "://" in path else Path(path).resolve().parent
    name = path if "://" in path else Path(path).name
    described = Files(files=[name])
    if files.kind_of(described, path) == "csv":
        local = path
        if "://" in path:
            local = files.copied(path, "csv", f"looked_{number}", work)
        described = dialect(local, name)
    view = f"file {number}"
    names = files.open_files(connection, view, described, folder, work)
    counted = ", ".join(f"approx_count_distinct({sql})" for sql in names.values())
    rows, *distinct = connection.execute(f"SELECT count(*), {counted} FROM {quoted(view)}").fetchall()[0]
    if not rows:
        raise BadInput(f"{path} has no rows; name a file with rows")
    sample = quoted(f"sample {number}")
    sampled = (
        f"CREATE OR REPLACE TABLE {sample} AS FROM {quoted(view)} USING SAMPLE reservoir({SAMPLE} ROWS) REPEATABLE (1)"
    )
    connection.execute(sampled)
    columns = []
    for (column, sql), about in zip(names.items(), distinct, strict=True):
        kind = connection.execute(f"DESCRIBE SELECT {sql} FROM {sample}").fetchall()[0][1]
        values = connection.execute(f"SELECT CAST({sql} AS VARCHAR) FROM {sample}").fetchall()
        columns.append(_looked(column, kind, [value for (value,) in values], about, rows))
    if any(_comma(column) for column in columns) and described.format != "json":
        described = described.model_copy(update={"decimal": ","})
        files.open_files(connection, view, described, folder, work)
        connection.execute(sampled)
    return LookedFile(path, described, rows, columns)


def dialect(path: str, name: str) -> Files:
    """Return how a text file is read: its encoding, its delimiter, and whether its first line names the columns."""
    with files.opened(path, "latin-1") as file:
        raw = file.read(_HEAD).encode("latin-1")
    if not raw.strip():
        raise BadInput(f"{path} is empty; name a file with rows")
    encoding = "utf-8"
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in raw:
        raise BadInput(f"{path} is no text; name a CSV file, or give a file of another format its ending")
    else:
        try:
            codecs.getincrementaldecoder("utf-8")().decode(raw)
        except UnicodeDecodeError:
            encoding = "cp1252"
    text = raw.decode("utf-8-sig" if encoding == "utf-8" else encoding, errors="replace")
    best: tuple[tuple[float, int], str, list[list[str]]] | None = None
    for delimiter in _DELIMITERS:
        parsed = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=False)
        try:
            lines = [line for line in itertools.islice(parsed, _LINES) if line]
        except csv.Error:
            continue
        lines = lines[:-1] if len(raw) >= _HEAD or len(lines) > _LINES else lines
        width, times = Counter(map(len, lines)).most_common(1)[0]
        if len(lines[0]) != width or width < 2:
            continue
        score = (round(times / len(lines), 1), width)
        if best is None or score > best[0]:
            best = (score, delimiter, lines)
    try:
        _, delimiter, lines = best or ((0, 0), ",", [line for line in csv.reader(io.StringIO(text)) if line][:_LINES])
    except csv.Error as error:
        raise BadInput(f"{path} cannot be read as CSV ({error}); write it again") from None
    return Files(
        files=[name],
        format=None if files.known(name) else "csv",
        delimiter=delimiter,
        header=_names(lines),
        encoding=encoding,
    )


def _names(lines: list[list[str]]) -> bool:
    """Tell whether the first line names columns: words, each once, which no other line has in the same place."""
    first = [cell.strip() for cell in lines[0]]
    if any(_NUMBER.fullmatch(cell) or _ISO.fullmatch(cell) for cell in first):
        return False
    if len(lines) == 1:
        return True
    repeated = sum(
        cell != "" and any(line[place : place + 1] == [cell] for line in lines[1:]) for place, cell in enumerate(first)
    )
    return repeated * 2 <= len(first)


def _comma(column: Looked) -> bool:
    """Tell whether a column's numbers have a decimal comma."""
    written = [value.strip() for value in column.given]
    commas = sum(_COMMA.fullmatch(value) is not None for value in written)
    return (
        column.kind == "number"
        and commas * 2 > len(written)
        and not any(re.fullmatch(r"[$€£¥]?\d{1,3}(,\d{3})+", value) for value in written[:50] if len(written) == commas)
    )


def _share(values: list[str], pattern: re.Pattern) -> float:
    return sum(pattern.fullmatch(value) is not None for value in values) / len(values)


def _looked(name: str, kind: str, values: list[str | None], distinct: int, rows: int) -> Looked:
    """Return what a column holds."""
    column = Looked(name, kind, values, distinct, rows)
    column.given = [value.strip() for value in values if value is not None and value.strip()]
    different = dict.fromkeys(column.given)
    if not column.given:
        column.kind = "empty"
    elif "[" in kind:
        _of_list(column, kind)
    elif kind.startswith(("STRUCT", "MAP", "BLOB")):
        column.kind = "nested"
    elif len(different) == 1 and len(column.given) == len(values):
        column.kind = "constant"
    elif kind.startswith(("TIMESTAMP", "DATE")):
        column.kind, column.detail = "time", "iso"
    elif words := _flag(different):
        column.kind, column.detail = "flag", words
    else:
        _of_text(column, list(different))
    return column


def _flag(different: dict[str, None]) -> str:
    """Return the word for true of a column that has two words, or 0 and 1."""
    words = {word.casefold() for word in different}
    if words <= {"0", "1", "0.0", "1.0"}:
        return "1"
    return next((true for true, false in zip(_TRUE, _FALSE, strict=True) if words <= {true, false}), "")


def _of_list(column: Looked, kind: str) -> None:
    """Say what a column of lists holds: vectors are of one length, and of fractions."""
    parts = [[part for part in value.strip("[]").split(", ") if part] for value in column.given]
    widths = {len(part) for part in parts}
    if kind.startswith(("FLOAT", "DOUBLE", "DECIMAL", "HALF")):
        column.kind, column.width = ("vector", widths.pop()) if len(widths) == 1 else ("nested", 0)
    elif "INT" in kind.split("[")[0]:
        column.kind = "ids"
    else:
        column.kind = "tags" if kind.startswith("VARCHAR") else "nested"
    column.detail = ","


def _of_text(column: Looked, different: list[str]) -> None:
    """Say what a column of single values holds."""
    given = column.given
    if _share(given, _WHOLE) >= _MOST:
        column.kind = "whole"
        if format_ := epoch(column):
            column.detail = format_
        elif different[0].isdigit() and len(different[0]) == 8 and (pattern := _pattern(different[:300])):
            column.kind, column.detail = "time", pattern
    elif _share(given, _NUMBER) >= _MOST or (_share(given, _COMMA) + _share(given, _WHOLE)) >= _MOST:
        column.kind, column.detail = "number", epoch(column)
    elif _share(given, _ISO) >= _MOST:
        column.kind, column.detail = "time", "iso"
    elif _share(given, _CLOCK) >= _MOST:
        column.kind = "clock"
    elif pattern := _pattern(different[:300]):
        column.kind, column.detail = "time", pattern
    elif not _listed(column):
        spaces = sum(value.count(" ") for value in given) / len(given)
        column.kind = "words" if spaces >= 4 and len(different) > len(given) / 2 else "string"


def _pattern(different: list[str]) -> str:
    """Return the pattern of strptime that all values fit; of several, month first as long as no day says otherwise."""

    def fits(value: str, pattern: str) -> bool:
        try:
            return 1970 <= datetime.datetime.strptime(value, pattern).year <= 2200
        except ValueError:
            return False

    return next((pattern for pattern in PATTERNS if all(fits(value, pattern) for value in different)), "")


def epoch(column: Looked) -> str:
    """Return the unit in which a column of numbers counts time since 1970, '' where it does not: years 1995 to 2100."""
    numbers = column.numbers
    if not numbers:
        return ""
    for unit, scale in (("s", 1), ("ms", 1000), ("us", 10**6), ("ns", 10**9)):
        if min(numbers) >= 788_918_400 * scale and max(numbers) <= 4_102_444_800 * scale:
            return unit
    return ""


def _listed(column: Looked) -> bool:
    """Find out whether a column of text holds lists, and of what."""
    bare = [re.sub(r"^[\s\[({]+|[\s\])}]+$", "", value) for value in column.given]
    bracketed = any(value.startswith(("[", "(", "{")) for value in column.given)
    for separator in ("|", ";", ",", " "):
        parts = [[part.strip(" \"'") for part in value.split(separator) if part.strip(" \"'")] for value in bare]
        several = sum(len(part) > 1 for part in parts)
        if several < max(len(parts) * 0.1, 2):
            continue
        flat = list(itertools.chain(*parts))
        widths = {len(part) for part in parts}
        numeric = _share(flat, re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")) >= _MOST
        if numeric and len(widths) == 1 and max(widths) >= 3 and any("." in part for part in flat[:1000]):
            column.kind, column.detail, column.width = "vector", separator, widths.pop()
            return True
        if numeric and all(part.lstrip("-").isdigit() for part in flat[:1000]):
            column.kind, column.detail = "ids", separator
            return True
        short = sum(map(len, flat)) / len(flat) <= 25 and max(map(len, flat)) <= 60
        again = len(set(flat)) <= 0.5 * len(flat) or len(set(flat)) < 200
        if separator != " " and short and (again or bracketed) and not numeric:
            column.kind, column.detail = "tags", separator
            return True
    return False
