"""Flat data become requests: every row is a candidate of exactly one, and what is stored once was the same in all."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.checks import whole
from livetrain.trainers.data.checks.findings import Verdict
from livetrain.trainers.data.write import layout
from livetrain.trainers.data.write.requests import convert

ROLES = {
    "time": "timestamp",
    "group": "user",
    "item": "movie",
    "labels": ["label"],
    "ids": ["user", "movie", "city"],
    "sequences": ["history"],
    "dense": ["price"],
}


def write(folder: Path, parts: tuple[str, ...] = ("train", "valid"), seed: int = 0) -> None:
    """Rows of few users at few times, of which one user's history changes within one moment."""
    for number, part in enumerate(parts):
        rng = np.random.default_rng([seed, number])
        rows = 400
        user, moment = rng.integers(0, 6, rows), rng.integers(0, 20, rows)
        history = [[int(u), int(t)] if t % 3 else [] for u, t in zip(user, moment, strict=True)]
        history[7] = [99]
        table = pa.table(
            {
                "user": pa.array(user),
                "timestamp": pa.array(1_700_000_000 + moment),
                "city": pa.array([None if u == 2 else int(u) % 3 for u in user]),
                "history": pa.array(history, layout.list_of(pa.int64())),
                "movie": pa.array(rng.integers(0, 50, rows), mask=rng.random(rows) < 0.1),
                "tags": pa.array([rng.integers(0, 9, rng.integers(0, 3)).tolist() for _ in range(rows)]),
                "price": pa.array(rng.normal(size=rows).astype(np.float32), mask=rng.random(rows) < 0.2),
                "label": pa.array(rng.integers(0, 2, rows).astype(np.int8)),
                "row": pa.array(np.arange(rows)),
            }
        )
        (folder / part).mkdir(parents=True)
        pq.write_table(table[:150], folder / part / "part-0.parquet", row_group_size=64)
        pq.write_table(table[150:], folder / part / "part-1.parquet")
    (folder / layout.MANIFEST).write_text(json.dumps({"roles": ROLES}))


def by_hand(rows: list[dict], most: int) -> list[list[int]]:
    """The numbers of each request's rows, of one file, in the order of their first ones."""
    found: dict[tuple, list[list[int]]] = {}
    for row in rows:
        key = (row["user"], row["timestamp"], row["city"], tuple(row["history"]))
        requests = found.setdefault(key, [[]])
        if len(requests[-1]) == most:
            requests.append([])
        requests[-1].append(row["row"])
    return sorted((request for requests in found.values() for request in requests), key=lambda request: request[0])


def test_requests_are_those_found_by_hand(tmp_path):
    write(tmp_path / "flat")
    made = convert(tmp_path / "flat", tmp_path / "out", most=3, by=["user", "timestamp"])["requests"]
    assert made["candidates"] == ["movie", "tags", "price", "label", "row"] or "history" in made["candidates"]
    user = [name for name in ("user", "timestamp", "city", "history") if name in made["user"]]
    for part in ("train", "valid"):
        for path in sorted((tmp_path / "flat" / part).iterdir()):
            rows = pq.read_table(path).to_pylist()
            found = pq.read_table(tmp_path / "out" / part / path.name).to_pylist()
            for request in found:
                assert 1 <= len(request["row"]) <= 3
                for place, number in enumerate(request["row"]):
                    row = next(row for row in rows if row["row"] == number)
                    for name, value in row.items():
                        assert value == (request[name] if name in user else request[name][place]), name
            assert sorted(number for request in found for number in request["row"]) == [row["row"] for row in rows]
    assert made["parts"]["train"]["rows"] == 400


def test_what_differs_begins_a_request_of_its_own(tmp_path):
    days = [f"date=2026-01-0{day}" for day in (1, 2, 3, 4)]
    write(tmp_path / "flat", tuple(days), seed=1)
    for day in (days[0], *days[2:]):  # those that are looked at, where a history is the same throughout
        for path in (tmp_path / "flat" / day).iterdir():
            stored = pq.read_table(path)
            place, kind = stored.column_names.index("history"), stored.schema.field("history")
            lists = pa.array([[user] for user in stored["user"].to_pylist()], kind.type)
            pq.write_table(stored.set_column(place, kind, lists), path)
    convert(tmp_path / "flat", tmp_path / "out", most=3)
    for path in sorted((tmp_path / "flat" / days[1]).iterdir()):
        found = pq.read_table(tmp_path / "out" / days[1] / path.name).to_pylist()
        assert [request["row"] for request in found] == by_hand(pq.read_table(path).to_pylist(), most=3)


