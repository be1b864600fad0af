"""Guesses of what is to be predicted."""

import duckdb
import numpy as np

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.expression import named
from livetrain.trainers.data.sources.table.files import quoted, short, text
from livetrain.trainers.data.sources.table.guessed import Guess, nameless, plain, rank, words
from livetrain.trainers.data.sources.table.look import Looked
from livetrain.trainers.data.sources.table.vocabulary import AMOUNT, DONE, EVENT, OUTCOME, RATING, TRAIT


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


def outcomes(connection: duckdb.DuckDBPyConnection, found: Guess, place: int, labels: dict[str, str]) -> None:
    """Find what is to be predicted."""
    names = {column.name for column in found.log.columns}
    for name, expression in labels.items():
        sql = quoted(expression) if expression in names else expression
        if expression not in names:
            named(f"--label {name}", expression)
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
    if not ratings and nameless(found.log):
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
