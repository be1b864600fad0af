"""A spec's expressions as one SELECT over the log and what is joined to it; every complaint names its key.

The SELECT gives ROW (its number in the files), `timestamp` (ms since 1970), `day`, `hour`, `weekday`, the columns and
the labels, and for the report `bad.COLUMN` (a value that its type does not take), `bad.TABLE.COLUMN` (a value of the
files that is no number, and null in expressions) and `lost.JOIN` (an id that the joined table does not have).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from duckdb.func import FunctionNullHandling, PythonUDFType

from livetrain.configs.errors import BadInput
from livetrain.configs.spec import Column, Files, Loaded, Spec, Time
from livetrain.trainers.data.expression import alone, named
from livetrain.trainers.data.sources.table.files import lost, number, quoted, short, text
from livetrain.trainers.data.write import layout
from livetrain.trainers.data.write.ids import string_ids

_LATEST = 7_258_118_400_000  # ms: the year 2200; a later time is a mistake of the format
ROW, KEY = '"livetrain row"', '"livetrain key"'
"""Columns that are added to the files' own: a row's number, and a joined table's id as text."""
_WHOLE = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
TEXTS = ("string", "text", "tags")
"""Types of columns that take any text."""
_QUOTES = "' \"'''"  # around the parts of a list, as SQL text


@dataclass(frozen=True)
class Expression:
    """A place of the spec, its SQL, and DuckDB's type of it."""

    place: str
    sql: str
    type: str


