"""What a user may write as SQL over one row: https://duckdb.org/docs/stable/sql/expressions/overview.

An expression sees one row at a time, so that its value is the same whoever computes it, and in whatever order.
"""

import json
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

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


def alone(expression: str) -> str:
    """Return an expression in brackets; what follows ``--`` in it is a remark, which the line's end ends."""
    return f"(\n{expression}\n)"


@cache
def database() -> "duckdb.DuckDBPyConnection":
    """Return a database that reaches no file and no network, on one thread, with UTC as its time zone."""
    import duckdb

    closed: dict[str, Any] = {"enable_external_access": False, "autoload_known_extensions": False, "threads": 1}
    made = duckdb.connect(":memory:", config=closed)
    made.execute("SET GLOBAL TimeZone = 'UTC'")
    return made


def named(place: str, expression: str) -> list[list[str]]:
    """Return the columns that an expression names, each once, by the parts of their names.

    Args:
        place: of the expression in the user's file, for messages.
        expression: SQL.

    Raises:
        BadInput: it is no SQL expression, or asks for more than one row at a time.

    Example:
        >>> named("labels.cheap", 'products."Unit Price" < 3 AND paid > 0')
        [['products', 'Unit Price'], ['paid']]
    """
    query = f"SELECT {alone(expression)}"
    (text,) = database().cursor().execute("SELECT json_serialize_sql(?)", [query]).fetchone() or ("{}",)
    parsed = json.loads(text)
    if parsed["error"]:
        message = parsed["error_message"]
        raise BadInput(
            f"{place}: {shown(expression)} is no SQL expression ({message}); mend it, with double quotes around a name "
            "that SQL knows"
        )
    node = parsed["statements"][0]["node"]
    whole = node.get("from_table", {}).get("type") == "EMPTY" and len(node["select_list"]) == 1
    parts = list(_nodes(node["select_list"][0])) if whole else []
    refused = (
        "a query" if not whole else next((_REFUSED[part["class"]] for part in parts if part["class"] in _REFUSED), "")
    )
    called = {part["function_name"] for part in parts if part["class"] == "FUNCTION"}
    if drawn := called & _functions("bool_and(stability = 'VOLATILE')"):
        refused = refused or f"{min(drawn)}(), which answers otherwise every time"
    if summed := called & _functions("bool_and(function_type = 'aggregate')"):
        refused = refused or f"{min(summed).removesuffix('_star')}(), a function of several rows"
    if refused:
        raise BadInput(f"{place}: {shown(expression)} holds {refused}; write an expression on one row's columns")
    found = {tuple(part["column_names"]): None for part in parts if part["class"] == "COLUMN_REF"}
    return [list(names) for names in found]


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield the parts of a parsed expression."""
    if isinstance(tree, dict) and "class" in tree:
        yield tree
    for part in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nodes(part)


@cache
def _functions(condition: str) -> frozenset[str]:
    """Return the functions all of whose forms meet a condition over DuckDB's list of them."""
    query = f"SELECT function_name FROM duckdb_functions() GROUP BY 1 HAVING {condition}"
    return frozenset(name for (name,) in database().cursor().execute(query).fetchall())
