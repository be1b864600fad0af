"""The spec of `livetrain data table`: which files hold the rows, what their columns are, and how rows are split.

Expressions are DuckDB's SQL over the log's columns, and over those of joined tables as `table.column`. The name of a
column, written as the file has it, needs no quotes: `Unit Price` is that column.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from livetrain.configs.complaints import first_complaint
from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.schema.section import Section
from livetrain.configs.trees import read_tree
from livetrain.configs.values import Length, Name, RunName, Seed, Sql, Text, real, whole

Part = Annotated[float, real(1e-6, 0.9)]
One = Annotated[str, Field(min_length=1, max_length=1)]

RESERVED = ("timestamp", "hour", "weekday", "day", "split", "bucket", "period")
"""Columns that are made from `time`, and those that say where a row is written."""


class Files(Section):
    """The files of one table: CSV, TSV, JSON lines, Parquet or ORC, by their names' endings."""

    files: Annotated[list[Text], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)] = Field(
        min_length=1, description="paths as seen from the spec, patterns such as logs/*.csv, or URIs"
    )
    format: Literal["csv", "json", "parquet", "orc"] | None = Field(
        None, description="where the endings do not say; csv is any text with a delimiter"
    )
    delimiter: One = Field(",", description="of csv")
    header: bool = Field(True, description="of csv: the first line names the columns, otherwise column0, column1 ...")
    quote: One = Field('"', description="of csv")
    decimal: Literal[".", ","] = Field(".", description="of csv: what parts a number's whole from its fraction")
    encoding: Literal["utf-8", "cp1252", "latin-1", "utf-16"] = Field("utf-8", description="of csv")
    where: Sql | None = Field(None, description="expression: only rows for which it is true are read")


class Join(Files):
    """A table with one row per id: what is known of users, items or anything else."""

    key: Text = Field(description="its column of ids")
    on: Sql = Field(description="expression over the log that gives the id")


class Time(Section):
    """When a row happened."""

    column: Sql = Field(description="a column of the log, or an expression")
    format: Text = Field(
        "iso",
        description="s, ms, us or ns since 1970; iso (2026-05-01 12:30:00, or a column of dates); or a pattern of "
        "strptime, such as %m/%d/%Y %H:%M",
    )
    zone: Text = Field("UTC", description="of times that name none, and of the days and hours, such as Europe/Paris")


class Column(Section):
    """A column of the samples."""

    type: Literal["id", "string", "text", "number", "tags", "ids", "vector"] = Field(
        description="id: a whole number; string: text as an id, by XXH64; text: as it is; number; tags: a list of "
        "strings as ids; ids: a list of whole numbers; vector: a list of numbers"
    )
    column: Sql | None = Field(None, description="a column of the files or an expression, by default of the same name")
    separator: Annotated[str, Field(min_length=1, max_length=8)] = Field(
        "|", description="of a list that is written as text; brackets and quotes around it are taken off"
    )
    width: Annotated[int, *whole(1, 2**14)] | None = Field(None, description="numbers of a vector")

    @model_validator(mode="after")
    def _wide(self) -> "Column":
        if (self.type == "vector") != (self.width is not None):
            raise BadInput("width: a vector needs the number of its numbers, and nothing else has one")
        return self


class History(Section):
    """What a user's earlier rows were, newest last: columns NAME_COLUMN for each of `of`, and NAME_gap."""

    of: list[Name] = Field(min_length=1, description="columns of type id, string or vector")
    when: Name | None = Field(None, description="a label: only rows where it was 1; by default all")
    last: Length = Field(50, description="rows that are kept, the newest")


class Split(Section):
    """Which rows train, which choose the checkpoint, and which are kept for the end."""

    by: Literal["day", "time", "user", "random", "leave_one_out", "column"] = Field(
        description="day: a partition per day, from which recipes choose; time: the newest rows last; user, random: by "
        "a draw; leave_one_out: each user's last row is test, the last but one valid; column: as a column says"
    )
    column: Name | None = Field(None, description="of by: column, one of type text that holds train, valid or test")
    valid: Part = Field(0.1, description="share of the rows, or of the users")
    test: Part = Field(0.1, description="likewise")
    seed: Seed = Field(1, description="of the draws")

    @model_validator(mode="after")
    def _leaves_some(self) -> "Split":
        if (self.by == "column") != (self.column is not None):
            raise BadInput("column: by: column needs the name of a column, and no other way to split has one")
        if self.valid + self.test >= 1:
            raise BadInput("valid: together with test it leaves no row for training; give smaller shares")
        return self


