"""What files seem to be, and what the names of their columns say."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

from livetrain.configs.spec import RESERVED
from livetrain.trainers.data.sources.table.look import Looked, LookedFile
from livetrain.trainers.data.sources.table.vocabulary import ITEM, TIME, USER

# Columns and tables that a starter makes of the past, whose names no column of the files may have.
_MADE = re.compile(r"past_\w+|gap|(user|item)_(\w+_)?(count|rate|ago)")
_FEW = 8  # columns without names of a log; a file of more is one of features


@dataclass
class Guess:
    """What the files seem to be."""

    log: LookedFile
    more: list[LookedFile] = field(default_factory=list)  # further files of the log
    joins: dict[str, tuple[LookedFile, str, str]] = field(
        default_factory=dict
    )  # name -> file, its key, the log's column
    time: tuple[str, str] | None = None  # column or expression, and format
    user: Looked | None = None
    item: Looked | None = None
    labels: dict[str, tuple[str, str]] = field(default_factory=dict)  # name -> expression and kind of task
    weight: Looked | None = None
    left: dict[str, str] = field(default_factory=dict)  # column of the log -> why it is left out
    why: list[str] = field(default_factory=list)


def words(name: str) -> list[str]:
    """Return a name's words in lower case: `UserID_2` has user, id and 2; accents are taken off."""
    flat = "".join(
        letter for letter in unicodedata.normalize("NFKD", name.replace("ß", "ss")) if not unicodedata.combining(letter)
    )
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[^\x00-\x7f])(?=[A-Z])", " ", flat)
    return [part.lower() for part in re.split(r"[\W_]+", parts) if part]


def plain(name: str, taken: Iterable[str]) -> str:
    """Return a column's name in the samples: small letters, digits and _, each once."""
    made = "_".join(part for part in words(name) if part.isascii())[:60] or "column"
    made = f"c_{made}" if not made[0].isalpha() or _MADE.fullmatch(made) else made
    used, number = {*taken, *RESERVED}, 2
    first = made
    while made in used:
        made, number = f"{first}_{number}", number + 1
    return made


def rank(name: str, known: list[str]) -> int:
    """Return how early a word of a name stands among the known ones, their number where none does."""
    parts = words(name)
    whole = [*parts, "".join(parts)]
    if parts and parts[-1] == "id":
        whole.append("".join(parts[:-1]))
    return min((known.index(part) for part in whole if part in known), default=len(known))


def ids_of(file: LookedFile) -> list[Looked]:
    return [
        column
        for column in file.columns
        if column.kind in ("whole", "string", "flag", "constant") and not epoch_named(column)
    ]


def epoch_named(column: Looked) -> bool:
    """Tell whether whole numbers are times: by their range and by their name."""
    return bool(column.kind == "whole" and column.detail and rank(column.name, TIME) < len(TIME))


def nameless(file: LookedFile) -> bool:
    """Tell whether the names of a file's columns say nothing: column0, x1, f2."""
    named = r"(column|field|feature|c|v|x|f)?_?\d+|"
    return len(file.columns) <= _FEW and all(re.fullmatch(named, column.name.lower()) for column in file.columns)


def is_key(column: Looked) -> bool:
    parts = words(column.name)
    return bool(parts) and (
        parts[-1] in ("id", "uuid", "key", "nr", "no", "code", "hash")
        or "".join(parts) in USER + ITEM
        or (parts[-1].endswith("id") and len(parts[-1]) > 2)
    )
