"""Which columns are no features, and why."""

import duckdb
import numpy as np
from scipy.stats import rankdata

from livetrain.trainers.data.sources.table.files import quoted
from livetrain.trainers.data.sources.table.guessed import Guess, rank, words
from livetrain.trainers.data.sources.table.look import Looked, as_number
from livetrain.trainers.data.sources.table.vocabulary import KEY, LATER, WEIGHT


def leave_out(connection: duckdb.DuckDBPyConnection, found: Guess, place: int) -> None:
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
        if "".join(words(column.name)) in WEIGHT and column.kind in ("number", "whole") and min(column.numbers) >= 0:
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
