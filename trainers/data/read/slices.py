"""Slices of a split: the rows for which a condition over columns holds, such as ``user_count < 3``.

A condition is DuckDB's SQL: https://duckdb.org/docs/stable/sql/expressions/overview. It sees one row at a time, so that
a row is in a slice or not whoever reads it, and it reaches nothing outside the data.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from livetrain.configs.errors import BadInput, shown

if TYPE_CHECKING:
    import duckdb

_REFUSED = {
    "SUBQUERY": "a query",
    "WINDOW": "a function of several rows",
    "STAR": "a star",
    "LAMBDA": "a lambda",
    "PARAMETER": "a parameter",
}


class Slices:
    """The conditions of evaluate.slices, ready to be asked of tables.

    Args:
        conditions: SQL by name of the slice; at most 63.

    Attributes:
        columns: the columns that each condition names.

    Raises:
        BadInput: a condition is no SQL expression, or asks for more than one row at a time.

    Example:
        >>> slices = Slices({"new": "seen < 3", "night": "hour >= 22 OR hour < 6"})
        >>> slices.columns
        {'new': ['seen'], 'night': ['hour']}
        >>> slices.marks(pa.table({"seen": [1, 9, None], "hour": [23, 5, 12]}))
        array([3, 2, 0])
    """

    def __init__(self, conditions: Mapping[str, str]) -> None:
        self._conditions = dict(conditions)
        self.columns = {name: _columns(name, text) for name, text in conditions.items()}
        bits = (
            f"(coalesce({_alone(text)}, false)::BIGINT << {place})" for place, text in enumerate(conditions.values())
        )
        self._marks = " | ".join(bits)

    def check(self, schema: pa.Schema, name: str) -> None:
        """Raise BadInput where a condition does not fit a split's columns, or is none: its value must be true or false.

        Args:
            schema: of the columns that the conditions name, at least.
            name: the split's, for the message.
        """
        if not self._conditions:
            return
        with _connected(self._named(schema.empty_table())) as connection:
            self._ask(connection, name)
            for key, text in self._conditions.items():
                kind = str(connection.execute(f"SELECT {_alone(text)} FROM rows").description[0][1])
                if kind != "BOOLEAN":
                    raise BadInput(
                        f"evaluate.slices.{key}: {shown(text)} is {kind}, no condition; compare it, as user_count < 3"
                    )

    def _named(self, table: pa.Table) -> pa.Table:
        """Return the columns that conditions name; DuckDB need not know the types of the others."""
        return table.select(list(dict.fromkeys(name for names in self.columns.values() for name in names)))

    def _ask(self, connection: "duckdb.DuckDBPyConnection", name: str) -> None:
        """Raise BadInput, naming the slice, where a condition fails at the rows of the connection."""
        import duckdb

        for key, text in self._conditions.items():
            try:
                connection.execute(f"SELECT 1 FROM rows WHERE {_alone(text)}").fetchall()
            except duckdb.Error as error:
                raise BadInput(
                    f"evaluate.slices.{key}: {shown(text)} cannot be asked of {name} ({_short(error)}); mend it"
                ) from error

    def marks(self, table: pa.Table) -> np.ndarray:
        """Return (n,) int64 of a table's rows: bit i is set where the i-th condition holds; null does not hold.

        Raises:
            BadInput: a condition fails at a value, as at a text that it takes for a number.
        """
        import duckdb

        with _connected(self._named(table)) as connection:
            try:
                return connection.execute(f"SELECT {self._marks} AS marks FROM rows").fetchnumpy()["marks"]
            except duckdb.Error:
                self._ask(connection, "the data")
                raise


def _alone(condition: str) -> str:
    """Return a condition in brackets; what follows ``--`` in it is a remark, which the line's end ends."""
    return f"(\n{condition}\n)"


@cache
def _database() -> "duckdb.DuckDBPyConnection":
    """Return a database that reaches no file and no network, on one thread, with UTC as its time zone."""
    import duckdb

    closed: dict[str, Any] = {"enable_external_access": False, "autoload_known_extensions": False, "threads": 1}
    database = duckdb.connect(":memory:", config=closed)
    database.execute("SET GLOBAL TimeZone = 'UTC'")
    return database


class _connected:
    """A connection of its own to `_database`, in which a table is called ``rows``."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __enter__(self) -> "duckdb.DuckDBPyConnection":
        self._connection = _database().cursor()
        halves = [field.name for field in self._table.schema if pa.types.is_float16(field.type)]
        for name in halves:  # which DuckDB does not know
            place = self._table.schema.get_field_index(name)
            self._table = self._table.set_column(place, name, self._table.column(place).cast(pa.float32()))
        return self._connection.register("rows", self._table)

    def __exit__(self, *failure: object) -> None:
        self._connection.close()


def _columns(name: str, condition: str) -> list[str]:
    """Return the columns that a condition names; raise BadInput where it is no condition on one row."""
    query = f"SELECT {_alone(condition)}"
    (text,) = _database().cursor().execute("SELECT json_serialize_sql(?)", [query]).fetchone() or ("{}",)
    parsed = json.loads(text)
    if parsed["error"]:
        message = parsed["error_message"]
        raise BadInput(
            f"evaluate.slices.{name}: {shown(condition)} is no SQL expression ({message}); mend it, with double quotes "
            "around a name that SQL knows"
        )
    node = parsed["statements"][0]["node"]
    whole = node.get("from_table", {}).get("type") == "EMPTY" and len(node["select_list"]) == 1
    parts = list(_nodes(node["select_list"][0])) if whole else []
    refused = (
        "a query" if not whole else next((_REFUSED[part["class"]] for part in parts if part["class"] in _REFUSED), "")
    )
    drawn = {part["function_name"] for part in parts if part["class"] == "FUNCTION"} & _volatile()
    if refused or drawn:
        what = refused or f"{min(drawn)}(), which answers otherwise every time"
        raise BadInput(
            f"evaluate.slices.{name}: {shown(condition)} holds {what}; write a condition on one row's columns"
        )
    found = list(dict.fromkeys(part["column_names"][0] for part in parts if part["class"] == "COLUMN_REF"))
    if not found:
        raise BadInput(f"evaluate.slices.{name}: {shown(condition)} names no column; write one, as user_count < 3")
    return found


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield the parts of a parsed expression."""
    if isinstance(tree, dict) and "class" in tree:
        yield tree
    for part in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nodes(part)


@cache
def _volatile() -> frozenset[str]:
    """Return the functions that answer otherwise every time, such as random."""
    query = "SELECT function_name FROM duckdb_functions() GROUP BY 1 HAVING bool_and(stability = 'VOLATILE')"
    return frozenset(name for (name,) in _database().cursor().execute(query).fetchall())


def _short(error: Exception) -> str:
    """Return the first line of DuckDB's message, without the kind of error."""
    return str(error).splitlines()[0].rpartition(" Error: ")[2].rstrip(".!")