class Scope:
    """What expressions can name: the log's columns, and those of joined tables.

    Args:
        connection: has a view `log` and a table per join.
        loaded: the spec.
        columns: of the log's files and of each joined table's, in which a name needs no quotes: name -> SQL of the
            column as the files have it, see files.open_files.
        repeated: joined table -> ids with several rows, of which the first is taken.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        loaded: Loaded[Spec],
        columns: dict[str, dict[str, str]],
        repeated: dict[str, int],
    ):
        self.repeated = repeated
        self._connection, self._loaded, self._columns = connection, loaded, columns
        self.joins = self._joined()

    def _joined(self) -> str:
        """Return FROM with all joins, each of which matches ids whatever their types."""
        sql = "FROM log"
        for name, join in self._loaded.spec.joins.items():
            on = self._checked(f"joins.{name}.on", join.on, "FROM log")
            sql += f" LEFT JOIN {quoted(name)} ON {quoted(name)}.{KEY} = id_text({on.sql})"
        return sql

    def _bare(self, written: str) -> tuple[str, str] | None:
        """Return the table and the column that a column's own name is, None of an expression."""
        if written in self._columns["log"]:
            return "log", written
        table, _, column = written.partition(".")
        return (table, column) if column in self._columns.get(table, ()) else None

    def _of(self, written: str) -> list[tuple[str, str]]:
        """Return the tables and columns that an expression names, as far as the files have them."""
        if bare := self._bare(written):
            return [bare]
        found = []
        for *table, column in named("", written):
            for other in table or self._columns:
                same = [name for name in self._columns.get(other, ()) if name.casefold() == column.casefold()]
                found += [(other, name) for name in same]
        return found

    def _checked(self, place: str, written: str, source: str) -> Expression:
        if bare := self._bare(written):
            table, column = bare
            sql = f"{quoted(table)}.{self._columns[table][column]}"
        else:
            named(self._loaded.where(place), written)
            sql = alone(written)
        try:
            described = self._connection.execute(f"DESCRIBE SELECT {sql} {source}").fetchall()
        except duckdb.Error as error:
            raise BadInput(f"{self._loaded.where(place)}: DuckDB does not take it: {short(error)}") from None
        return Expression(place, sql, described[0][1])

    def expression(self, place: str, written: str) -> Expression:
        """Return the expression at a place of the spec.

        Raises:
            BadInput: DuckDB does not take it.
        """
        return self._checked(place, written, self.joins)

    def expressions(self) -> Iterator[Expression]:
        """Yield every expression of columns, labels and time."""
        spec = self._loaded.spec
        if spec.time is not None:
            yield self.expression("time.column", spec.time.column)
        for name, column in spec.columns.items():
            yield self.expression(f"columns.{name}" + (".column" if column.column else ""), column.column or name)
        for name, label in spec.labels.items():
            yield self.expression(f"labels.{name}", label)

    def select(self) -> tuple[str, str]:
        """Return SQL for the typed rows, and for their days alone."""
        spec = self._loaded.spec
        made, moment = [f"log.{ROW} AS {ROW}"], ""
        for found in self.expressions():
            section, _, rest = found.place.partition(".")
            if section == "time":
                assert spec.time is not None
                moment = _moment(spec.time, found)
                made += [f"{moment} AS timestamp"]
            elif section == "columns":
                name = rest.removesuffix(".column")
                typed = _typed(spec.columns[name], found, self._decimal(spec.columns[name].column or name))
                made += [f"{typed} AS {quoted(name)}"]
                if spec.columns[name].type not in TEXTS:
                    made += [f'{_given(found)} AND {typed} IS NULL AS "bad.{name}"']
            else:
                made += [f"{self.label(found)} AS {quoted(rest)}"]
        made += [f'{quoted(name)}.{KEY} IS NULL AS "lost.{name}"' for name in spec.joins]
        made += [f"{lost(table, name)} AS {quoted(f'bad.{table}.{name}')}" for table, name in self._numbers()]
        rows = f"SELECT {', '.join(made)} {self.joins}"
        if not moment:
            return f"SELECT *, NULL::DATE AS day FROM ({rows})", "SELECT NULL::DATE AS day FROM log"
        local = "to_timestamp(timestamp / 1000.0)"
        day, hour = f"CAST({local} AS DATE) AS day", f"CAST(date_part('hour', {local}) AS BIGINT) AS hour"
        weekday = f"CAST(date_part('isodow', {local}) - 1 AS BIGINT) AS weekday"
        return (
            f"SELECT *, {day}, {hour}, {weekday} FROM ({rows})",
            f"SELECT timestamp, {day} FROM (SELECT {moment} AS timestamp {self.joins})",
        )

    def _numbers(self) -> list[tuple[str, str]]:
        """Return the columns of CSV that expressions take for numbers, each once."""
        spec = self._loaded.spec
        written = [column.column for column in spec.columns.values() if column.column] + list(spec.labels.values())
        found = [of for sql in written if not self._bare(sql) for of in self._of(sql)]
        return [(table, name) for table, name in dict.fromkeys(found) if self._columns[table][name] != quoted(name)]

    def no_numbers(self) -> Iterator[tuple[str, str, int, str]]:
        """Yield (place, column, how many, one of them) of texts of CSV that are no numbers, and so null in expressions.

        Of the places by which rows are chosen, joined and given a time; those of columns and labels `select` counts.
        """
        spec = self._loaded.spec
        asked: list[tuple[str, str | None, str | None, bool]] = [("log.where", "log", spec.log.where, True)]
        for name, join in spec.joins.items():
            asked += [(f"joins.{name}.where", name, join.where, True), (f"joins.{name}.on", "log", join.on, False)]
        if spec.time is not None:
            asked.append(("time.column", None, spec.time.column, False))
        for place, only, written, chooses in asked:
            if written is None or not chooses and self._bare(written):
                continue
            for table, name in dict.fromkeys(self._of(written)):
                if only not in (None, table) or self._columns[table][name] == quoted(name):
                    continue
                rows = quoted(f"all of files of {table}" if chooses else f"files of {table}")
                found = self._connection.execute(
                    f"SELECT count(*), min({self._columns[table][name]}) FROM {rows} {quoted(table)} "
                    f"WHERE {lost(table, name)}"
                ).fetchall()[0]
                if found[0]:
                    yield place, f"{table}.{name}", *found

    def _decimal(self, written: str) -> str:
        """Return the decimal sign of the one table that an expression is over, or else of the log."""
        tables = {table for table, _ in self._of(written)}
        files: Files = self._loaded.spec.log
        if len(tables) == 1:
            files = self._loaded.spec.joins.get(tables.pop(), files)
        return files.decimal

    def label(self, found: Expression) -> str:
        """Return a label's SQL: 1 and 0 of what is true or false, or else a number."""
        if found.type == "BOOLEAN":
            return f"CAST({found.sql} AS TINYINT)"
        return _number(found, self._decimal(self._loaded.spec.labels[found.place.removeprefix("labels.")]))

    def mend(self, error: duckdb.Error) -> BadInput:
        """Return which expression DuckDB could not compute, in one sentence."""
        for found in self.expressions():
            try:
                self._connection.execute(f"SELECT count({found.sql}) {self.joins}").fetchall()
            except duckdb.Error as why:
                return BadInput(f"{self._loaded.where(found.place)}: DuckDB cannot compute it: {short(why)}")
        return BadInput(f"{self._loaded.where('log')}: the files cannot be read: {short(error)}")


