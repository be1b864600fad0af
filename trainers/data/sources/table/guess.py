"""Guesses of what a stranger's columns are: roles by name and content, each with the reason that is told."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

import duckdb
import numpy as np
from scipy.stats import rankdata

from livetrain.configs.errors import BadInput
from livetrain.configs.spec import RESERVED
from livetrain.trainers.data.sources.table.files import quoted, short, text
from livetrain.trainers.data.sources.table.look import Looked, LookedFile, as_number
from livetrain.trainers.data.sources.table.vocabulary import (
    AMOUNT,
    DONE,
    EARLY,
    EVENT,
    ITEM,
    KEY,
    LATER,
    OUTCOME,
    RATING,
    TIME,
    TRAIT,
    USER,
    WEIGHT,
)

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
    flat = "".join(letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[^\x00-\x7f])(?=[A-Z])", " ", flat)
    return [part.lower() for part in re.split(r"[\W_]+", parts) if part]


def plain(name: str, taken: Iterable[str]) -> str:
    """Return a column's name in the samples: small letters, digits and _, each once."""
    made = "_".join(part for part in words(name) if part.isascii())[:60] or "column"
    made = made if made[0].isalpha() else f"c_{made}"
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


def guess(connection: duckdb.DuckDBPyConnection, looked: list[LookedFile], labels: dict[str, str]) -> Guess:
    """Return what the files seem to be.

    Args:
        connection: has a table `sample N` and a view `file N` for the file at place N.
        looked: the files.
        labels: expressions that the user has named, instead of guesses.

    Raises:
        BadInput: there is no label to be seen, or an expression of `labels` is none.
    """
    logs, others = _parted(looked)
    found = Guess(logs[0], logs[1:])
    if len(looked) > 1:
        found.why.append(f"log: {logs[0].path}, as it has the most of user, item, time and outcome")
    _who_and_what(found)
    _when(found)
    place = looked.index(found.log)
    _outcomes(connection, found, place, labels)
    _joins(connection, found, others, looked)
    if found.item is None or found.user is None:
        _by_joins(found)
    _leave_out(connection, found, place)
    return found


def _parted(looked: list[LookedFile]) -> tuple[list[LookedFile], list[LookedFile]]:
    """Return the files of the log, and the others."""

    def points(file: LookedFile) -> tuple[int, int]:
        names = [column.name for column in file.columns]
        roles = sum(any(rank(name, known) < len(known) for name in names) for known in (USER, ITEM, OUTCOME + RATING))
        timed = any(column.kind == "time" or (column.detail and column.kind == "whole") for column in file.columns)
        return roles + timed, file.rows

    log = max(looked, key=points)
    columns = {column.name for column in log.columns}
    same = [file for file in looked if {column.name for column in file.columns} == columns]
    return sorted(same, key=lambda file: file is not log), [file for file in looked if file not in same]


def _ids(file: LookedFile) -> list[Looked]:
    return [
        column
        for column in file.columns
        if column.kind in ("whole", "string", "flag", "constant") and not epoch_named(column)
    ]


def epoch_named(column: Looked) -> bool:
    """Tell whether whole numbers are times: by their range and by their name."""
    return bool(column.kind == "whole" and column.detail and rank(column.name, TIME) < len(TIME))


def _who_and_what(found: Guess) -> None:
    """Find the columns of users and items: by their names, or, of files whose names say nothing, the first two ids."""
    ids = [column for column in _ids(found.log) if rank(column.name, OUTCOME + RATING) == len(OUTCOME + RATING)]
    for role, known in (("user", USER), ("item", ITEM)):
        named = [column for column in ids if rank(column.name, known) < len(known) and column is not found.user]
        # customer_id before customer_segment: what ends with id, then what has more values
        named.sort(key=lambda column: (not _is_key(column), rank(column.name, known), -column.distinct))
        named = [column for column in named if column.distinct > 2 and (_is_key(column) or column.distinct >= 10)]
        if named:
            setattr(found, role, named[0])
            found.why.append(f"{role}: '{named[0].name}', by its name; about {named[0].distinct:,} different")
    if found.user is None and found.item is None and _nameless(found.log):
        whole = [column for column in ids if len(column.given) == len(column.values) and not column.detail]
        several = [column for column in whole if 10 <= column.distinct <= 0.9 * column.rows][:2]
        for role, column in zip(("user", "item"), several, strict=False):
            setattr(found, role, column)
            found.why.append(
                f"{role}: '{column.name}', as the {'first' if role == 'user' else 'second'} column of ids; look"
            )


