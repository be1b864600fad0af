"""Which part each column plays: what dataset.json says, or else what its type and name suggest."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pyarrow as pa

from livetrain.trainers.data.checks.findings import Finding, Verdict, listed
from livetrain.trainers.data.read.columns import is_list, is_text

# Names that prepared data use; they matter only where dataset.json does not say.
TIMES, GROUPS = ("timestamp",), ("user", "user_id")
ITEMS = ("room", "video", "movie", "item", "live_id", "video_id", "item_id", "streamer")

_ONE = ("time", "group", "item")  # roles of one column


@dataclass(frozen=True)
class Roles:
    """The columns of a dataset by their part; a column of no part is in none.

    Args:
        time: integer seconds or milliseconds since the epoch.
        group: the user of a row.
        item: what was shown; with the group and the time it is a row's key.
        labels: outcomes of a row, which are never features.
    """

    time: str | None = None
    group: str | None = None
    item: str | None = None
    labels: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    sequences: list[str] = field(default_factory=list)
    dense: list[str] = field(default_factory=list)

    def of(self, column: str) -> str:
        """Return a column's part in a word, '' where it has none."""
        words = {"labels": "label", "ids": "id", "sequences": "sequence", "dense": "dense"}
        found = [words[name] for name in words if column in getattr(self, name)]
        return ", ".join(found or [name for name in _ONE if getattr(self, name) == column])


_WANTED = {
    "time": (pa.types.is_integer, "an integer (ms since the epoch)"),
    "group": (lambda kind: _id(kind), "an integer or a string"),
    "item": (lambda kind: _id(kind), "an integer or a string"),
    "labels": (lambda kind: _number(kind), "a number"),
    "ids": (lambda kind: _id(kind), "an integer or a string"),
    "sequences": (lambda kind: _list(kind), "a list of integers or strings"),
    "dense": (lambda kind: _number(kind), "a number"),
}


def _number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def _id(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or is_text(kind)


def _list(kind: pa.DataType) -> bool:
    return is_list(kind) and _id(kind.value_type)


def infer(schema: pa.Schema) -> Roles:
    """Guess the roles: int8 and bool labels, floats dense, other integers and strings ids, lists of these sequences."""
    kinds = {column.name: column.type for column in schema}

    def first(names: tuple[str, ...], fits: Callable[[pa.DataType], bool] = _id) -> str | None:
        return next((name for name in names if name in kinds and fits(kinds[name])), None)

    time = first(TIMES, pa.types.is_integer)
    labels = [name for name, kind in kinds.items() if pa.types.is_int8(kind) or pa.types.is_boolean(kind)]
    ids = [name for name, kind in kinds.items() if _id(kind)]
    return Roles(
        time=time,
        group=first(GROUPS),
        item=first(ITEMS),
        labels=labels,
        ids=[name for name in ids if name not in (time, *labels)],
        sequences=[name for name, kind in kinds.items() if _list(kind)],
        dense=[name for name, kind in kinds.items() if pa.types.is_floating(kind)],
    )


def settle(manifest: dict[str, Any], schema: pa.Schema) -> tuple[Roles, list[Finding]]:
    """Return the roles of the columns that are there and of a fitting type, and what is to say about the others.

    Args:
        manifest: dataset.json, {} where there is none. An item that it does not name is taken from ITEMS.
        schema: the dataset's columns.
    """
    if not isinstance(manifest.get("roles"), dict):
        roles = infer(schema)
        text = f"dataset.json has no roles; by type and name, labels: {listed(roles.labels) or 'none'}"
        return roles, [Finding("roles", "dataset.json", Verdict.look, text)]
    given = {part.name: manifest["roles"][part.name] for part in fields(Roles) if manifest["roles"].get(part.name)}
    settled: dict[str, Any] = {}
    findings: list[Finding] = []
    for name in given:
        columns = [given[name]] if isinstance(given[name], str) else given[name]
        usable = []
        for column in columns:
            mend = _misfit(name, column, schema)
            findings += [Finding("roles", column, Verdict.wrong, mend)] if mend else []
            usable += [] if mend else [column]
        settled[name] = next(iter(usable), None) if name in _ONE else usable
    roles = Roles(**settled)
    if roles.item is None:
        roles = replace(roles, item=next((name for name in ITEMS if name in roles.ids), None))
    if not findings:
        known = sum(map(len, (roles.labels, roles.ids, roles.sequences, roles.dense)))
        findings.append(Finding("roles", "dataset.json", Verdict.ok, f"{known} columns, all there, of fitting types"))
    return roles, findings


def _misfit(name: str, column: str, schema: pa.Schema) -> str | None:
    if column not in schema.names:
        return f"dataset.json roles.{name} names it, and no file has it; prepare the data again"
    fits, wish = _WANTED[name]
    kind = schema.field(column).type
    return None if fits(kind) else f"dataset.json roles.{name} names it; it is {kind}, but must be {wish}"
