"""Splits in an object store behind a bad network: every row arrives, once, by few requests."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import fs

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.read import distant
from livetrain.trainers.data.read.files import read_footer
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import CorruptGroup, Source
from livetrain.trainers.runtime import reach
from tests.trainers.data.parquet import SCHEMA, corrupt, make_recipe, make_rows, write_split


def uploaded(folder, bucket: str, name: str) -> str:
    """Copy a folder into a bucket and return its URI there."""
    path, query = bucket.split("?")
    filesystem, root = fs.FileSystem.from_uri(bucket)
    for file in folder.rglob("*.parquet"):
        with filesystem.open_output_stream(f"{root}/{name}/{file.relative_to(folder)}") as out:
            out.write(file.read_bytes())
    return f"{path}/{name}?{query}"


def batches(path) -> list:
    recipe = make_recipe(path, group=None)
    reader = Reader(Source.open(recipe, "train"), recipe, rank=0, world=1, shuffle=True)
    return list(reader.batches(0))


@pytest.mark.parametrize("how", [{"write_page_checksum": True}, {"compression": "none", "use_dictionary": False}])
def test_a_bad_network_changes_no_batch(tmp_path, bucket, network, monkeypatch, how):
    monkeypatch.setattr(reach, "_FIRST_S", 0.001)
    write_split(tmp_path / "train", [make_rows(60, seed) for seed in range(4)], 20, **how)
    there = uploaded(tmp_path, bucket, "bad")
    expected = batches(tmp_path)
    network.rate, network.seed = 0.4, 7
    found = batches(there)
    assert {*network.faults} <= {*network.counted}
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.ids.values(), other.ids.values())
        assert torch.equal(one.dense.nan_to_num(-1), other.dense.nan_to_num(-1))
    rows = torch.cat([batch.rows for batch in found])
    assert sorted(rows[rows >= 0].tolist()) == list(range(240))


def test_requests_of_a_file_are_few(tmp_path, bucket, network):
    write_split(tmp_path / "train", [make_rows(100)], 20)
    source = Source.open(make_recipe(uploaded(tmp_path, bucket, "few")), "train")
    network.counted.clear()
    for group in source.groups:
        source.read(group, source.columns)
    assert network.counted == {"HEAD": 1, "GET": 1 + len(source.groups)}  # the footer, then each group at once
    network.counted.clear()
    read_footer(source.filesystem, source.groups[0].path)
    assert network.counted == {"HEAD": 1, "GET": 1}


def test_row_groups_are_fetched_ahead_and_once_small_ones_together(tmp_path, bucket, network, monkeypatch):
    monkeypatch.setattr(distant, "_STRETCH", 60)
    write_split(tmp_path / "train", [make_rows(100, seed) for seed in range(2)], 20)
    recipe = make_recipe(uploaded(tmp_path, bucket, "ahead"), group=None, threads=1, shards=2, shuffle_window=50)
    reader = Reader(Source.open(recipe, "train"), recipe, rank=0, world=1, shuffle=True)
    network.counted.clear()
    rows = torch.cat([batch.rows for batch in reader.batches(0)])
    assert sorted(rows[rows >= 0].tolist()) == list(range(200))
    # Of each file the footer, and its five row groups in two stretches, where no window's end cuts them: four do.
    assert network.counted["GET"] - 2 <= 4 + 4 < len(reader._rows.sizes)


def test_what_is_asked_for_twice_comes_once_and_is_read_twice(tmp_path, bucket, network):
    write_split(tmp_path / "train", [make_rows(100)], 20)
    source = Source.open(make_recipe(uploaded(tmp_path, bucket, "twice")), "train")
    with source.ahead(["user"]) as ahead:
        ahead.ask(source.groups)
        ahead.ask([source.groups[1]])
        network.counted.clear()
        tables = [
            ahead.file(source.groups[0].path, number).read_row_group(number, columns=["user"]) for number in (1, 0, 1)
        ]
        assert tables[0].equals(tables[2])
        assert not tables[0].equals(tables[1])
        assert network.counted["GET"] <= 2  # the footer, and all row groups
        ahead.file(source.groups[0].path, 1)  # nobody asked for it, so it is fetched now
        assert network.counted["GET"] <= 3


def test_bytes_that_do_not_decode_are_a_corrupt_group_at_once(tmp_path, bucket, network):
    (path,) = write_split(tmp_path / "train", [make_rows(40)], 20)
    corrupt(path, 1, "user")
    source = Source.open(make_recipe(uploaded(tmp_path, bucket, "corrupt")), "train")
    assert source.read(source.groups[0], ["user"]).num_rows == 20
    with pytest.raises(CorruptGroup, match="row group 1: its 20 rows do not decode"):
        source.read(source.groups[1], ["user"])


@pytest.mark.some(1)
def test_what_is_out_of_reach_is_one_sentence_and_no_corrupt_group(tmp_path, bucket, network, monkeypatch):
    monkeypatch.setattr(reach, "DEADLINE_S", 0.0)
    write_split(tmp_path / "train", [make_rows(40)], 20)
    source = pickle.loads(pickle.dumps(Source.open(make_recipe(uploaded(tmp_path, bucket, "away")), "train")))
    source.read(source.groups[0], ["user"])
    network.rate, network.faults = 1.0, ("error",)
    with pytest.raises(BadInput, match="row group 1: the file cannot be read .*; restore it or the access to it") as e:
        source.read(source.groups[1], ["user"])
    assert not isinstance(e.value, CorruptGroup)


def test_a_file_that_is_gone_is_named(tmp_path, bucket):
    write_split(tmp_path / "train", [make_rows(40)], 20)
    source = Source.open(make_recipe(uploaded(tmp_path, bucket, "gone")), "train")
    source.filesystem.delete_file(source.groups[0].path)
    with pytest.raises(BadInput, match="part-0.parquet, row group 0: the file cannot be read") as error:
        source.read(source.groups[0], ["user"])
    assert not isinstance(error.value, CorruptGroup)


def test_pieces_are_read_as_the_file_that_they_are_of():
    whole = bytes(range(256)) * 4
    pieces = distant.Pieces(len(whole))
    for start, stop in ((10, 300), (300, 500), (700, 1024)):
        pieces.add(start, whole[start:stop])
    for start, count in ((10, 5), (250, 100), (290, 10), (300, 200), (480, 100), (700, 324), (1000, 100), (0, 4)):
        pieces.seek(start)
        there = min(
            next((stop for first, stop in ((10, 500), (700, 1024)) if first <= start < stop), start), start + count
        )
        assert bytes(pieces.read(count)) == whole[start:there]
        assert pieces.tell() == there
    assert pieces.seek(0, 2) == 1024
    assert bytes(pieces.read()) == b""


def test_spans_join_what_lies_together(tmp_path, monkeypatch):
    monkeypatch.setattr(distant, "_HOLE", 1000)
    columns = {f"c{n}": np.random.default_rng(n).integers(0, 2**60, 500) for n in range(10)}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet", compression="none", use_dictionary=False)
    size = (tmp_path / "x.parquet").stat().st_size
    group = pq.read_metadata(tmp_path / "x.parquet").row_group(0)
    assert len(list(distant.spans([group], columns, size))) == 1
    assert len(list(distant.spans([group], ["c1", "c2", "c5"], size))) == 2
    assert list(distant.spans([group], ["c1"], size)) == list(distant.spans([group], ["c1", "d"], size))
    assert list(distant.spans([group], [], size)) == []
    (start, stop) = next(distant.spans([group], ["c9"], size))
    assert 4000 <= stop - start <= 4600


def test_only_the_named_columns_are_fetched(tmp_path):
    (path,) = write_split(tmp_path / "train", [make_rows(50)], 20, schema=SCHEMA)
    far = distant.Distant(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()))
    names = ["user", "history", "like"]
    for group in range(3):
        found = far.read("train/part-0.parquet", group, names)
        assert found.equals(pq.ParquetFile(path).read_row_group(group, columns=names))
