"""Interactions of any file as samples of the leave-one-out protocol, against plain loops over the same events."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.sources.interactions.log import Events, named
from livetrain.trainers.data.sources.interactions.prepare import Source, prepare
from livetrain.trainers.data.sources.interactions.protocol import TEST, TRAIN, VALID, leave_one_out

DATA = Path(os.environ.get("LIVETRAIN_DATA", "nowhere"))
EVENTS = [  # user, item, rating, time, not in the order of time; b's last two have one time
    ("b", "i10", 5, 30),
    ("a", "i9", 4, 10),
    ("b", "i9", 3, 10),
    ("b", "i7", 1, 40),
    ("a", "i7", 2, 5),
    ("a", "i10", 5, 20),
    ("b", "i8", 2, 40),
    ("c", "i6", 1, 1),
    ("c", "i7", 1, 2),
]


def read(out, split):
    return pq.read_table(out / split).to_pylist()


def source(path, **others):
    return Source(path, others.pop("form", None), others.pop("names", {}), **others)


def write(path, text):
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def lines(delimiter, scale=1, head=None):
    return "\n".join(
        [*([head] if head else []), *(delimiter.join(map(str, (*e[:3], e[3] * scale))) for e in EVENTS), ""]
    )


FORMS = {
    "ratings.csv": lines(",", head="userId,movieId,rating,timestamp"),
    "ratings.csv.gz": lines(",", 1000 * 10**9, head="userId,movieId,rating,timestamp"),  # beyond 10^11: milliseconds
    "x.tsv": lines("\t", head="user\titem\tvalue\ttime"),
    "x.inter": lines("\t", head="user_id:token\titem_id:token\trating:float\ttimestamp:float"),
    "ratings.dat": lines("::"),
    "x.train.rating": lines("\t"),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_table_gives_the_same_rows(tmp_path, name):
    prepare(source(write(tmp_path / name, FORMS[name])), tmp_path / "out")
    items, users = (pq.read_table(tmp_path / "out" / f"{part}.parquet").to_pydict() for part in ("items", "users"))
    assert (users["user"], users["user_id"]) == ([1, 2, 3], ["a", "b", "c"])
    assert dict(zip(items["item_id"], items["item"], strict=True)) == {"i10": 1, "i6": 2, "i7": 3, "i8": 4, "i9": 5}
    assert dict(zip(items["item_id"], items["count"], strict=True)) == {"i10": 1, "i6": 1, "i7": 2, "i8": 0, "i9": 1}
    trained = pq.read_table(tmp_path / "out" / "trained_items.parquet")
    assert trained["item_id"].to_pylist() == ["i10", "i6", "i7", "i9"]
    rows = {split: read(tmp_path / "out", split) for split in ("train", "valid", "test")}
    found = {s: [(row["user"], row["history"], row["item"]) for row in part] for s, part in rows.items()}
    assert found["train"] == [(1, [], 3), (2, [5], 1), (3, [2], 3)]
    assert found["valid"] == [(1, [3], 5), (2, [5, 1], 3)]
    assert found["test"] == [(1, [3, 5], 1), (2, [5, 1, 3], 4)]
    last, scale = rows["test"][1], 10**9 if name.endswith(".gz") else 1
    assert (last["time"], last["history_time"]) == (40 * scale, [10 * scale, 30 * scale, 40 * scale])
    assert (last["value"], last["history_value"]) == (2, [3, 5, 1])
    assert (last["label"], last["history_count"], last["item_count"]) == (1, 3, 0)


def test_lines_of_items_are_read_in_their_order(tmp_path):
    made = prepare(source(write(tmp_path / "toys.txt", "7 3 10 3 2\n9 2\n")), tmp_path / "out")
    test = read(tmp_path / "out", "test")
    assert [(row["user"], row["history"], row["item"]) for row in test] == [(1, [2, 3, 2], 1)]
    assert "time" not in test[0]
    items = pq.read_table(tmp_path / "out" / "items.parquet")
    assert items["item_id"].to_pylist() == [2, 3, 10]  # integers by their size
    assert made["counts"]["cold_test_rows"] == 0  # the second user's only event teaches it


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 3)), min_size=3, max_size=40))
def test_stages_are_those_of_a_loop(events):
    by_user: dict[int, list] = {}
    for place, (user, item, time) in enumerate(events):
        by_user.setdefault(user, []).append((time, place, item))
    wanted = []
    for user, own in sorted(by_user.items()):
        own = sorted(own)
        stages = [TRAIN] * len(own) if len(own) < 3 else [TRAIN] * (len(own) - 2) + [VALID, TEST]
        wanted += [(user, item, stage, time) for (time, _, item), stage in zip(own, stages, strict=True)]
    user, item, time = (np.array(part) for part in zip(*events, strict=True))
    read = Events("x", pa.array(user), pa.array(item), time)
    users, items = named([read.user]), named([read.item])
    if max(map(len, by_user.values())) < 3:
        with pytest.raises(BadInput, match="no user has 3 events"):
            leave_one_out(read, users, items)
        return
    staged = leave_one_out(read, users, items)
    ids = (users.ids.to_numpy()[staged.user], items.ids.to_numpy()[staged.item])
    assert list(zip(*ids, staged.stage, staged.time, strict=True)) == wanted


def ncf(folder, test="a\tx9\t5\nb\tx1\t4\n", negatives="(a,x9)\tx7\tx8\n(b,x1)\tx0\tx7\n"):
    train = "a\tx1\t5\na\tx2\t4\na\tx3\t4\nb\tx3\t2\n"
    return source(
        write(folder / "x.train.rating", train),
        test=write(folder / "x.test.rating", test),
        negatives=write(folder / "x.test.negative.gz", negatives),
    )


def test_listed_negatives_are_candidates_of_a_row_per_user(tmp_path):
    prepare(ncf(tmp_path), tmp_path / "out")
    rows = {split: read(tmp_path / "out", split) for split in ("train", "valid", "test")}
    names = pq.read_table(tmp_path / "out" / "items.parquet")["item_id"].to_pylist()
    assert names == ["x0", "x1", "x2", "x3", "x7", "x8", "x9"]  # the listed ones are items too

    def of(row):
        return (
            [names[item - 1] for item in row["history"]],
            names[row["item"] - 1],
            [names[i - 1] for i in row["candidates"]],
        )

    assert [of(row)[1:] for row in rows["test"]] == [("x9", ["x7", "x8"]), ("x1", ["x0", "x7"])]
    assert [row["user"] for row in rows["valid"]] == [1]  # b's one event teaches
    history, item, candidates = of(rows["valid"][0])
    assert sorted([*history, item]) == ["x1", "x2", "x3"]
    assert len(candidates) == 2
    assert not {*candidates} & {"x1", "x2", "x3", "x9"}
    assert of(rows["test"][0])[0] == [*history, item]
    assert [of(row)[2] for row in rows["train"]] == [[], []]
    again = prepare(ncf(tmp_path), tmp_path / "final", teaches_valid=True)
    assert again["counts"]["taught"] == 4
    assert len(read(tmp_path / "final", "train")[0]["history"]) == 2


def test_rows_of_events_have_what_is_seen_and_labels(tmp_path):
    prepare(ncf(tmp_path), tmp_path / "users")
    prepare(ncf(tmp_path), tmp_path / "events", rows="events")
    chooses = {row["user"]: row["item"] for row in read(tmp_path / "users", "valid")}
    train = [
        (row["user"], row["item"], sorted(row["seen"]), row["label"]) for row in read(tmp_path / "events", "train")
    ]
    taught = [item for item in (2, 3, 4) if item != chooses[1]]
    assert sorted(train) == [*((1, item, taught, 1) for item in taught), (2, 4, [4], 1)]
    for split in ("valid", "test"):
        rows = [(row["user"], row["item"], row["label"]) for row in read(tmp_path / "events", split)]
        listed = read(tmp_path / "users", split)
        assert rows == [
            (row["user"], item, int(place == 0))
            for row in listed
            for place, item in enumerate([row["item"], *row["candidates"]])
        ]


def test_columns_of_items_and_users_come_along(tmp_path):
    events = write(tmp_path / "x.csv", lines(",", head="user,item,value,time"))
    items = pa.table(
        {"item": ["i7", "i9", "i10"], "brand": ["x", "y", "x"], "price": [1.5, 2.5, None], "tags": [["p"], [], None]}
    )
    pq.write_table(items, tmp_path / "items.parquet")
    users = write(tmp_path / "users.csv", "user,age\na,7\nb,\n")
    prepare(source(events, items=tmp_path / "items.parquet", users=users), tmp_path / "out")
    b = read(tmp_path / "out", "test")[1]  # of i9, i10, i7, then i8, which has no row
    assert (b["brand"], b["price"], b["tags"], b["age"]) == (0, None, [], None)
    x, y = (
        row["brand"] for row in pq.read_table(tmp_path / "out" / "items.parquet").to_pylist() if row["item"] in (1, 5)
    )
    assert x != y
    assert b["history_brand"] == [y, x, x]
    assert "history_price" not in b
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["roles"]["dense"] == ["price"]


WRONG = {
    "a short line": ("x.csv", "user,item\na,b\na\n", {}, "x.csv cannot be read as csv .*Row #3.*mend it"),
    "no user": ("x.csv", "user,item\na,b\n,b\n", {}, "x.csv, row 2: column 'user' is empty"),
    "no such column": ("x.csv", "user,item\na,b\n", {"names": {"time": "when"}}, "no column 'when' for --time"),
    "which column": ("x.csv", "who,item\na,b\n", {}, "which column is the user"),
    "a time that is none": ("x.csv", "user,item,time\na,b,1\na,c,soon\n", {}, "column 'time' is not a number"),
    "a value that is none": ("x.csv", "user,item,rating\na,b,\n", {}, "column 'rating'"),
    "two that could be the user": (
        "x.csv",
        "session_id,user_id,item\na,b,c\n",
        {},
        "session_id and user_id could each",
    ),
    "times in two units": (
        "x.csv",
        "user,item,time\na,b,1400000000\na,c,1400000001000\n",
        {},
        r"row 2: column 'time' has a time in another unit than others",
    ),
    "times beyond calendars": ("x.csv", "user,item,time\na,b,1e30\n", {}, "column 'time' has times beyond"),
    "nothing": ("x.csv", "user,item\n", {}, "has no events"),
    "an unknown ending": ("x.log", "a b\n", {}, "say --form"),
    "a table as lines": ("x.txt", "a,b\n", {}, "line 1: wanted a user and her items"),
    "a user twice": ("x.txt", "a b c d\na e\n", {}, "line 2: user a stands in line 1 too"),
    "a user alone": ("x.txt", "a\n", {}, "line 1"),
    "too few events": ("x.txt", "a b c\n", {}, "no user has 3 events"),
    "negatives alone": ("x.txt", "a b c d\n", {"negatives": Path("y")}, "name that by --test"),
    "another user": ("ncf", "(z,x9)\tx7\n", {}, "row 1: .z,x9. is not that user's test event"),
    "a missing user": ("ncf", "(a,x9)\tx7\n", {}, "user b has a test event and no row"),
    "no negatives": ("ncf", "(a,x9)\n", {}, "line 1: wanted .user,item. and negatives"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(tmp_path, case):
    name, text, others, sentence = WRONG[case]
    given = ncf(tmp_path, negatives=text) if name == "ncf" else source(write(tmp_path / name, text), **others)
    with pytest.raises(BadInput, match=sentence):
        prepare(given, tmp_path / "out")


def test_a_missing_attribute_is_one_id_of_an_item_and_of_an_event(tmp_path):
    items = pa.table({"item": ["a", "b"], "brand": ["x", None], "size": [None, 3]})
    pq.write_table(items, tmp_path / "items.parquet")
    events = write(tmp_path / "x.txt", "u a b c d\nv b a d c\n")
    prepare(source(events, items=tmp_path / "items.parquet"), tmp_path / "out")
    table = {row["item_id"]: row for row in pq.read_table(tmp_path / "out" / "items.parquet").to_pylist()}
    names = {row["item"]: name for name, row in table.items()}
    for split in ("train", "valid", "test"):
        for row in read(tmp_path / "out", split):
            for key in ("brand", "size"):
                assert row[key] == table[names[row["item"]]][key]
                assert row[f"history_{key}"] == [table[names[item]][key] for item in row["history"]]
    assert {table[name]["brand"] for name in "bcd"} == {table[name]["size"] for name in "acd"} == {0}


@pytest.mark.parametrize("tags", [[["p", None], []], [[1, None], []]])
def test_a_null_inside_a_list_is_named(tmp_path, tags):
    pq.write_table(pa.table({"item": ["a", "b"], "tags": tags}), tmp_path / "items.parquet")
    events = write(tmp_path / "x.txt", "u a b c d\n")
    with pytest.raises(BadInput, match="column 'tags' of users or items has a null inside a list; leave it out"):
        prepare(source(events, items=tmp_path / "items.parquet"), tmp_path / "out")


def test_what_needs_no_events_is_refused_before_they_are_read(tmp_path):
    """The file is no text, which reading it would tell."""
    events = source(write(tmp_path / "x.txt", "a b c d\n"))
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    bad = source(tmp_path / "bad.txt")
    for out, rows, words in (("new", "events", "--rows events"), ("full", "users", "is not empty")):
        with pytest.raises(BadInput, match=words):
            prepare(bad, tmp_path / out, rows=rows)
    assert not (tmp_path / "new").exists()
    prepare(events, tmp_path / "made")
    with pytest.raises(BadInput, match="holds other prepared data"):
        prepare(bad, tmp_path / "made")


def test_rows_per_event_need_negatives_and_names_are_free(tmp_path):
    events = source(write(tmp_path / "x.txt", "a b c d\n"))
    with pytest.raises(BadInput, match="--rows events"):
        prepare(events, tmp_path / "out", rows="events")
    items = write(tmp_path / "items.csv", "item,label\nb,1\n")
    with pytest.raises(BadInput, match="column 'label'"):
        prepare(source(events.events, items=items), tmp_path / "out")
    prepare(events, tmp_path / "out")
    with pytest.raises(BadInput, match="holds other prepared data"):
        prepare(events, tmp_path / "out", teaches_valid=True)


@pytest.mark.skipif(not DATA.is_dir(), reason="LIVETRAIN_DATA is not set")
def test_counts_of_published_protocols(tmp_path):
    """Users, items, events, and the share of test rows whose item is known: see the guide's table."""
    toys = prepare(source(DATA / "amazon" / "toys_and_games.txt"), tmp_path / "toys")["counts"]
    assert (toys["users"], toys["items"], toys["events"]) == (19_412, 11_924, 167_597)
    assert round(toys["loo_correction"] * toys["users"]) == 19_365
    music = {part: DATA / "deepcf" / f"AMusic.{part}" for part in ("train.rating", "test.rating", "test.negative")}
    given = source(music["train.rating"], test=music["test.rating"], negatives=music["test.negative"])
    made = prepare(given, tmp_path / "music", teaches_valid=True)
    assert made["counts"]["taught"] == 44_311
    assert made["splits"]["test"]["rows"] == made["counts"]["users"] == 1_776
    assert {len(row["candidates"]) for row in read(tmp_path / "music", "test")} == {99}


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        (pa.array([1, 2], pa.time64("us")), "column 'time' is time64.us., which is no point in time"),
        (pa.array([2**63 + 1, 5], pa.uint64()), "column 'item' has ids above"),
    ],
)
def test_types_that_cannot_be_are_named(tmp_path, column, sentence):
    table = pa.table({"user": [1, 1], "item": [1, 2], "time": [1, 2]})
    name = "item" if pa.types.is_uint64(column.type) else "time"
    pq.write_table(table.set_column(table.column_names.index(name), name, column), tmp_path / "x.parquet")
    with pytest.raises(BadInput, match=sentence):
        prepare(source(tmp_path / "x.parquet"), tmp_path / "out")