def test_rows_of_a_while_know_what_the_first_one_knew(tmp_path):
    write(tmp_path / "flat")
    made = convert(tmp_path / "flat", tmp_path / "out", most=8, within=5)["requests"]
    assert {"user", "timestamp", "city", "history"} <= {*made["user"]}
    rows = {
        row["row"]: row for path in (tmp_path / "flat" / "train").iterdir() for row in pq.read_table(path).to_pylist()
    }
    found = pq.read_table(tmp_path / "out" / "train").to_pylist()
    for request in found:
        own = [rows[number] for number in request["row"]]
        assert len({(row["user"], row["timestamp"] // 5) for row in own}) == 1
        assert (request["timestamp"], request["history"]) == (own[0]["timestamp"], own[0]["history"])
    assert sum(len(request["row"]) for request in found) == 400
    assert len(found) < 100


def test_days_are_added(tmp_path):
    write(tmp_path / "flat", ("date=2026-01-01",))
    convert(tmp_path / "flat", tmp_path / "out", most=4)
    before = (tmp_path / "out" / "date=2026-01-01" / "part-0.parquet").stat().st_mtime_ns
    write(tmp_path / "flat", ("date=2026-01-02",))
    made = convert(tmp_path / "flat", tmp_path / "out", most=4)
    assert [*made["requests"]["parts"]] == ["date=2026-01-01", "date=2026-01-02"]
    assert (tmp_path / "out" / "date=2026-01-01" / "part-0.parquet").stat().st_mtime_ns == before
    with pytest.raises(BadInput, match="other options"):
        convert(tmp_path / "flat", tmp_path / "out", most=5)


def test_checks_see_the_rows(tmp_path):
    write(tmp_path / "flat")
    convert(tmp_path / "flat", tmp_path / "out", most=4)
    checked = [whole.check(tmp_path / folder, lambda text: None) for folder in ("flat", "out")]
    assert checked[0].dataset.rows == checked[1].dataset.rows == 800
    for find in ("label", "duplicates"):
        of_flat, of_requests = ([f.text for f in each.findings if f.check.startswith(find)] for each in checked)
        assert of_flat == of_requests
    assert not [f for f in checked[1].findings if f.check in ("roles", "schema") and f.verdict == Verdict.wrong]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"by": ["usr"]}, "no column 'usr'"), ({"by": ["user"], "within": 3}, "--within")],
)
def test_what_makes_no_requests_is_named(tmp_path, options, sentence):
    write(tmp_path / "flat")
    with pytest.raises(BadInput, match=sentence):
        convert(tmp_path / "flat", tmp_path / "out", most=4, **options)


def with_columns(folder: Path, **columns) -> None:
    """Put columns into one file of the later part."""
    path = folder / "valid/part-1.parquet"
    table = pq.read_table(path)
    for name, made in columns.items():
        values = made(len(table))
        place = table.schema.get_field_index(name)
        table = table.append_column(name, values) if place < 0 else table.set_column(place, name, values)
    pq.write_table(table, path)


@pytest.mark.parametrize(
    ("columns", "options", "sentence"),
    [
        ({"User": lambda n: pa.array(range(n))}, {}, "column 'User' and column 'user' cannot be told apart"),
        ({"_Request_part": lambda n: pa.array(range(n))}, {}, "'_Request_part' and the number of a request's part"),
        ({"file_row_number": lambda n: pa.array(range(n))}, {}, "'file_row_number' and the number of a row"),
        ({"user": lambda n: pa.array([None, *range(n - 1)])}, {}, "column 'user', by which .* is null in 1 rows"),
        ({"timestamp": lambda n: pa.array([5.5] * n)}, {"within": 2}, "--within: column 'timestamp' of .* is double"),
    ],
)
def test_columns_that_would_make_wrong_requests_are_refused(tmp_path, columns, options, sentence):
    write(tmp_path / "flat")
    with_columns(tmp_path / "flat", **columns)
    with pytest.raises(BadInput, match=sentence):
        convert(tmp_path / "flat", tmp_path / "out", most=4, **options)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["dataset.json.unfinished"]  # before work starts