def _nameless(file: LookedFile) -> bool:
    """Tell whether the names of a file's columns say nothing: column0, x1, f2."""
    named = r"(column|field|feature|c|v|x|f)?_?\d+|"
    return len(file.columns) <= _FEW and all(re.fullmatch(named, column.name.lower()) for column in file.columns)


def _is_key(column: Looked) -> bool:
    parts = words(column.name)
    return bool(parts) and (
        parts[-1] in ("id", "uuid", "key", "nr", "no", "code", "hash")
        or "".join(parts) in USER + ITEM
        or (parts[-1].endswith("id") and len(parts[-1]) > 2)
    )


def _when(found: Guess) -> None:
    """Find the time of a row: a date or a number of seconds, by its name where there are several."""
    timed = [column for column in found.log.columns if column.kind == "time" or epoch_named(column)]
    timed += [
        column
        for column in found.log.columns
        if column not in timed
        and column.detail
        and column.kind in ("whole", "number")
        and column.distinct > 10
        and not _is_key(column)
        and len(column.given[0]) >= 10
    ]
    timed = [column for column in timed if column.distinct > 1]
    if not timed:
        found.why.append("time: no column has dates or seconds since 1970, so rows are split at random")
        return
    early = [any(word in EARLY for word in words(column.name)) for column in timed]
    order = sorted(range(len(timed)), key=lambda n: (early[n], rank(timed[n].name, TIME), -timed[n].distinct))
    best = timed[order[0]]
    clock = next((column for column in found.log.columns if column.kind == "clock"), None)
    dates_only = all(":" not in value for value in best.given[:100]) and best.kind == "time"
    if clock is not None and dates_only:
        pattern = (
            best.detail if best.detail == "iso" else f"{best.detail} %H:%M" + ":%S" * (clock.given[0].count(":") > 1)
        )
        found.time = (f"{quoted(best.name)} || ' ' || {quoted(clock.name)}", pattern)
        found.left[clock.name] = "part of the time"
    else:
        found.time = (best.name, best.detail)
    found.left[best.name] = "the time"
    unit = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}.get(best.detail)
    how = f"{unit} since 1970" if unit else "dates" if best.detail == "iso" else f"dates as {best.detail}"
    found.why.append(f"time: '{best.name}', {how}")


def truth(column: Looked) -> str:
    """Return SQL that is true where a flag is."""
    name = quoted(column.name)
    if column.type == "BOOLEAN":
        return name
    if column.type != "VARCHAR":
        return f"{name} = 1"
    if column.detail == "1":
        return f"TRY_CAST({name} AS DOUBLE) = 1"
    return f"lower(trim({name})) = {text(column.detail)}"


def _outcomes(connection: duckdb.DuckDBPyConnection, found: Guess, place: int, labels: dict[str, str]) -> None:
    """Find what is to be predicted."""
    names = {column.name for column in found.log.columns}
    for name, expression in labels.items():
        sql = quoted(expression) if expression in names else expression
        try:
            kind = connection.execute(f"DESCRIBE SELECT {sql} FROM {quoted(f'sample {place}')}").fetchall()[0][1]
        except duckdb.Error as error:
            raise BadInput(f"--label {name}: DuckDB does not take it: {short(error)}") from None
        if expression in names:
            column = found.log.column(expression)
            found.left[expression] = "a label"
            if column.kind == "flag":
                found.labels[name] = (truth(column), "binary")
            else:
                found.labels[name] = (f"TRY_CAST({sql} AS DOUBLE)", "regression")
        else:
            found.labels[name] = (expression, "binary" if kind == "BOOLEAN" else "regression")
        found.why.append(f"label {name}: as --label says")
    if not found.labels:
        _guess_outcomes(found)
    if not found.labels:
        raise BadInput(
            f"{found.log.path}: no column looks like an outcome (0 and 1, yes and no, a rating); name what to predict, "
            "as --label COLUMN, or --label 'NAME=EXPRESSION'"
        )


