"""Requests from Parquet to batches: every candidate has what the same row has in flat data."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import CANDIDATES, SEEN, Recipe
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.statistics import scan

MOST = 5
USER = ("user", "history", "tag_weights", "tags", "seen_pictures", "age", "session")


def rows_of(count: int, seed: int) -> list[dict[str, Any]]:
    """Requests as Python objects: nulls, empty lists, lists that are cut, and requests without candidates."""
    rng = np.random.default_rng(seed)

    def maybe(value: Any, share: float = 0.2) -> Any:
        return None if rng.random() < share else value

    requests = []
    for number in range(count):
        events, tags, size = rng.integers(0, 6), rng.integers(0, 4), int(rng.integers(0, MOST + 1))
        requests.append(
            {
                "user": maybe(f"u{rng.integers(9)}"),
                "history": rng.integers(0, 99, events).tolist(),
                "seen_pictures": [maybe(rng.normal(size=3).tolist()) for _ in range(events)],
                "tags": rng.integers(0, 99, tags).tolist(),
                "tag_weights": rng.normal(size=tags).tolist(),
                "age": maybe(float(rng.normal())),
                "session": int(rng.integers(0, 4)),
                "movie": [maybe(int(rng.integers(0, 99))) for _ in range(size)],
                "cast": [
                    maybe([maybe(int(n), 0.1) for n in rng.integers(0, 99, rng.integers(0, 5))]) for _ in range(size)
                ],
                "picture": [maybe(rng.normal(size=3).tolist()) for _ in range(size)],
                "price": None if number % 7 == 0 else [maybe(float(n)) for n in rng.normal(size=size)],
                "label": rng.integers(0, 2, size).tolist(),
                "worth": rng.random(size).tolist(),
            }
        )
    return requests


TYPES = {
    "user": pa.string(),
    "history": pa.list_(pa.int32()),
    "seen_pictures": pa.list_(pa.list_(pa.float32())),
    "tags": pa.list_(pa.int64()),
    "tag_weights": pa.list_(pa.float32()),
    "age": pa.float64(),
    "session": pa.int64(),
    "movie": pa.list_(pa.int16()),
    "cast": pa.large_list(pa.list_(pa.int64())),
    "picture": pa.list_(pa.list_(pa.float16())),
    "price": pa.list_(pa.float32()),
    "label": pa.list_(pa.int8()),
    "worth": pa.list_(pa.float32()),
}


def flat_rows(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with a row per candidate."""
    out = []
    for request in requests:
        for place in range(len(request["label"])):
            row = {name: value if name in USER else value and value[place] for name, value in request.items()}
            row["price"] = None if request["price"] is None else request["price"][place]
            out.append(row)
    return out


def write(folder: Path, requests: list[dict[str, Any]]) -> None:
    stored = {name: pa.array([r[name] for r in requests]).cast(kind) for name, kind in TYPES.items()}
    flat = flat_rows(requests)
    rows = {
        name: pa.array([r[name] for r in flat]).cast(kind if name in USER else kind.value_type)
        for name, kind in TYPES.items()
    }
    for layout, table in {"request": stored, "row": rows}.items():
        (folder / layout / "train").mkdir(parents=True)
        pq.write_table(pa.table(table), folder / layout / "train" / "part.parquet", row_group_size=16)


def recipe(folder: Path, layout: str, **data: Any) -> Recipe:
    requests = {"layout": layout, "candidates": MOST} if layout == "request" else {}
    return Recipe.model_validate(
        {
            "data": {"path": str(folder / layout), "batch_size": 12, "shards": 4, "shuffle_window": 9}
            | requests
            | data,
            "features": {
                "price": {"type": "dense"},
                "movie": {"type": "id", "table": "movie"},
                "history": {
                    "type": "sequence",
                    "table": "movie",
                    "max_length": 3,
                    "vectors": "seen_pictures",
                    "like": "picture",
                },
                "user": {"type": "id", "table": "user"},
                "age": {"type": "dense"},
                "cast": {"type": "sequence", "table": "movie", "max_length": 2},
                "picture": {"type": "vector", "width": 3},
                "tags": {"type": "bag", "table": "tag", "max_length": 3, "weights": "tag_weights"},
            },
            "tables": {name: {"rows": 100, "dim": 4} for name in ("user", "movie", "tag")},
            "model": {"kind": "dnn"},
            "tasks": {"click": {"label": "label"}, "buy": {"label": "label", "sample_weight": "worth"}},
            "evaluate": {
                "group_by": "session",
                "slices": {"cheap": "price < 0", "young": "age < 0 and price > 0"},
                "seen": "history",  # a feature, which is cut, and a column that a feature of another kind reads
                "candidates": "tags",
                "catalogue": "items.parquet",
            },
            "cluster": {"workers": 0},
        }
    )


