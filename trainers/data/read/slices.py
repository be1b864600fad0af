"""Slices of a split: the rows for which a condition over columns holds, such as ``user_count < 3``.

A condition is DuckDB's SQL: https://duckdb.org/docs/stable/sql/expressions/overview. It sees one row at a time, so that
a row is in a slice or not whoever reads it, and it reaches nothing outside the data.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from livetrain.configs.errors import BadInput, shown
from livetrain.trainers.data.expression import alone, database, named

if TYPE_CHECKING:
    import duckdb


class Slices:
    """The conditions of evaluate.slices, ready to be asked of tables.

    Args:
        conditions: SQL by name of the slice; at most 63.
        place: the section that holds them, for messages; of those in `places` their own.
        places: section by name of the slice, where it is another.

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

    def __init__(
        self,
        conditions: Mapping[str, str],
        place: str = "evaluate.slices",
        places: Mapping[str, str] | None = None,
    ) -> None:
        self._conditions, others = dict(conditions), places or {}
        self._key = {name: f"{others.get(name, place)}.{name}" for name in conditions}
        self.columns = {name: _columns(self._key[name], text) for name, text in conditions.items()}
        bits = (
            f"(coalesce({alone(text)}, false)::BIGINT << {place})" for place, text in enumerate(conditions.values())
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
                kind = str(connection.execute(f"SELECT {alone(text)} FROM rows").description[0][1])
                if kind != "BOOLEAN":
                    raise BadInput(
                        f"{self._key[key]}: {shown(text)} is {kind}, no condition; compare it, as user_count < 3"
                    )

    def _named(self, table: pa.Table) -> pa.Table:
        """Return the columns that conditions name; DuckDB need not know the types of the others."""
        asked = {name for names in self.columns.values() for name in names}
        return table.select([name for name in table.column_names if name in asked])

    def _ask(self, connection: "duckdb.DuckDBPyConnection", name: str) -> None:
        """Raise BadInput, naming the slice, where a condition fails at the rows of the connection."""
        import duckdb

        for key, text in self._conditions.items():
            try:
                connection.execute(f"SELECT 1 FROM rows WHERE {alone(text)}").fetchall()
            except duckdb.Error as error:
                raise BadInput(
                    f"{self._key[key]}: {shown(text)} cannot be asked of {name} ({_short(error)}); mend it"
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


class _connected:
    """A connection of its own to `database`, in which a table is called ``rows``."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __enter__(self) -> "duckdb.DuckDBPyConnection":
        self._connection = database().cursor()
        halves = [field.name for field in self._table.schema if pa.types.is_float16(field.type)]
        for name in halves:  # which DuckDB does not know
            place = self._table.schema.get_field_index(name)
            self._table = self._table.set_column(place, name, self._table.column(place).cast(pa.float32()))
        return self._connection.register("rows", self._table)

    def __exit__(self, *failure: object) -> None:
        self._connection.close()


def _columns(place: str, condition: str) -> list[str]:
    """Return the columns that a condition names; raise BadInput where it is no condition on one row."""
    found = list(dict.fromkeys(parts[0] for parts in named(place, condition)))
    if not found:
        raise BadInput(f"{place}: {shown(condition)} names no column; write one, as user_count < 3")
    return found


def _short(error: Exception) -> str:
    """Return the first line of DuckDB's message, without the kind of error."""
    return str(error).splitlines()[0].rpartition(" Error: ")[2].rstrip(".!")