def _guess_outcomes(found: Guess) -> None:
    roles = {id(found.user), id(found.item)}
    free = [column for column in found.log.columns if id(column) not in roles and column.name not in found.left]
    flags = [column for column in free if column.kind == "flag" and len(set(column.given)) > 1]
    named = [column for column in flags if rank(column.name, OUTCOME) < len(OUTCOME)]
    if not named and len(flags) == 1 and not set(words(flags[0].name)) & set(TRAIT):
        named = flags
    taken: list[str] = []
    for column in sorted(named, key=lambda column: rank(column.name, OUTCOME))[:6]:
        name = plain(column.name, taken)
        taken.append(name)
        found.labels[name] = (truth(column), "binary")
        found.left[column.name] = "a label"
        found.why.append(
            f"label {name}: '{column.name}' has two values and an outcome's name"
            if rank(column.name, OUTCOME) < len(OUTCOME)
            else f"label {name}: '{column.name}' is the only column with two values; look"
        )
    ratings = [column for column in free if rank(column.name, RATING) < len(RATING) and _is_rating(column)]
    ratings = [column for column in ratings if not _is_of_item(found, column)]
    if not ratings and _nameless(found.log):
        ratings = [column for column in free if column.kind == "whole" and _is_rating(column)][:1]
    for column in ratings:
        found.left[column.name] = "a rating is an outcome"
    if not found.labels and ratings:
        _rated(found, ratings[0])
    if not found.labels:
        _events(found, free)
    if not found.labels:
        amounts = [
            column
            for column in free
            if column.kind in ("number", "whole")
            and rank(column.name, AMOUNT) < len(AMOUNT)
            and min(column.numbers) >= 0
        ]
        if amounts:
            column = min(amounts, key=lambda column: rank(column.name, AMOUNT))
            name = plain(column.name, taken)
            found.labels[name] = (column.name, "regression")
            found.left[column.name] = "a label"
            found.why.append(
                f"label {name}: no column has two values, so the number '{column.name}' is predicted; look"
            )


def _is_of_item(found: Guess, column: Looked) -> bool:
    """Tell whether a column says the same whenever an item is shown, as the mean of its reviews does."""
    if found.item is None:
        return False
    seen: dict[str | None, set[str | None]] = {}
    for item, value in zip(found.item.values, column.values, strict=True):
        seen.setdefault(item, set()).add(value)
    return len(seen) < 0.8 * len(column.values) and sum(len(values) == 1 for values in seen.values()) > 0.95 * len(seen)


def _is_rating(column: Looked) -> bool:
    numbers = set(column.numbers)
    return column.kind in ("whole", "number") and 2 < len(numbers) <= 21 and min(numbers) >= -1 and max(numbers) <= 100


def _rated(found: Guess, column: Looked) -> None:
    """A rating counts as liked from a bound on that leaves both classes: four fifths of the highest, or the median."""
    numbers = np.asarray(column.numbers)
    bound = float(np.ceil(numbers.max() * 0.8))
    if not 0.02 < np.mean(numbers >= bound) < 0.98:
        bound = float(np.median(numbers))
        bound = bound if np.mean(numbers >= bound) < 0.98 else float(np.min(numbers[numbers > numbers.min()]))
    value = f"TRY_CAST({quoted(column.name)} AS DOUBLE)" if column.type == "VARCHAR" else quoted(column.name)
    found.labels["liked"] = (f"{value} >= {bound:g}", "binary")
    found.why.append(f"label liked: '{column.name}' of {bound:g} and more; change the bound in the spec")


def _events(found: Guess, free: list[Looked]) -> None:
    """A log with the kind of each event in a column: every kind that is done, and not only seen, is a label."""
    for column in free:
        different = list(dict.fromkeys(column.given))
        if column.kind != "string" or not 2 <= len(different) <= 20:
            continue
        done = [value for value in different if {"".join(words(value)), *words(value)} & set(DONE)]
        if done and len(done) < len(different) and (rank(column.name, EVENT) < len(EVENT) or len(done) > 1):
            found.left[column.name] = "says what happened"
            for value in done[:4]:
                name = plain(value, found.labels)
                found.labels[name] = (f"{quoted(column.name)} = {text(value)}", "binary")
                found.why.append(f"label {name}: rows whose '{column.name}' is '{value}'")
            return


def _joins(
    connection: duckdb.DuckDBPyConnection, found: Guess, others: list[LookedFile], looked: list[LookedFile]
) -> None:
    """Find for each further file its key, and the log's column that holds the same ids."""
    taken: list[str] = ["log"]
    for file in others:
        best: tuple[float, str, str] | None = None
        for key in file.columns:
            if key.kind not in ("whole", "string", "flag") or key.distinct < 0.85 * file.rows:
                continue
            place = looked.index(file)
            counted = f"count(DISTINCT {quoted(key.name)}), count({quoted(key.name)})"
            different, given = connection.execute(f"SELECT {counted} FROM {quoted(f'file {place}')}").fetchall()[0]
            if different < 0.99 * given:
                continue
            for column in _ids(found.log):
                ids, known = quoted(column.name), f"SELECT id_text({quoted(key.name)}) FROM {quoted(f'file {place}')}"
                share = connection.execute(
                    f"SELECT avg(CAST(id_text({ids}) IN ({known}) AS INT)) "
                    f"FROM {quoted(f'sample {looked.index(found.log)}')} WHERE {ids} IS NOT NULL"
                ).fetchall()[0][0]
                alike = words(column.name) == words(key.name) or bool(
                    set(words(column.name)) & set(words(key.name)) - {"id"}
                )
                role = column in (found.user, found.item)
                score = (share or 0) + 0.5 * alike + 0.2 * role
                if (share or 0) >= 0.2 and (best is None or score > best[0]):
                    best = (score, key.name, column.name)
        if best is None:
            found.why.append(f"{file.path}: no column of it holds ids of the log, each once, so it is not used")
            continue
        name = plain(re.sub(r"\W.*", "", file.path.rpartition("/")[2]), taken)
        taken.append(name)
        found.joins[name] = (file, best[1], best[2])
        found.why.append(f"{name}: {file.path}, one row per '{best[1]}', joined to the log's '{best[2]}'")


