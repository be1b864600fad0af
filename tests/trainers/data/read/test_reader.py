import gc
import itertools
import logging
import math
import pickle
import subprocess
import sys
import tempfile
import threading
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from livetrain.configs.errors import BadInput
from livetrain.configs.features.id import IdFeature
from livetrain.trainers.data.read import decode, records
from livetrain.trainers.data.read.carry import ids as ids_of
from livetrain.trainers.data.read.decode import NO_GROUP
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import CorruptGroup, Source
from tests.trainers.data.parquet import SCHEMA, corrupt, make_recipe, make_rows, write_split

ID = IdFeature(type="id", table="movie")

LIMITS = {"history": 3, "tags": 50}


def open_reader(recipe, rank=0, world=1, shuffle=True, groups=True):
    return Reader(Source.open(recipe, "train"), recipe, rank=rank, world=world, shuffle=shuffle, groups=groups)


def parts(batch):
    """Every tensor of a batch."""
    found = [batch.ids.values(), batch.ids.lengths(), batch.dense, batch.labels, batch.weights, batch.rows]
    return [*found, batch.groups]


def same(one, other):
    """Bit for bit, NaN included."""
    return all(
        torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(parts(one), parts(other), strict=True)
    )


def twin(row):
    """What a batch must hold of one row, written the slow way."""
    none = row is None

    def ids(values, limit):
        return [] if none or values is None else [v for v in values if v is not None][-limit:]

    def number(value):
        return math.nan if none or value is None else float(np.float32(value))

    row = row or dict.fromkeys(SCHEMA.names)
    return {
        "user": ids([row["user"]], 1),
        "history": ids(row["history"], LIMITS["history"]),
        "film": ids([row["movie"]], 1),
        "tags": ids(row["tags"], LIMITS["tags"]),
        "dense": [number(row["age"]), number(row["price"])],
        "labels": [0.0, 0.0] if none else [float(row["click"]), row["like"]],
        "weight": 0.0 if none else 1.0,
        "group": int(NO_GROUP) if row["user"] is None else row["user"],
    }


def check(batch, rows):
    """Compare a batch with the rows that its numbers name."""
    numbers = batch.rows.tolist()
    keys = ["user", "history", "film", "tags"]
    expected = [twin(rows[number] if number >= 0 else None) for number in numbers]
    assert batch.ids.keys() == keys
    assert batch.ids.stride() == len(numbers)
    for key, jagged in batch.ids.to_dict().items():
        assert jagged.values().dtype == torch.int64
        lists = [part.tolist() for part in torch.split(jagged.values(), jagged.lengths().tolist())]
        assert lists == [row[key] for row in expected]
    assert batch.ids.length_per_key() == [sum(len(row[key]) for row in expected) for key in keys]
    np.testing.assert_array_equal(batch.dense.numpy(), np.array([row["dense"] for row in expected], np.float32))
    assert batch.labels.tolist() == [row["labels"] for row in expected]
    assert batch.weights.tolist() == [row["weight"] for row in expected]
    assert batch.groups.tolist() == [row["group"] for row in expected]


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("livetrain-")]


@pytest.fixture
def recipe(tmp_path):
    write_split(tmp_path / "train", [make_rows(60)])
    return make_recipe(tmp_path)