def add_functions(connection: duckdb.DuckDBPyConnection) -> None:
    """Give SQL what specs are translated to besides `string_id`: `id_text` and `tag_ids`."""
    connection.execute(
        "CREATE OR REPLACE MACRO id_text(x) AS "
        "CASE WHEN CAST(x AS VARCHAR) SIMILAR TO '-?[0-9]+\\.0+' THEN split_part(CAST(x AS VARCHAR), '.', 1) "
        "ELSE nullif(trim(CAST(x AS VARCHAR)), '') END"
    )
    connection.create_function(
        "tag_ids",
        _tag_ids,
        ["VARCHAR[]"],
        "BIGINT[]",
        type=PythonUDFType.ARROW,
        null_handling=FunctionNullHandling.SPECIAL,
    )


def _tag_ids(tags: pa.ChunkedArray | pa.ListArray) -> pa.Array:
    column = tags.combine_chunks() if isinstance(tags, pa.ChunkedArray) else tags
    sizes = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    offsets = [0, *sizes.cumsum().tolist()]
    return layout.lists(offsets, string_ids(column.flatten()), pa.int64()).cast(pa.list_(pa.int64()))


def _given(found: Expression) -> str:
    """Return SQL that says whether a value is there at all."""
    return (
        f"({found.sql} IS NOT NULL AND trim(CAST({found.sql} AS VARCHAR)) != '')"
        if found.type == "VARCHAR"
        else (f"({found.sql} IS NOT NULL)")
    )


def _moment(time: Time, found: Expression) -> str:
    """Return SQL for ms since 1970, null where the value is no time between 1970 and 2200."""
    scale = {"s": 1000.0, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
    if time.format in scale:
        ms = f"CAST(floor(TRY_CAST({found.sql} AS DOUBLE) * {scale[time.format]}) AS BIGINT)"
    elif time.format == "iso":
        ms = f"epoch_ms(TRY_CAST({found.sql} AS TIMESTAMPTZ))"
    else:
        parsed = f"try_strptime(CAST({found.sql} AS VARCHAR), {text(time.format)})"
        ms = f"epoch_ms(CAST({parsed} AS TIMESTAMPTZ))"
    return f"CASE WHEN {ms} BETWEEN 0 AND {_LATEST} THEN {ms} END"


def _number(found: Expression, decimal: str) -> str:
    """Return SQL for a finite number, null where there is none; text may have thousands, a currency or a per cent."""
    sql = found.sql
    if found.type == "VARCHAR":
        bare = f"regexp_replace({sql}, '^[\\s$€£¥]+|[\\s$€£¥%]+$', '', 'g')"
        sql = number(bare, decimal, "FLOAT")
    elif found.type.startswith(("TIMESTAMP", "DATE")):
        sql = f"CAST(epoch({sql}) AS FLOAT)"
    else:
        sql = f"TRY_CAST({sql} AS FLOAT)"
    return f"CASE WHEN isfinite({sql}) THEN {sql} END"


def _parts(column: Column, found: Expression, kind: str) -> str:
    """Return SQL for a list of texts, or of what a column of lists has."""
    if "[" in found.type:
        return f"CAST({found.sql} AS {kind}[])" if kind == "VARCHAR" else f"TRY_CAST({found.sql} AS {kind}[])"
    bare = f"regexp_replace(CAST({found.sql} AS VARCHAR), '^[\\s\\[({{]+|[\\s\\])}}]+$', '', 'g')"
    split = f"string_split({bare}, {text(column.separator)})"
    if column.separator == " ":
        split = f"string_split_regex({bare}, '[\\s]+')"
    parts = f"[trim(x, {_QUOTES}) for x in {split} if trim(x, {_QUOTES}) != '']"
    return parts if kind == "VARCHAR" else f"TRY_CAST({parts} AS {kind}[])"


def _typed(column: Column, found: Expression, decimal: str) -> str:
    """Return SQL for a column's value in the samples, null where its type does not take it."""
    sql = found.sql
    if column.type == "id":
        if found.type in _WHOLE:
            return f"CAST({sql} AS BIGINT)"
        return f"CASE WHEN id_text({sql}) SIMILAR TO '-?[0-9]+' THEN TRY_CAST(id_text({sql}) AS BIGINT) END"
    if column.type == "string":
        return f"string_id(nullif(CAST({sql} AS VARCHAR), ''))"
    if column.type == "text":
        return f"nullif(CAST({sql} AS VARCHAR), '')"
    if column.type == "number":
        return _number(found, decimal)
    if column.type == "tags":
        return f"tag_ids({_parts(column, found, 'VARCHAR')})"
    if column.type == "ids":
        return f"[x for x in {_parts(column, found, 'BIGINT')} if x IS NOT NULL]"
    parts = _parts(column, found, "FLOAT")
    whole = f"len([x for x in {parts} if x IS NOT NULL AND isfinite(x)]) = {column.width}"
    return f"CAST(CASE WHEN len({parts}) = {column.width} AND {whole} THEN {parts} END AS FLOAT[{column.width}])"