@pytest.mark.parametrize("world", [1, 2])
def test_each_candidate_is_read_as_its_row(tmp_path, world):
    requests = rows_of(50, seed=0)
    write(tmp_path, requests)
    flat = recipe(tmp_path, "row", batch_size=4 * len(flat_rows(requests)))
    (wanted,) = Reader(
        Source.open(flat, "train"), flat, rank=0, world=1, shuffle=False, groups=True, slices=True
    ).batches(0)
    at = {row: place for place, row in enumerate(wanted.rows.tolist())}
    places = {  # by number of the request and the candidate's place in it
        number * MOST + place: at[row]
        for row, (number, place) in enumerate(
            (number, place) for number, request in enumerate(requests) for place in range(len(request["label"]))
        )
    }
    made_for, seen, cut = recipe(tmp_path, "request"), [], {}
    source = Source.open(made_for, "train")
    for rank in range(world):
        reader = Reader(source, made_for, rank=rank, world=world, shuffle=True, groups=True, slices=True)
        sizes = set()
        for batch in reader.batches(0):
            sizes.add(len(batch.rows))
            assert batch.requests.size == 12 // world + 1
            made = batch.flat({"history": 3})
            row_of = [places[number] for number in batch.rows.tolist() if number >= 0]
            seen += row_of
            real = len(row_of)
            assert batch.weights.tolist() == [1.0] * real + [0.0] * (len(batch.rows) - real)
            for name in ("dense", "labels", "groups", "slices", "sample_weights"):
                found, asked = getattr(made, name)[:real], getattr(wanted, name)[row_of]
                np.testing.assert_array_equal(found, asked, err_msg=name)
            for key in wanted.ids.keys():  # noqa: SIM118
                lists, theirs = made.ids[key].to_dense(), wanted.ids[key].to_dense()
                weights, their_weights = made.ids[key].to_dense_weights(), wanted.ids[key].to_dense_weights()
                for row, place in enumerate(row_of):
                    assert lists[row].tolist() == theirs[place].tolist(), key
                    assert weights[row].tolist() == their_weights[place].tolist(), key
                assert not made.ids[key].lengths()[real:].any()
            numbers = [number for number in batch.rows.tolist() if number >= 0]
            for name, column in ((SEEN, "history"), (CANDIDATES, "tags")):
                for part in (batch.lists(name), made.lists(name)):
                    whole = [requests[number // MOST][column] for number in numbers]
                    assert [one.tolist() for one in part.to_dense()[:real]] == whole
                assert name not in made.ids.keys()  # noqa: SIM118
            vectors = made.vectors.view(-1, 3).split(made.ids["history"].lengths().tolist())
            theirs = wanted.vectors.view(-1, 3).split(wanted.ids["history"].lengths().tolist())
            for row, place in enumerate(row_of):
                np.testing.assert_array_equal(vectors[row], theirs[place])
            assert not made.labels[real:].any()
            assert made.dense[real:].isnan().all()
        assert len(sizes) == 1 or world == 1
        cut[rank] = dict(reader.cut)
    assert sorted(seen) == sorted(places.values())
    flat_lists, rows = wanted.lists(SEEN).to_dense(), flat_rows(requests)
    assert all(flat_lists[place].tolist() == rows[row]["history"] for row, place in at.items() if row >= 0)
    later = list(reader.batches(0, start=2))  # as a run that goes on
    assert torch.equal(later[-1].rows, batch.rows)
    assert torch.equal(later[-1].ids.values(), batch.ids.values())
    assert sum(each["cast"] for each in cut.values()) == sum(
        len(r["cast"] or []) - (r["cast"] or []).count(None) > 2 for r in flat_rows(requests)
    )


def test_statistics_are_those_of_rows(tmp_path):
    write(tmp_path, rows_of(50, seed=1))
    found, wanted = (
        scan(Source.open(made, "train"), made) for made in (recipe(tmp_path, "request"), recipe(tmp_path, "row"))
    )
    for part in ("rows", "rate", "unknown", "single"):
        assert getattr(found, part) == getattr(wanted, part)
    for name in wanted.mean:
        assert found.mean[name] == pytest.approx(wanted.mean[name])
        assert found.std[name] == pytest.approx(wanted.std[name])


@pytest.mark.parametrize(
    ("column", "change", "sentence"),
    [
        ("label", lambda lists: [1] * len(lists), "must be a list with one value per candidate"),
        (
            "movie",
            lambda lists: [[*lists[0], 1], *lists[1:]],
            "row 0: column '.*' has . values and '.*' has .; every list",
        ),
        ("label", lambda lists: [[0] * 9, *lists[1:]], "row 0: column '.*' has . values and '.*' has .; every list"),
    ],
)
def test_what_is_no_request_is_named(tmp_path, column, change, sentence):
    requests = rows_of(20, seed=2)
    write(tmp_path, requests)
    path = tmp_path / "request" / "train" / "part.parquet"
    table = pq.read_table(path)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(change(table.column(column).to_pylist()))), path)
    made_for = recipe(tmp_path, "request")
    with pytest.raises(BadInput, match=sentence):
        list(Reader(Source.open(made_for, "train"), made_for, rank=0, world=1, shuffle=False).batches(0))


def test_a_request_of_too_many_candidates_is_named(tmp_path):
    write(tmp_path, rows_of(50, seed=0))
    enough, made_for = (recipe(tmp_path, "request", candidates=most) for most in (MOST, MOST - 1))
    scan(Source.open(enough, "train"), enough)  # what is kept of it answers another question
    with pytest.raises(BadInput, match=r"more than data\.candidates: 4; raise it, or split"):
        scan(Source.open(made_for, "train"), made_for)
