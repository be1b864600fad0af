"""Data are looked at once: what is kept beside them says what a fresh look would, or is not believed."""

import importlib
import os
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.checks.dataset import open_dataset
from livetrain.trainers.data.read import index, measure, statistics
from livetrain.trainers.data.read.files import files_below, split_files
from livetrain.trainers.data.read.sidecar import NAME, Sidecar
from livetrain.trainers.data.read.source import CorruptGroup, Source
from livetrain.trainers.data.read.spread import Looking, in_threads
from livetrain.trainers.data.read.statistics import scan
from tests.trainers.data.parquet import SCHEMA, corrupt, make_recipe, make_rows, write_split

DAYS = {
    "train": "2025-05-01..2025-05-03",
    "valid": "2025-05-04..2025-05-04",
    "test": "2025-05-05..2025-05-05",
}
FEATURES = {
    "user": {"type": "id", "table": "users"},
    "age": {"type": "dense"},
    "cost": {"type": "bucket", "column": "price", "table": "costs", "quantiles": 8},
}


@pytest.fixture
def days(tmp_path):
    """Three days of two files each, and a recipe that trains on them."""
    for day in (1, 2, 3):
        rows = [make_rows(40, seed=10 * day + part) for part in (0, 1)]
        write_split(tmp_path / f"date=2025-05-0{day}", rows, group=7)
    return tmp_path


def recipe(folder, features=FEATURES, **data):
    return make_recipe(folder, features=features, days=DAYS, **data)


@pytest.fixture
def looks(monkeypatch):
    """What is looked at: the paths of footers, and the columns that are read of row groups."""
    found = {"footers": [], "columns": []}
    footer, read = index.read_footer, Source.read
    monkeypatch.setattr(
        index, "read_footer", lambda system, path: found["footers"].append(path) or footer(system, path)
    )
    monkeypatch.setattr(
        Source, "read", lambda self, group, columns: found["columns"].append(columns) or read(self, group, columns)
    )
    return found


def forget(folder):
    for path in folder.rglob(f"{NAME}/*"):
        path.unlink()


def looked(made):
    found = Source.open(made, "train")
    return found, scan(found, made)


def test_the_second_look_opens_nothing(days, looks):
    first, told = looked(recipe(days))
    assert len(looks["footers"]) == 6
    assert len(looks["columns"]) == len(first.groups) == 36
    for part in looks.values():
        part.clear()
    again, same = looked(recipe(days, shuffle_window=8))
    assert looks == {"footers": [], "columns": []}
    assert same == told
    assert again.groups == first.groups
    assert again.schema == first.schema
    assert [again.nulls(name) for name in SCHEMA.names] == [first.nulls(name) for name in SCHEMA.names]
    assert [again.id_range(name) for name in SCHEMA.names] == [first.id_range(name) for name in SCHEMA.names]


def test_a_new_feature_costs_its_own_columns_and_a_new_day_its_own_rows(days, looks):
    looked(recipe(days, {name: FEATURES[name] for name in ("user", "age")}))
    looks["columns"].clear()
    found, told = looked(recipe(days))
    assert looks["columns"] == [["price"]] * len(found.groups)
    looks["columns"].clear()
    write_split(days / "date=2025-05-02", [make_rows(9, seed=5)], group=9)
    _, more = looked(recipe(days))
    assert {tuple(columns) for columns in looks["columns"]} == {("age", "price", "user", "click", "like")}
    assert len(looks["columns"]) == 7  # the new group, and six of the file that stayed
    assert more.rows == told.rows - 40 + 9
    forget(days)
    assert looked(recipe(days))[1] == more


def test_what_is_told_is_what_all_rows_say(days):
    """Against plain NumPy over the whole split."""
    _, told = looked(recipe(days))
    made = recipe(days)
    table = pa.concat_tables([pq.read_table(path, partitioning=None) for path in split_files(made, "train")[2]])
    ages = table["age"].drop_null().to_numpy()
    prices = table["price"].drop_null().to_numpy().astype(np.float32)
    assert told.rows == len(table) == 240
    assert told.mean["age"] == [pytest.approx(ages.mean(), rel=1e-12)]
    assert told.std["age"] == [pytest.approx(ages.std(), rel=1e-12)]
    assert told.rate == {"click": table["click"].to_numpy().mean(), "liked": table["like"].to_numpy().mean()}
    cuts = np.quantile(prices, np.arange(1, 8) / 8, method="inverted_cdf")
    assert told.quantiles["cost"] == cuts.tolist()