def _by_joins(found: Guess) -> None:
    """What a file describes, and is no user, is an item."""
    for name, (_, _, column) in found.joins.items():
        looked = found.log.column(column)
        role = "user" if rank(name, USER) < len(USER) or rank(f"{name}"[:-1], USER) < len(USER) else "item"
        if getattr(found, role) is None and looked not in (found.user, found.item):
            setattr(found, role, looked)
            found.why.append(f"{role}: '{column}', which {name} describes")


def _leave_out(connection: duckdb.DuckDBPyConnection, found: Guess, place: int) -> None:
    """Say of every column that is no feature why: constant, one value per row, known only afterwards."""
    truths = {
        name: np.array(
            [v for (v,) in connection.execute(f"SELECT {sql} FROM {quoted(f'sample {place}')}").fetchall()], dtype=float
        )
        for name, (sql, kind) in found.labels.items()
        if kind == "binary"
    }
    for column in found.log.columns:
        if column in (found.user, found.item) or column.name in found.left:
            continue
        if rank(column.name, WEIGHT) < len(WEIGHT) and column.kind in ("number", "whole") and min(column.numbers) >= 0:
            found.weight, found.left[column.name] = column, "the rows' weights"
            found.why.append(f"weight: '{column.name}', in the training loss")
        elif reason := no_feature(column):
            found.left[column.name] = reason
        elif rank(column.name, LATER) < len(LATER):
            found.left[column.name] = "its name says that it is known only afterwards"
        elif label := next((name for name, true in truths.items() if _tells(column, true)), None):
            found.left[column.name] = f"it tells {label} almost by itself, so it is known only afterwards"


def no_feature(column: Looked) -> str:
    """Return why a column is no feature whatever the labels are, '' where it may be one."""
    if column.kind in ("empty", "constant", "nested", "clock"):
        return {"empty": "it is empty", "constant": "it is always the same", "clock": "a time of day"}.get(
            column.kind, "a type that no feature takes"
        )
    if column.kind == "words":
        return "free text"
    single = column.distinct > 0.9 * column.rows and column.rows >= 20
    if column.kind in ("string", "whole") and single and (column.kind == "string" or rank(column.name, KEY) < len(KEY)):
        return "every row has another value"
    return ""


def _tells(column: Looked, label: np.ndarray) -> bool:
    """Tell whether a column alone says what a label is: by being there, by its size or by its value."""
    known = ~np.isnan(label)
    if min(np.sum(label[known] == 1), np.sum(label[known] == 0)) < 5:
        return False
    values = np.array([value if value is not None else "" for value in column.values], dtype=object)[known]
    label = label[known] == 1
    there = np.array([bool(value.strip()) and as_number(value) != 0 for value in values])
    if there.any() and not there.all() and max(np.mean(there == label), np.mean(there != label)) >= 0.99:
        return True
    if column.kind in ("number", "whole"):
        numbers = np.array([as_number(value) if value else np.nan for value in values], dtype=float)
        here = np.isfinite(numbers)
        if column.distinct > 5 and min(label[here].sum(), (~label[here]).sum()) >= 5:
            ranks, ones = rankdata(numbers[here]), label[here].sum()
            area = (ranks[label[here]].sum() - ones * (ones + 1) / 2) / (ones * (~label[here]).sum())
            return max(area, 1 - area) > 0.985
    if column.kind in ("flag", "string", "whole") and column.distinct <= 50:
        purer = sum(max(label[values == value].sum(), (~label[values == value]).sum()) for value in set(values))
        return purer >= 0.99 * len(label) > 0 and purer - max(label.sum(), (~label).sum()) >= 0.8 * min(
            label.sum(), (~label).sum()
        )
    return False
