"""Times of a sequence's events: from columns of any legal kind to the seconds from each event to the next."""

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.trainers.data.read import carry
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.statistics import scan

LIMIT = 3
SEEN = {"type": "sequence", "table": "item", "max_length": LIMIT, "times": "when", "until": "now"}


def recipe(folder, layout: str = "row", **seen) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"path": str(folder), "batch_size": 8, "shards": 4, "shuffle_window": 8}
            | ({"layout": "request", "candidates": 2} if layout == "request" else {}),
            "features": {"item": {"type": "id", "table": "item"}, "seen": SEEN | {"unit": "s"} | seen},
            "tables": {"item": {"rows": 23, "dim": 4}},
            "model": {"kind": "din", "attention": [{"query": ["item"], "events": ["seen"]}], "units": [4]},
            "tasks": {"click": {"label": "label"}},
            "cluster": {"workers": 0, "device": "cpu"},
        }
    )


@st.composite
def rows(draw) -> list[tuple[list | None, list | None, int | None]]:
    """Return ids, with nulls among them, rising times, some not known or all of a row, and the row's own time."""
    made = []
    for _ in range(draw(st.integers(1, 6))):
        count = draw(st.integers(0, 5))
        moments = sorted(draw(st.lists(st.integers(0, 10**9), min_size=count + 1, max_size=count + 1)))
        times = [None if draw(st.integers(0, 5)) == 0 else moment for moment in moments]
        ids = [draw(st.none() | st.integers(0, 9)) for _ in range(count)]
        told = None if draw(st.integers(0, 4)) == 0 else times[:-1]
        made.append((None, None, times[-1]) if draw(st.integers(0, 6)) == 0 else (ids, told, times[-1]))
    return made


def wanted(of: list[tuple[list | None, list | None, int | None]]) -> list[float]:
    """Return all rows' gaps, one event after the other."""
    found = []
    for ids, times, until in of:
        known = times if times is not None else [None] * len(ids or [])
        kept = [time for key, time in zip(ids or [], known, strict=True) if key is not None]
        for one, other in zip(kept, [*kept, until][1:], strict=True):
            found.append(math.nan if one is None or other is None else float(np.float32(other - one)))
    return found


@settings(max_examples=15, deadline=None)
@given(rows(), st.booleans())
def test_gaps_are_those_of_the_ids_that_are_left(of, stamps):
    """Whatever the unit, and whether integers or timestamps: 1,700 microseconds above a whole second change nothing."""
    feature = recipe("nowhere", unit=None if stamps else "us").features["seen"]

    def told(time: int | None):
        if time is None:
            return None
        return datetime.fromtimestamp(time, UTC) + timedelta(microseconds=1700) if stamps else time * 10**6 + 1700

    kind = pa.timestamp("us") if stamps else pa.int64()
    ids = pa.array([row[0] for row in of], pa.list_(pa.int64()))
    times = pa.array([row[1] and [told(time) for time in row[1]] for row in of], pa.list_(kind))
    until = pa.array([told(row[2]) for row in of], kind)
    found = carry.gaps_of(ids, times, until, feature, "")
    np.testing.assert_array_equal(found, np.array(wanted(of), np.float32))


def write(folder, **changes) -> None:
    columns = {
        "item": pa.array([1, 2, 3, 4]),
        "seen": pa.array([[5, 6, 7, 8], [], None, [9]]),
        "when": pa.array([[10, 10, 70, 100], [], None, [5]]),
        "now": pa.array([400, 1, 2, 7]),
        "label": pa.array([1, 0, 1, 0], pa.int8()),
    } | changes
    (folder / "train").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "train" / "a.parquet", row_group_size=3)


def test_a_cut_list_keeps_the_gaps_of_its_newest(tmp_path):
    write(tmp_path)
    batches = Reader(Source.open(recipe(tmp_path), "train"), recipe(tmp_path), rank=0, world=1, shuffle=False).batches
    (batch,) = batches(0)
    assert batch.ids["seen"].values().tolist() == [6, 7, 8, 9]
    assert batch.vectors.tolist() == [60, 30, 300, 2]


def test_requests_share_them(tmp_path):
    """A candidate's rows have what a request's list carries."""
    lists = {name: pa.array([[1, 2], [3], [4], [5]]) for name in ("item", "label")}
    write(tmp_path, **lists | {"label": pa.array([[1, 0], [1], [0], [1]])})
    made = recipe(tmp_path, "request")
    (batch,) = Reader(Source.open(made, "train"), made, rank=0, world=1, shuffle=False).batches(0)
    assert batch.requests is not None
    assert batch.vectors.tolist() == [60, 30, 300, 2]
    flat = batch.flat({"seen": 1})
    assert torch.equal(flat.vectors, torch.tensor([60.0, 30, 300] * 2 + [2.0]))


BAD = {
    "fewer times": ({"when": pa.array([[10, 10, 70], [], None, [5]])}, "row 0 has 3 times and 4 ids; store one time"),
    "not rising": ({"when": pa.array([[10, 80, 70, 90], [], None, [5]])}, "row 0 has a time that is later than the"),
    "later than its row": ({"now": pa.array([400, 1, 2, 4])}, "row 0 has a time that is later than the next one, or"),
    "floats": ({"when": pa.array([[1.5] * 4, [], None, [5.0]])}, "must be a list of timestamps or integers"),
    "no column": ({"now": pa.array([[1]] * 4)}, "features.seen.until: "),
}


@pytest.mark.parametrize(("changes", "told"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_named(changes, told, tmp_path):
    write(tmp_path, **changes)
    with pytest.raises(BadInput, match=told):
        scan(Source.open(recipe(tmp_path), "train"), recipe(tmp_path))


def test_integers_need_a_unit(tmp_path):
    write(tmp_path)
    with pytest.raises(BadInput, match="set the feature's unit: s, ms, us or ns"):
        Source.open(recipe(tmp_path, unit=None), "train")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"until": None}, "name in `until` the column of the row's own time"),
        ({"times": None, "until": None}, "unit: is that of `times`"),
        ({"vectors": "v", "like": "item"}, "either a vector or a time"),
    ],
)
def test_a_recipe_that_says_half_of_it(changes, told):
    with pytest.raises(ValidationError, match=told):
        recipe("nowhere", **changes)