@pytest.fixture(scope="module", params=["compiled", "plain"])
def passes(request):
    """How records are made; all other tests take the compiled passes where there is a compiler."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "plain":
            patch.setattr(decode, "passes", records.Plain)
        yield


@settings(max_examples=8, deadline=None)
@given(
    count=st.integers(1, 70),
    files=st.integers(1, 3),
    group=st.integers(1, 30),
    per_shard=st.integers(1, 4),
    window=st.integers(1, 20),
    memory=st.sampled_from([1e-6, 1.0]),
    threads_=st.integers(1, 3),
    shuffle=st.booleans(),
    start=st.integers(0, 6),
)
def test_any_shape(passes, count, files, group, per_shard, window, memory, threads_, shuffle, start):
    """Every row once an epoch with its values; the same rows per step on 1, 2, 3 ranks; resumed bit for bit."""
    rows = make_rows(count, seed=count)
    cuts = [count * n // files for n in range(files + 1)]
    with tempfile.TemporaryDirectory() as folder:
        write_split(Path(folder) / "train", [rows[a:z] for a, z in itertools.pairwise(cuts)], group)
        data = {"batch_size": 6 * per_shard, "shuffle_window": window, "threads": threads_, "prefetch": threads_}
        data["shuffle_gb"] = memory
        recipe = make_recipe(folder, **data)
        steps = []
        for world in (1, 2, 3):
            readers = [open_reader(recipe, rank, world, shuffle) for rank in range(world)]
            batches = [list(reader.batches(1)) for reader in readers]
            assert {len(found) for found in batches} == {readers[0].steps}
            assert all(len(batch.rows) == 6 * per_shard // world for found in batches for batch in found)
            steps.append([sorted(torch.cat([b.rows for b in step]).tolist()) for step in zip(*batches, strict=True)])
        assert steps[0] == steps[1] == steps[2]
        assert sorted(row for step in steps[0] for row in step if row >= 0) == list(range(count))

        whole = list(open_reader(recipe, shuffle=shuffle).batches(1))
        for batch in whole:
            check(batch, rows)
        resumed = list(open_reader(recipe, shuffle=shuffle).batches(1, start, start + 3))
        assert len(resumed) == len(whole[start : start + 3])
        assert all(same(one, other) for one, other in zip(resumed, whole[start:], strict=False))


def test_resume_at_every_step(recipe):
    reader = open_reader(recipe)
    whole = list(reader.batches(0))
    for start in range(reader.steps + 1):
        rest = list(open_reader(recipe).batches(0, start))
        assert len(rest) == reader.steps - start
        assert all(same(one, other) for one, other in zip(rest, whole[start:], strict=True))


@pytest.fixture
def decoded(monkeypatch):
    """What is opened from now on, and how many rows are decoded of each open file."""
    found = []
    stream = Source.stream

    def counted(self, groups, columns, rows, ahead=None):
        found.append([groups[0].path, 0])
        own = found[-1]
        for table in stream(self, groups, columns, rows, ahead):
            own[1] += len(table)
            yield table

    monkeypatch.setattr(Source, "stream", counted)
    monkeypatch.setattr(Source, "read", None)
    return found


def test_a_split_that_fits_is_opened_and_decoded_once(tmp_path, decoded):
    write_split(tmp_path / "train", [make_rows(60), make_rows(36)], 8)
    reader = open_reader(make_recipe(tmp_path, shuffle_window=6, threads=1, prefetch=1))
    for epoch in range(2):
        for _ in reader.batches(epoch):
            pass
    assert sorted(decoded) == sorted(
        [[str(tmp_path / "train" / f"part-{n}.parquet"), rows] for n, rows in enumerate((60, 36))] * 2
    )


def test_a_run_is_opened_once_and_each_shard_begins_in_the_middle_of_one(tmp_path, decoded, monkeypatch):
    """Windows of a few rows each: a shard goes on in its open file, and decodes anew at most what lies before it."""
    monkeypatch.setattr("livetrain.trainers.data.read.reader._RUN", 40)
    write_split(tmp_path / "train", [make_rows(n) for n in (120, 120, 120)], 20)
    reader = open_reader(make_recipe(tmp_path, shuffle_gb=1e-6, threads=1, prefetch=1))
    for _ in reader.batches(0):
        pass
    assert len(decoded) <= 9 + 5, "9 runs, and 6 shards, of which the first one begins where a run does"
    assert sum(rows for _, rows in decoded) <= 360 + 5 * 20


@pytest.mark.parametrize("shuffle", [True, False])
def test_windows_of_long_histories_stay_within_their_memory(tmp_path, shuffle):
    """Counted in Arrow's pool, where windows and what is decoded lie; batches, as torch's, are not in it."""
    rows, ids = 2400, 1000
    lists = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1) * ids, pa.int32()), pa.array(np.arange(rows * ids)))
    flags = pa.array(np.zeros(rows, np.int8))
    (tmp_path / "train").mkdir()
    table = pa.table({"history": lists, "click": flags, "like": flags})
    options = {"row_group_size": 100, "use_dictionary": False, "data_page_size": 2**13}
    pq.write_table(table, tmp_path / "train" / "part-0.parquet", **options)
    features = {"history": {"type": "sequence", "table": "movies", "max_length": 4096}}

    def peak(gigabytes):
        recipe = make_recipe(tmp_path, features=features, group=None, shuffle_gb=gigabytes, prefetch=1)
        before, most, seen = pa.total_allocated_bytes(), 0, []
        for batch in open_reader(recipe, shuffle=shuffle).batches(0):
            most = max(most, pa.total_allocated_bytes() - before)
            seen.append(batch.rows)
        assert sorted(torch.cat(seen).tolist()) == list(range(rows))
        return most

    assert peak(1.0) > rows * ids * 8, "a split that fits is held whole"
    assert peak(0.002) < 6e6, "2 MB of windows, and per shard what is decoded of an open row group, a page and 64 KiB"


def test_epochs_differ_and_evaluation_keeps_file_order(recipe):
    def order(reader, epoch):
        return torch.cat([batch.rows for batch in reader.batches(epoch)]).tolist()

    reader = open_reader(recipe)
    assert order(reader, 0) != order(reader, 1)
    assert order(reader, 0) == order(open_reader(recipe), 0)
    recipe_of_another_seed = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": 2})})
    assert order(reader, 0) != order(open_reader(recipe_of_another_seed), 0)
    steps = [batch.rows.view(6, 2) for batch in open_reader(recipe, shuffle=False).batches(5)]
    assert torch.cat(steps, dim=1).reshape(-1).tolist() == list(range(60))


def test_padding(tmp_path):
    rows = make_rows(13)
    write_split(tmp_path / "train", [rows])
    reader = open_reader(make_recipe(tmp_path), shuffle=False)
    batches = list(reader.batches(0))
    assert reader.steps == 2
    # 13 rows make intervals of 3: the fifth shard has 1 row, the sixth none
    assert batches[0].rows.tolist() == [0, 1, 3, 4, 6, 7, 9, 10, 12, -1, -1, -1]
    assert batches[1].rows.tolist() == [2, -1, 5, -1, 8, -1, 11, -1, -1, -1, -1, -1]
    for batch in batches:
        check(batch, rows)
    assert reader.skipped_rows == 0


def test_cut_lists_are_counted_as_they_are_handed_out(recipe):
    rows = make_rows(60)
    long = {n for n, row in enumerate(rows) if sum(v is not None for v in row["history"] or []) > LIMITS["history"]}
    reader = open_reader(recipe)
    assert reader.cut == {"history": 0, "tags": 0}
    seen = set()
    for batch in reader.batches(0):
        seen |= set(batch.rows.tolist()) & long
        assert reader.cut == {"history": len(seen), "tags": 0}
    assert seen == long
    assert long


def test_without_groups_the_column_is_not_read(tmp_path):
    write_split(tmp_path / "train", [make_rows(20)])
    recipe = make_recipe(tmp_path, features={"age": {"type": "dense"}})
    reader = open_reader(recipe, groups=False)
    assert reader.columns == ["age", "click", "like"]
    batch = next(reader.batches(0))
    assert batch.groups is None
    assert batch.ids.keys() == []
    assert batch.ids.stride() == 12


def test_two_features_of_one_column(tmp_path):
    rows = make_rows(24)
    write_split(tmp_path / "train", [rows])
    feature = {"type": "sequence", "table": "a", "column": "history"}
    recipe = make_recipe(tmp_path, features={"few": feature | {"max_length": 1}, "all": feature | {"table": "b"}})
    for batch in open_reader(recipe).batches(0):
        few, all_ = (batch.ids[key].to_dense() for key in ("few", "all"))
        assert all(torch.equal(short, long[-1:]) for short, long in zip(few, all_, strict=True))
        assert batch.dense.shape == (12, 0)


def test_null_lists_with_values_and_sliced_lists():
    """A null list may own values in memory, and lists may start anywhere in their buffer."""
    lists = pa.ListArray.from_arrays(
        pa.array([0, 2, 5, 6, 9], pa.int32()),
        pa.array([1, 2, 3, 4, 5, 6, 7, None, 9]),
        mask=pa.array([False, True, False, False]),
    )
    for array, values, offsets in (
        (lists, [1, 2, 6, 7, 9], [0, 2, 2, 3, 5]),
        (lists.slice(1), [6, 7, 9], [0, 0, 1, 3]),
        (lists.slice(2), [6, 7, 9], [0, 1, 3]),
        (lists.slice(0, 1), [1, 2], [0, 2]),
    ):
        found = ids_of(ID, array)
        assert [part.tolist() for part in found.cut(0, len(array))] == [values, np.diff(offsets).tolist()]


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint32(), pa.int64()])
def test_ids_of_any_integer_type(kind):
    assert ids_of(ID, pa.array([3, 1], kind)).begins is None
    found = ids_of(ID, pa.array([3, None, 1], kind).slice(1))
    assert [part.tolist() for part in found.cut(0, 2)] == [[1], [0, 1]]
    assert found.values.dtype == np.int64


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_corrupt_group_stops(tmp_path, compression):
    (path,) = write_split(tmp_path / "train", [make_rows(60)], compression=compression, write_page_checksum=True)
    corrupt(path, group=3, column="history")
    reader = open_reader(make_recipe(tmp_path))
    with pytest.raises(
        CorruptGroup, match=r"part-0.parquet, row group 3: its 5 rows do not decode .*on_corrupt: skip"
    ) as caught:
        list(reader.batches(0))
    assert isinstance(caught.value.__cause__, (OSError, pa.ArrowException))
    assert not threads()


def test_corrupt_group_is_skipped_and_counted(tmp_path, caplog):
    rows = make_rows(60)
    (path,) = write_split(tmp_path / "train", [rows])
    sound = list(open_reader(make_recipe(tmp_path)).batches(0))
    corrupt(path, group=3, column="history")
    lost = set(range(15, 20))
    reader = open_reader(make_recipe(tmp_path, on_corrupt="skip"))
    with caplog.at_level(logging.WARNING):
        batches = list(reader.batches(0))
        list(reader.batches(1))
    for batch, whole in zip(batches, sound, strict=True):
        check(batch, rows)
        assert batch.rows.tolist() == [-1 if row in lost else row for row in whole.rows.tolist()]
    assert reader.skipped_rows == 10
    assert [record.message.count("row group 3") for record in caplog.records] == [1]


def test_a_file_that_is_gone_is_no_corrupt_group(tmp_path):
    (path,) = write_split(tmp_path / "train", [make_rows(60)])
    reader = open_reader(make_recipe(tmp_path, on_corrupt="skip"))
    path.unlink()
    with pytest.raises(BadInput, match="part-0.parquet, row group .*: the file cannot be read"):
        list(reader.batches(0))


def test_closing_early_ends_the_threads(recipe):
    batches = open_reader(recipe).batches(0)
    assert not threads()
    next(batches)
    assert threads()
    batches.close()
    assert not threads()


def test_dropping_ends_the_threads(recipe):
    batches = open_reader(recipe).batches(0)
    next(batches)
    cycle = [batches]
    cycle.append(cycle)
    gone = weakref.ref(batches)
    del batches, cycle
    gc.collect()
    assert gone() is None
    assert not threads()


@pytest.mark.slow
def test_an_unclosed_reader_does_not_hold_up_the_exit(recipe):
    program = (
        "import pickle, sys; from livetrain.trainers.data.read.reader import Reader\n"
        "from livetrain.trainers.data.read.source import Source\n"
        "recipe = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "reader = Reader(Source.open(recipe, 'train'), recipe, rank=0, world=1, shuffle=True)\n"
        "batches = reader.batches(0); print(len(next(batches).rows))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, pickle.dumps(recipe).hex()], capture_output=True, text=True, timeout=120
    )
    assert (run.returncode, run.stdout) == (0, "12\n"), run.stderr


def test_two_passes_at_once(recipe):
    reader = open_reader(recipe)
    pairs = list(zip(reader.batches(0), reader.batches(0), strict=True))
    assert len(pairs) == reader.steps
    assert all(same(one, other) for one, other in pairs)


def test_shards_must_divide_among_the_workers(recipe):
    with pytest.raises(BadInput, match="6 shards do not divide among 4 workers"):
        open_reader(recipe, world=4)
