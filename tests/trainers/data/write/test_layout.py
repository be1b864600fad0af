import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.write import layout


def table(start, stop):
    rows = range(start, stop)
    offsets = [0, *(2 * (n + 1) for n in range(len(rows)))]
    return pa.table(
        {
            "id": pa.array(rows, pa.int64()),
            "history": layout.lists(offsets, [value for n in rows for value in (n, -n)], pa.int64()),
        }
    )


def groups(folder):
    footer = pq.read_metadata(folder / "train" / "part-00000.parquet")
    return [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_split_reads_back_in_row_groups_of_the_chosen_size(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "ROW_GROUP", 100)
    layout.begin(tmp_path)
    pieces = [table(start, stop) for start, stop in ((0, 70), (70, 250), (250, 251), (251, 330))]
    assert layout.write_split(tmp_path, "train", pieces[0].schema, pieces) == 330
    assert groups(tmp_path) == [100, 100, 100, 30]
    found = pq.read_table(tmp_path / "train" / "part-00000.parquet")
    assert found.schema.field("history").type.value_type == pa.int64()
    assert found.to_pylist() == pa.concat_tables(pieces).to_pylist()


def test_rows_with_long_lists_make_smaller_row_groups(tmp_path):
    lists = layout.lists(np.arange(401) * 10_000, np.zeros(4_000_000, np.int64), pa.int64())
    layout.begin(tmp_path)
    made = pa.table({"history": lists})
    layout.write_split(tmp_path, "train", made.schema, [made.slice(0, 150), made.slice(150)])
    assert groups(tmp_path) == [104, 104, 104, 88], "2 ** 23 bytes hold 104 rows of 10,000 ids"


def test_an_empty_split_is_a_file_with_its_schema(tmp_path):
    layout.begin(tmp_path)
    assert layout.write_split(tmp_path, "test", table(0, 1).schema, []) == 0
    assert pq.read_table(tmp_path / "test" / "part-00000.parquet").column_names == ["id", "history"]


def test_the_folder_is_finished_only_by_its_manifest(tmp_path):
    layout.begin(tmp_path)
    layout.write_split(tmp_path, "train", table(0, 3).schema, [table(0, 3)])
    assert layout.finished(tmp_path) is None
    assert layout.finish(tmp_path, {"protocol": "é"}) == {"protocol": "é"}
    assert layout.finished(tmp_path) == {"protocol": "é"}
    assert files(tmp_path) == ["dataset.json", "train/part-00000.parquet"]
    (tmp_path / "dataset.json").write_text("[1]")
    with pytest.raises(BadInput, match="dataset.json holds no mapping of names to values"):
        layout.finished(tmp_path)


def test_a_writer_that_dies_leaves_no_parquet_name_and_the_next_one_starts_afresh(tmp_path):
    def pieces():
        yield table(0, 5)
        raise KeyboardInterrupt

    layout.begin(tmp_path)
    layout.write_split(tmp_path, "valid", table(0, 1).schema, [table(0, 1)])
    with pytest.raises(KeyboardInterrupt):
        layout.write_split(tmp_path, "train", table(0, 1).schema, pieces())
    assert not list((tmp_path / "train").glob("*.parquet"))
    assert layout.finished(tmp_path) is None
    layout.begin(tmp_path)
    assert files(tmp_path) == ["dataset.json.unfinished"]


def test_a_folder_that_holds_something_else_is_refused_and_kept(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "mine.parquet").write_text("precious")
    with pytest.raises(BadInput, match="not empty"):
        layout.begin(tmp_path)
    assert files(tmp_path) == ["train/mine.parquet"]


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(BadInput, match="out cannot be written"):
        layout.begin(tmp_path / "out")


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"protocol": 1})[:-3])
    with pytest.raises(BadInput, match="dataset.json cannot be read"):
        layout.finished(tmp_path)
