"""The samples' columns that `livetrain init` chooses, from what it has guessed of the files'."""

from dataclasses import dataclass, field
from typing import Any

from livetrain.trainers.data.sources.table.files import quoted, text
from livetrain.trainers.data.sources.table.guessed import Guess, plain, words
from livetrain.trainers.data.sources.table.left_out import no_feature
from livetrain.trainers.data.sources.table.look import Looked, LookedFile
from livetrain.trainers.data.sources.table.vocabulary import CODED

_LEAST_VECTOR = 6  # numbered columns of numbers that are taken for one vector


@dataclass
class Made:
    """The samples' columns as they come to be: the lines of the spec, and what the recipe knows of each."""

    lines: dict[str, tuple[dict[str, Any], str]] = field(default_factory=dict)  # name -> column, comment
    tables: dict[str, int] = field(default_factory=dict)  # id column -> about how many different ids
    looked: dict[str, Looked] = field(default_factory=dict)  # column of numbers -> the file's
    weight: str | None = None  # column of the rows' weights
    left: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    @property
    def taken(self) -> list[str]:
        """Names that no further column may have."""
        return [*self.lines, *self.labels]

    def add(self, name: str, kind: str, source: str, comment: str = "", **more: Any) -> None:
        column: dict[str, Any] = {"type": kind}
        if source != name:
            column["column"] = source
        self.lines[name] = (column | more, comment)


def columns(found: Guess) -> Made:
    """Return the samples' columns: users and items first, then the log's, then those of the joined tables."""
    made = Made(labels=list(found.labels))
    for role, column in (("user", found.user), ("item", found.item)):
        if column is not None:
            kind = "id" if column.kind == "whole" else "string"
            made.add(role, kind, column.name)
            made.tables[role] = column.distinct
            if kind == "string":
                made.add(f"{role}_text", "text", column.name, "kept for people; no feature")
    skipped = {column.name for column in (found.user, found.item) if column is not None} | set(found.left)
    _add(made, found.log, skipped, "")
    for name, (file, key, _) in found.joins.items():
        _add(made, file, {key}, name)
    if found.weight is not None:
        made.weight = plain("weight", made.taken)
        made.add(made.weight, "number", found.weight.name, "of the rows, in the loss")
    made.left = [f"{column}: {why}" for column, why in found.left.items()] + made.left
    return made


def _add(made: Made, file: LookedFile, skipped: set[str], table: str) -> None:
    vectors = _numbered([column for column in file.columns if column.name not in skipped])
    inside = {column.name for group in vectors.values() for column in group}
    for name, group in vectors.items():
        sources = ", ".join(_sql(column.name, table) for column in group)
        free = plain(name, made.taken)
        made.add(free, "vector", f"[{sources}]", f"{group[0].name} ... {group[-1].name}", width=len(group))
    for column in file.columns:
        if column.name in skipped or column.name in inside:
            continue
        label = f"{table}.{column.name}" if table else column.name
        single = column.distinct > 0.9 * column.rows and column.rows >= 20
        if reason := no_feature(column):
            # of an attribute table every row may have a name of its own; a category that few rows share is none
            made.left.append(f"{label}: {reason}")
            continue
        if table and single and column.kind == "string":
            made.left.append(f"{label}: every row has another value")
            continue
        name = plain(column.name, made.taken)
        if table and name.endswith("_2"):
            name = plain(f"{table}_{column.name}", made.taken)
        _one(made, name, column, table)


def _sql(column: str, table: str) -> str:
    return f"{quoted(table)}.{quoted(column)}" if table else quoted(column)


def _one(made: Made, name: str, column: Looked, table: str) -> None:
    """Add a column of its kind."""
    source = f"{table}.{column.name}" if table else column.name
    if column.kind == "time":
        sql = _sql(column.name, table)
        parsed = sql if column.type != "VARCHAR" else f"TRY_CAST({sql} AS TIMESTAMP)"
        if column.type == "VARCHAR" and column.detail != "iso":
            parsed = f"try_strptime(CAST({sql} AS VARCHAR), {text(column.detail)})"
        made.add(name, "number", f"epoch({parsed}) / 86400", "days since 1970")
    elif column.kind in ("tags", "ids"):
        more = {} if column.detail == "|" else {"separator": column.detail}
        made.add(name, column.kind, source, **more)
        made.tables[name] = min(column.distinct * 2, 2**16)
    elif column.kind == "vector":
        more = {} if column.detail == "|" else {"separator": column.detail}
        made.add(name, "vector", source, width=column.width, **more)
    elif column.kind == "number" or (column.kind == "whole" and _is_amount(column)):
        made.add(name, "number", source)
        made.looked[name] = column
    else:
        made.add(
            name,
            "id" if column.kind == "whole" or (column.kind == "flag" and column.detail == "1") else "string",
            source,
        )
        made.tables[name] = column.distinct


def _is_amount(column: Looked) -> bool:
    """Tell whether whole numbers are amounts and not names: many of them, and not called an id or a code."""
    return not {*CODED} & {*words(column.name)} and column.distinct > 20


def _numbered(columns: list[Looked]) -> dict[str, list[Looked]]:
    """Return groups of columns such as e_0, e_1 ... that are one vector, by what they have in common."""
    groups: dict[str, list[Looked]] = {}
    for column in columns:
        base = column.name.rstrip("0123456789")
        if (
            base not in ("", column.name)
            and column.kind in ("number", "whole")
            and not column.name.startswith("column")
        ):
            groups.setdefault(base, []).append(column)
    whole = {}
    for base, group in groups.items():
        numbers = sorted(int(column.name[len(base) :]) for column in group)
        steady = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        if len(group) >= _LEAST_VECTOR and steady and any(column.kind == "number" for column in group):
            places = {int(column.name[len(base) :]): column for column in group}
            whole[base] = [places[number] for number in numbers]
    return whole


def history(found: Guess) -> str | None:
    """Return the label whose rows make a user's history, '' for all rows; None where there can be none."""
    if found.time is None or found.user is None or found.item is None or found.user.distinct > 0.9 * found.log.rows:
        return None
    return next((name for name, (_, kind) in found.labels.items() if kind == "binary"), "")


def beside(found: Guess, made: Made) -> list[str]:
    """Return what a history tells of an item besides its id: up to two of its categories."""
    tables = [name for name, (_, _, on) in found.joins.items() if found.item is not None and on == found.item.name]
    own = [
        name
        for name, (column, _) in made.lines.items()
        if column["type"] in ("id", "string") and str(column.get("column", "")).split(".")[0] in tables
    ]
    return sorted(own, key=lambda name: -made.tables.get(name, 0))[:2]