def test_nanoseconds_are_times(tmp_path):
    times = pa.array([3_000_000_001, 1_000_000_002, 2_000_000_003, 4_000_000_004], pa.timestamp("ns"))
    pq.write_table(pa.table({"user": [1] * 4, "item": [3, 1, 2, 4], "time": times}), tmp_path / "x.parquet")
    prepare(source(tmp_path / "x.parquet"), tmp_path / "out")
    assert read(tmp_path / "out", "test")[0]["history"] == [1, 2, 3]


def test_a_file_that_changed_is_not_already_prepared(tmp_path):
    events = write(tmp_path / "x.txt", "a b c d\n")
    prepare(source(events), tmp_path / "out")
    prepare(source(events), tmp_path / "out")
    write(events, "a b c d e\n")
    with pytest.raises(BadInput, match="holds other prepared data"):
        prepare(source(events), tmp_path / "out")


@pytest.mark.parametrize("timed", [True, False])
def test_a_test_event_is_the_newest(tmp_path, timed):
    """With times of its own; and without, those of the other file order what it is asked with."""
    train = write(tmp_path / "x.csv", "user,item,time\na,p,30\na,q,10\na,r,20\n")
    test = write(tmp_path / "t.csv", "user,item,time\na,s,15\n" if timed else "user,item\na,s\n")
    if timed:
        with pytest.raises(BadInput, match=r"t.csv, row 1: user a has later events in .*x.csv"):
            prepare(source(train, test=test), tmp_path / "out")
        return
    prepare(source(train, test=test), tmp_path / "out")
    names = dict(pq.read_table(tmp_path / "out" / "items.parquet").select(["item", "item_id"]).to_pandas().values)
    assert [names[item] for item in read(tmp_path / "out", "test")[0]["history"]] == ["q", "r", "p"]


def test_counts_are_ours(tmp_path):
    events = write(tmp_path / "x.txt", "a b c d\n")
    with pytest.raises(BadInput, match="column 'count'"):
        prepare(source(events, items=write(tmp_path / "items.csv", "item,count\nb,50\n")), tmp_path / "out")