def test_quantiles_are_of_rows_that_no_other_partition_decides(days, monkeypatch):
    """The sample of all days is the least keys of each day's own, whichever day comes first."""
    monkeypatch.setattr("livetrain.trainers.data.read.measure.SAMPLE", 50)
    made = recipe(days)
    found, told = looked(made)
    keys, values = [], []
    for part in found.partitions:
        (answer,) = [
            kept for name in names(part.sidecar) if "keys" in (kept := part.sidecar.read(name)[1]) and len(kept["keys"])
        ]
        assert len(answer["keys"]) == 50
        keys.append(answer["keys"])
        values.append(answer["values"])
    least = np.concatenate(values)[np.argsort(np.concatenate(keys))[:50]]
    assert told.quantiles["cost"] == np.quantile(least, np.arange(1, 8) / 8, method="inverted_cdf").tolist()


def names(sidecar):
    return [path.stem for path in sorted(Path(sidecar.places[0][1]).glob("answer-*"))]


def test_stretches_are_merged_as_they_are_cut(days, monkeypatch):
    """One thread or three, at once or one by one: the same to the last digit."""
    monkeypatch.setattr(statistics, "_STRETCH", 20)
    made = recipe(days)
    _, told = looked(made)
    forget(days)
    one_by_one = Looking(spread=lambda work, parts, threads=None: (work(part) for part in parts))
    assert scan(Source.open(made, "train", one_by_one), made, one_by_one) == told