class Spec(Section):
    """Samples from a log with one row per thing that was shown, and from tables of what is known of ids."""

    name: RunName = "table"
    log: Files
    joins: dict[Name, Join] = {}
    time: Time | None = None
    user: Name | None = Field(None, description="the column whose histories and counts there are")
    item: Name | None = Field(None, description="the column of what was shown")
    columns: dict[Name, Column] = Field(min_length=1)
    labels: dict[Name, Sql] = Field(
        {}, description="expressions; those that are true or false become 1 and 0, others numbers"
    )
    histories: dict[Name, History] = {}
    counts: list[Name] = Field([], description="columns: exposures and label rates of each value, of earlier days")
    pairs: list[Name] = Field([], description="columns: what the user's earlier rows with the same value were")
    split: Split

    @field_validator("columns", "labels")
    @classmethod
    def _free(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in RESERVED:
                raise BadInput(f"{name}: livetrain makes a column of this name; choose another")
        return value

    @model_validator(mode="after")
    def _fits(self) -> "Spec":
        for role in ("user", "item"):
            self._keyed(role, getattr(self, role))
        for name, history in self.histories.items():
            for column in history.of:
                self._keyed(f"histories.{name}.of", column, "vector")
            if history.when is not None and history.when not in self.labels:
                raise BadInput(
                    f"histories.{name}.when: no label is called '{history.when}'{nearest(history.when, self.labels)}"
                )
        for place in ("counts", "pairs"):
            for column in getattr(self, place):
                self._keyed(place, column)
        if self.user is not None and self.user in self.pairs:
            raise BadInput(f"pairs: '{self.user}' is the user; name what it is paired with, such as the item")
        self._needs_met()
        places: dict[str, str] = {}
        for name, place in self.names():
            other = places.setdefault(name.casefold(), place)
            if other is not place:
                raise BadInput(f"{place}: it makes a column '{name}', as {other} does; rename one of them")
        return self

    def names(self) -> Iterator[tuple[str, str]]:
        """Yield every column that the samples may have, and the place of the spec that makes it.

        Rates are of the labels that are true or false, which only the data tells; here every label has them.
        """
        for place in ("columns", "labels"):
            yield from ((name, f"{place}.{name}") for name in getattr(self, place))
        for name, history in self.histories.items():
            yield from ((f"{name}_{of}", f"histories.{name}") for of in (*history.of, "gap"))
        for name in self.counts:
            for prefix in (name, f"{name}_seen") if name == self.user else (name,):
                place = f"counts ({name})"
                yield f"{prefix}_count", place
                yield from ((f"{prefix}_{label}_rate", place) for label in self.labels)
        for name in self.pairs:
            prefix, place = f"{self.user}_{name}", f"pairs ({name})"
            for what in ("count", *(f"{label}_count" for label in self.labels), "ago"):
                yield f"{prefix}_{what}", place

    def _keyed(self, place: str, name: str | None, *others: str) -> None:
        if name is None:
            return
        if name not in self.columns:
            raise BadInput(f"{place}: no column is called '{name}'{nearest(name, self.columns)}")
        if self.columns[name].type not in ("id", "string", *others):
            wanted = " or ".join(("id", "string", *others))
            raise BadInput(f"{place}: column '{name}' is of type {self.columns[name].type}; wanted one of {wanted}")

    def _needs_met(self) -> None:
        """Refuse what asks for a time or a user that the spec does not name."""
        for place in ("histories", "counts", "pairs"):
            if getattr(self, place) and self.time is None:
                raise BadInput(
                    f"{place}: what was earlier needs a time; name its column under time, or leave {place} out"
                )
            if getattr(self, place) and place != "counts" and self.user is None:
                raise BadInput(f"{place}: they are a user's; name the column under user, or leave {place} out")
        if self.split.by in ("day", "time") and self.time is None:
            raise BadInput(f"split.by: '{self.split.by}' needs a time; name its column under time, or use by: random")
        if self.split.column is not None and getattr(self.columns.get(self.split.column), "type", "") != "text":
            raise BadInput(
                f"split.column: '{self.split.column}' is no column of type text; name one under columns that holds "
                "train, valid or test"
            )
        if self.split.by in ("user", "leave_one_out") and self.user is None:
            raise BadInput(f"split.by: '{self.split.by}' needs a user; name the column under user, or use by: random")


Kind = TypeVar("Kind", bound=Section)


@dataclass(frozen=True)
class Loaded(Generic[Kind]):
    """A spec, the folder that its paths are seen from, and the name of a place in it for messages."""

    spec: Kind
    folder: Path
    where: Callable[[str], str]


def tells_events(path: Path) -> bool:
    """Tell whether a file is the spec of an event log, see configs.event_spec."""
    return "exposures" in read_tree(path, "spec", "keys")[0]


def load_spec(path: Path, kind: type[Kind]) -> Loaded[Kind]:
    """Read a spec.

    Args:
        path: a YAML file.
        kind: Spec, or EventSpec.

    Raises:
        BadInput: one sentence that names file, line, key and mend.
    """
    tree, lines = read_tree(path, "spec", "keys")

    def where(place: str) -> str:
        keys = tuple(place.split("."))
        while keys and keys not in lines:
            keys = keys[:-1]
        return f"{path}, line {lines[keys]}: {place}" if keys else f"{path}: {place}"

    try:
        return Loaded(kind.model_validate(tree), path.parent, where)
    except ValidationError as error:
        complaint = first_complaint(error, kind, tree)
        dotted = ".".join(complaint.place)
        raise BadInput(f"{where(dotted).removesuffix(dotted)}{complaint.sentence}") from None
