"""Duplicates and unseen ids against a twin in plain numpy, on random small datasets."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from livetrain.trainers.data.checks import ids, keys
from livetrain.trainers.data.checks.dataset import open_dataset
from tests.trainers.data.checks.prepared import day_name

VALUE = st.one_of(st.none(), st.integers(-2, 3))
ROW = st.tuples(VALUE, VALUE, VALUE)
PARTS = st.lists(st.lists(ROW, min_size=1, max_size=12), min_size=1, max_size=3)


def write(folder: Path, parts: list, by_day: bool) -> None:
    names = [f"date={day_name(n)}" for n in range(3)] if by_day else ["train", "valid", "test"]
    for name, rows in zip(names, parts, strict=False):
        (folder / name).mkdir()
        columns = zip(("user", "room", "timestamp"), zip(*rows, strict=True), strict=True)
        table = pa.table({column: pa.array(values, pa.int64()) for column, values in columns})
        pq.write_table(table, folder / name / "part-0.parquet", row_group_size=3)


def unseen_by_hand(parts: list, by_day: bool) -> list[tuple[int, int, int]]:
    """Return (part, rows with an id, of these unseen) of the later parts that have an id."""
    found = []
    for number, part in enumerate(parts[1:], start=1):
        users = np.array([row[0] for row in part if row[0] is not None], int)
        before = parts[:number] if by_day else parts[:1]
        seen = np.array([row[0] for rows in before for row in rows if row[0] is not None], int)
        if len(users):
            found.append((number, len(users), int((~np.isin(users, seen)).sum())))
    return found


@settings(max_examples=40, deadline=None)
@given(parts=PARTS, by_day=st.booleans())
def test_duplicates_and_unseen_ids_are_numpys(parts, by_day):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder, parts, by_day)
        with open_dataset(folder) as dataset:
            again, across = keys.count_duplicates(dataset, ["user", "room", "timestamp"])
            found = {column.column: column for column in ids.measure(dataset)}
    rows = np.array([[n, *row] for n, part in enumerate(parts) for row in part if None not in row], int).reshape(-1, 4)
    unique, group = np.unique(rows[:, 1:], axis=0, return_inverse=True)
    assert again == len(rows) - len(unique)
    assert across == sum(len(set(rows[group == number, 0])) > 1 for number in range(len(unique)))
    by_part = {}
    for _, part, count, new in found["user"].days:  # a split may span several days
        by_part[part] = tuple(np.add(by_part.get(part, (0, 0)), (count, new)))
    dated = any(row[2] is not None for part in parts for row in part)
    if dated and not by_day:  # rows without a time belong to no day and are left out
        parts = [parts[0], *([row if row[2] is not None else (None, *row[1:]) for row in part] for part in parts[1:])]
    assert [(part, *counts) for part, counts in sorted(by_part.items())] == unseen_by_hand(parts, by_day)