@pytest.mark.parametrize("how", ["touched", "cut", "flipped", "of another name", "of another version", "no archive"])
def test_what_may_be_wrong_is_not_believed(days, looks, how, monkeypatch):
    first, told = looked(recipe(days))
    kept = [path for path in sorted((days / "date=2025-05-02" / NAME).iterdir()) if path.suffix == ".npz"]
    assert len(kept) == 1 + 5  # the index, and answers on two tasks, two features and the ids of one
    if how == "touched":  # another mtime, all else alike
        path = days / "date=2025-05-02" / "part-1.parquet"
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    if how == "of another version":
        monkeypatch.setattr("livetrain.trainers.data.read.sidecar._FORMAT", 0)
    for path in kept:
        content = path.read_bytes()
        if how == "cut":
            path.write_bytes(content[: len(content) // 2])
        if how == "flipped":
            middle = len(content) // 3
            path.write_bytes(content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :])
        if how == "of another name":  # which an archive's own checksums leave out
            path.write_bytes(content.replace(b"a_", b"b_"))
        if how == "no archive":
            path.write_bytes(b"")
    for part in looks.values():
        part.clear()
    again, same = looked(recipe(days))
    assert same == told
    assert again.groups == first.groups
    days_anew = 3 if how == "of another version" else 1
    assert len(looks["footers"]) == 2 * days_anew
    assert len(looks["columns"]) == 12 * days_anew
    for part in looks.values():
        part.clear()
    looked(recipe(days))  # and it has been mended
    assert looks == {"footers": [], "columns": []}


def test_nothing_is_kept_where_a_change_might_not_show(tmp_path):
    """Of a file system that knows times to the second only, a file of this second may change in it."""
    (path,) = write_split(tmp_path / "train", [make_rows(5)])
    now = int(path.stat().st_mtime)
    os.utime(path, (now, now))
    Source.open(make_recipe(tmp_path), "train")
    assert not (tmp_path / "train" / NAME).exists()
    os.utime(path, (now - 60, now - 60))
    Source.open(make_recipe(tmp_path), "train")
    assert (tmp_path / "train" / NAME / "index.npz").exists()


def test_data_that_cannot_be_written_to(days, looks, tmp_path):
    """What is learned of them is kept elsewhere; of those that can, beside them."""
    (days / "date=2025-05-02" / NAME).write_text("a file in the folder's place")
    looking = Looking(spare=tmp_path / "runs" / NAME)
    made = recipe(days)
    told = scan(Source.open(made, "train", looking), made, looking)
    assert len(list((tmp_path / "runs" / NAME).glob("*/*.npz"))) == 6
    for part in looks.values():
        part.clear()
    assert scan(Source.open(made, "train", looking), made, looking) == told
    assert looks == {"footers": [], "columns": []}
    looked(made)  # without such a place it is looked at again, and nothing fails
    assert len(looks["footers"]) == 2


def test_what_is_kept_is_nothing_to_read(days):
    """No lister takes it for data."""
    looked(recipe(days))
    assert len(split_files(recipe(days), "train")[2]) == 6
    assert len(files_below(fs.LocalFileSystem(), str(days), "evaluate.catalogue")) == 6
    assert sum(part.rows for part in open_dataset(days).parts) == 240


def test_of_a_partition_with_a_corrupt_group_nothing_is_answered(days, caplog):
    corrupt(days / "date=2025-05-02" / "part-0.parquet", group=1, column="age")
    skipping = recipe(days, on_corrupt="skip")
    for _ in range(2):  # it is told each time
        caplog.clear()
        assert looked(skipping)[1].rows == 233
        assert "row group 1" in caplog.text
    with pytest.raises(CorruptGroup, match="row group 1"):
        looked(recipe(days))


def test_a_bad_label_is_found_each_time(days):
    rows = [row | {"click": 3} for row in make_rows(3)]
    write_split(days / "date=2025-05-03", [rows])
    for _ in range(2):
        with pytest.raises(BadInput, match=r"part-0.parquet, row group 0, row 0: tasks.click.label 'click' holds 3"):
            looked(recipe(days))


def test_what_comes_of_a_class_without_a_file_is_not_kept(days, looks, monkeypatch):
    monkeypatch.setattr("livetrain.trainers.data.read.labels.written", lambda kind: None)
    looked(recipe(days))
    looks["columns"].clear()
    looked(recipe(days))
    assert len(looks["columns"]) == 36
    assert {tuple(columns) for columns in looks["columns"]} <= {("click", "like"), ("like",)}


def test_samples_of_kept_answers_are_not_held_together(days, monkeypatch):
    """The driver holds one sample per feature, and not one per feature and day."""
    made = recipe(days)
    _, told = looked(made)
    held = []
    merged = statistics._merged
    monkeypatch.setattr(statistics, "_merged", lambda one, other: held.append(other) or merged(one, other))
    assert looked(made)[1] == told
    assert len(held) == 3 + 1  # days, and the samples of all of them
    sizes = [len(found["features.cost"].drawn.keys) for found in held]
    assert sizes[:3] == [0, 0, 0]
    assert sizes[3] > 200


@pytest.mark.parametrize("other", ["helper.py", "inner/deep.py"])
def test_a_users_kind_is_as_its_whole_package_is(tmp_path, monkeypatch, other):
    package = tmp_path / f"measured_{other[:5]}"
    (package / "inner").mkdir(parents=True)
    for name in ("__init__.py", "kind.py", "helper.py", "inner/__init__.py", "inner/deep.py"):
        (package / name).write_text("class Kind:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    kinds = [importlib.import_module(f"{package.name}{module}").Kind for module in ("", ".kind", ".inner.deep")]
    before = [measure.written(kind) for kind in kinds]
    assert None not in before
    (package / other).write_text("class Kind:\n    of = 2\n")
    assert not {measure.written(kind) for kind in kinds} & {*before}


def test_readers_at_once_keep_something_whole(tmp_path):
    sidecar = Sidecar(((fs.LocalFileSystem(), str(tmp_path / NAME)),), "key")
    wrong = []

    def work(number):
        for _ in range(30):
            sidecar.write("index", {"number": number}, {"part": np.full(2000, number)})
            told, arrays = sidecar.read("index")
            if (arrays["part"] != told["number"]).any():
                wrong.append(told)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert [path.name for path in (tmp_path / NAME).iterdir()] == ["index.npz"]


def test_threads_begin_few_parts_and_end_at_an_error():
    begun, taken = [], []

    def parts():
        for number in range(100):
            taken.append(number)
            yield number

    def work(number):
        begun.append(number)
        if number == 5:
            raise BadInput("the sixth")
        return number

    with pytest.raises(BadInput, match="the sixth"):
        list(in_threads(work, parts(), threads=2))
    assert max(taken) <= 5 + 2 * 2
