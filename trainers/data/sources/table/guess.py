"""Guesses of what a stranger's columns are: roles by name and content, each with the reason that is told."""

import re

import duckdb

from livetrain.trainers.data.sources.table.files import quoted
from livetrain.trainers.data.sources.table.guessed import (
    Guess,
    epoch_named,
    ids_of,
    is_key,
    nameless,
    plain,
    rank,
    words,
)
from livetrain.trainers.data.sources.table.left_out import leave_out
from livetrain.trainers.data.sources.table.look import LookedFile
from livetrain.trainers.data.sources.table.outcomes import outcomes
from livetrain.trainers.data.sources.table.vocabulary import EARLY, ITEM, OUTCOME, RATING, TIME, USER


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
    outcomes(connection, found, place, labels)
    _joins(connection, found, others, looked)
    if found.item is None or found.user is None:
        _by_joins(found)
    leave_out(connection, found, place)
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


def _who_and_what(found: Guess) -> None:
    """Find the columns of users and items: by their names, or, of files whose names say nothing, the first two ids."""
    ids = [column for column in ids_of(found.log) if rank(column.name, OUTCOME + RATING) == len(OUTCOME + RATING)]
    for role, known in (("user", USER), ("item", ITEM)):
        named = [column for column in ids if rank(column.name, known) < len(known) and column is not found.user]
        # customer_id before customer_segment: what ends with id, then what has more values
        named.sort(key=lambda column: (not is_key(column), rank(column.name, known), -column.distinct))
        named = [column for column in named if column.distinct > 2 and (is_key(column) or column.distinct >= 10)]
        if named:
            setattr(found, role, named[0])
            found.why.append(f"{role}: '{named[0].name}', by its name; about {named[0].distinct:,} different")
    if found.user is None and found.item is None and nameless(found.log):
        whole = [column for column in ids if len(column.given) == len(column.values) and not column.detail]
        several = [column for column in whole if 10 <= column.distinct <= 0.9 * column.rows][:2]
        for role, column in zip(("user", "item"), several, strict=False):
            setattr(found, role, column)
            found.why.append(
                f"{role}: '{column.name}', as the {'first' if role == 'user' else 'second'} column of ids; look"
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
        and not is_key(column)
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
            for column in ids_of(found.log):
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
