"""Tables that begin with a file's vectors: the rows of their ids, on any number of ranks, once, and told before."""

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from livetrain.configs.errors import BadInput
from livetrain.configs.load import dump_recipe
from livetrain.modules.model import Model
from livetrain.modules.tables.hashing import row
from livetrain.trainers.data.write.ids import string_ids
from livetrain.trainers.export.export import plain_model
from livetrain.trainers.runtime import ranks, run_folder, runlog
from livetrain.trainers.train import preflight, pretrained
from livetrain.trainers.train.sharding import shard
from tests import samples, twins
from tests.modules.features import test_kinds  # noqa: F401  (its kinds)
from tests.trainers.train import test_loop as loop
from tests.trainers.train import test_sharding as sharding

CPU = torch.device("cpu")
SHARDINGS = ["row_wise", "table_wise", "data_parallel"]


def write(file: Path, ids: pa.Array, vectors: np.ndarray, kind: pa.DataType | None = None) -> Path:
    lists = pa.array(list(vectors.astype(np.float32)), kind or pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": ids, "vector": lists}), file, row_group_size=50)
    return file


def filled(made_for) -> dict[str, torch.Tensor]:
    """The tables as a run begins with them, whole."""
    sharded = shard(made_for, CPU)
    pretrained.fill(sharded, made_for)
    return sharding.whole({k.split(".")[-2]: v for k, v in sharded.model.state_dict().items() if "tables." in k})


def wanted(made_for, table: str, ids: np.ndarray, vectors: np.ndarray) -> torch.Tensor:
    """One row after the other: the first id of a row counts; the rest is as the seed says."""
    weight = Model(made_for).table_weights()[table].detach().clone()
    seen = set()
    for number, vector in zip(ids.tolist(), vectors, strict=True):
        place = int(row(torch.tensor([number]), len(weight), made_for.tables[table].hash == "modulo"))
        if place not in seen:
            weight[place] = torch.from_numpy(vector.astype(np.float32))
        seen.add(place)
    return weight


@pytest.fixture(scope="module")
def vectors() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.integers(-(2**62), 2**62, 120), rng.normal(size=(120, 8))


def recipe(file: Path, **changes):
    return twins.recipe(tables__user__rows=200, tables__user__initial={"file": str(file)}, **changes)


BAG = {"features__liked": {"type": "bag", "table": "user"}}  # which pools the table where its rows lie


@pytest.mark.parametrize(
    ("how", "more"),
    [*((how, {}) for how in SHARDINGS), ("row_wise", BAG), ("table_wise", BAG | {"tables__user__frozen": True})],
)
def test_every_sharding_on_one_rank_and_on_two_begins_with_the_same_rows(two_ranks, vectors, tmp_path, how, more):
    file = write(tmp_path / "rows.parquet", pa.array(vectors[0]), vectors[1])
    made_for = recipe(file, tables__user__sharding=how, **more)
    expected = wanted(made_for, "user", *vectors)
    assert (expected != Model(made_for).table_weights()["user"]).any(1).sum() < 120
    with ranks.alone(cuda=False):
        assert torch.equal(filled(made_for)["user"], expected)
    assert torch.equal(two_ranks.run(filled, made_for)[0]["user"], expected)


@pytest.mark.parametrize(
    "forms",
    [
        (pa.int32(), pa.list_(pa.float64())),
        (pa.int64(), pa.list_(pa.float32(), 8)),
        (pa.int64(), pa.large_list(pa.float16())),
        (pa.string(), pa.list_(pa.float32())),
        (pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.float32())),
        (pa.large_string(), pa.list_(pa.float32())),
    ],
    ids=str,
)
def test_a_file_may_store_ids_and_vectors_in_many_types(vectors, tmp_path, forms):
    id_type, vector_type = forms
    numbers = np.arange(120) % 90  # some twice
    text = pa.types.is_dictionary(id_type) or not pa.types.is_integer(id_type)
    words = pa.array([f"user-{n}" for n in numbers]) if text else pa.array(numbers)
    values = vectors[1].astype(np.float16)
    file = tmp_path / "rows.parquet"
    lists = pa.array(list(values), pa.list_(pa.float16())).cast(vector_type)
    pq.write_table(pa.table({"id": words.cast(id_type), "vector": lists}), file, row_group_size=50)
    made_for = recipe(file)
    ids = string_ids(words).to_numpy() if text else numbers
    with ranks.alone(cuda=False):
        assert torch.equal(filled(made_for)["user"], wanted(made_for, "user", ids, values))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return samples.write(tmp_path_factory.mktemp("samples"), rows=1000)


def small(data: Path, file: Path, **changes):
    return {"tables__user__initial": {"file": str(file)}, "train__epochs": 1, **changes}


def test_frozen_vectors_stay_and_trained_ones_move_and_are_exported(data, tmp_path):
    rows = np.random.default_rng(0).normal(size=(90, 8)).astype(np.float32)
    file = write(tmp_path / "rows.parquet", pa.array(np.arange(90)), rows)
    for frozen in (True, False):
        made = loop.job(data, tmp_path / str(frozen), **small(data, file, tables__user__frozen=frozen))
        result = loop.train(made)["result"]
        model = plain_model(made.recipe, run_folder.checkpoint(made.run, result["best_step"]))
        weight = model.tables["dim8"].embeddings["user"].weight.detach()[:90]
        assert torch.equal(weight, torch.from_numpy(rows)) == frozen
        assert (weight - torch.from_numpy(rows)).abs().max() < 2
    notes = []
    preflight.check(samples.recipe(data, **small(data, file)), notes.append)
    (told,) = [text for text in notes if text.startswith("tables.user begins")]
    assert re.fullmatch(
        r"tables.user begins with 90 vectors, 0 of which find their row taken by an earlier one; of 100 ids of train "
        r"that were looked at 10 have none \(.*% of the lookups\)",
        told,
    )


def test_strings_are_compared_with_the_files_strings(data, tmp_path):
    strings = tmp_path / "data"
    shutil.copytree(data, strings)
    for part in strings.glob("*/*.parquet"):
        table = pq.read_table(part)
        words = table["user"].cast(pa.string()).combine_chunks().dictionary_encode()
        pq.write_table(table.set_column(table.column_names.index("user"), "user", words), part)
    file = write(tmp_path / "rows.parquet", pa.array(list(map(str, range(90)))), np.ones((90, 8)))
    notes = []
    preflight.check(samples.recipe(strings, **small(strings, file), tables__user__hash="mix"), notes.append)
    assert any("of 100 ids of train that were looked at 10 have none" in text for text in notes)


def test_a_run_that_goes_on_reads_no_file(data, tmp_path):
    file = write(tmp_path / "rows.parquet", pa.array(np.arange(90)), np.ones((90, 8)))
    changes = small(data, file, train__checkpoint_every=5)
    whole = loop.train(loop.job(data, tmp_path / "whole", **changes))
    killed = loop.job(data, tmp_path / "killed", **changes)
    loop.train(killed, kill_at=7)
    file.unlink()
    assert loop.same(loop.train(killed), whole)
    assert any(line.get("text", "").startswith("resumed at step") for line in runlog.read(tmp_path / "killed"))


def test_a_warm_start_comes_before_the_file(data, tmp_path):
    first = loop.job(
        data, tmp_path / "first", **small(data, write(tmp_path / "a.parquet", pa.array([1]), np.ones((1, 8))))
    )
    (tmp_path / "first" / "config.yaml").write_text(dump_recipe(first.recipe))
    loop.train(first)
    file = write(tmp_path / "b.parquet", pa.array([1]), np.full((1, 8), 50.0))
    for section, begins in (({}, False), ({"except": ["tables.user"]}, True)):
        start = {"run": str(tmp_path / "first"), **section}
        made = loop.job(data, tmp_path / str(begins), **small(data, file, train__warm_start=start))
        found = loop.train(made)["tables"]["user"]
        assert bool((found[1] > 40).all()) == begins


IDS, ONES = pa.array(np.arange(3)), np.ones((3, 8))
NULL = pa.table({"id": IDS, "vector": pa.array([[1.0] * 8, None, [1.0] * 8])})
RAGGED = pa.table({"id": IDS, "vector": pa.array([[1.0] * 8, [1.0] * 7, [1.0] * 8])})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, r"tables.user.initial.file: .*rows.parquet"),
        (pa.table({"key": IDS, "vector": NULL["vector"]}), r"initial.id: .* has no column 'id' \(known: key, vector\)"),
        (
            pa.table({"id": pa.array([0.5, 1, 2]), "vector": NULL["vector"]}),
            r"'id' of .* is double; write int64",
        ),
        (
            pa.table({"id": IDS, "vector": IDS}),
            r"initial.vector: column 'vector' of .* is int64; write lists of",
        ),
        (
            pa.table({"id": IDS, "vector": pa.array([[1.0] * 4] * 3, pa.list_(pa.float32(), 4))}),
            r"holds vectors of 4 numbers, and tables.user.dim is 8; make the two equal",
        ),
        (
            pa.table({"id": pa.array([2**40 + 1] * 3), "vector": RAGGED["vector"]}),
            "has the vector of none of 100 ids of",
        ),
        (RAGGED, "holds vectors of 7 numbers, and tables.user.dim is 8; make the two equal"),
        (NULL, "column 'vector' of .* has nulls; leave those rows out"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_starts(data, tmp_path, table, message):
    if table is not None:
        pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(BadInput, match=message):
        preflight.check(samples.recipe(data, **small(data, tmp_path / "rows.parquet")), lambda text: None)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (NULL, "column 'vector' of .* has nulls; leave those rows out"),
        (RAGGED, "holds vectors of 7 numbers, and tables.user.dim is 8"),
        (pa.table({"id": pa.array([1, None, 3]), "vector": pa.array([[1.0] * 8] * 3)}), "column 'id' of .* has nulls"),
        (
            pa.table({"id": IDS, "vector": pa.array([[1.0] * 8, [1.0] * 7 + [float("nan")], [1.0] * 8])}),
            "has a number that is null or not finite; mend those rows or leave them out",
        ),
    ],
)
def test_what_shows_while_reading_ends_the_run_before_its_first_step(tmp_path, table, message):
    pq.write_table(table, tmp_path / "rows.parquet")
    with ranks.alone(cuda=False), pytest.raises(BadInput, match=message):
        filled(recipe(tmp_path / "rows.parquet"))


def test_ids_that_the_model_makes_have_no_file(data):
    with pytest.raises(ValueError, match="makes its ids itself, so no file holds their vectors"):
        samples.recipe(
            data,
            features__sign={"type": "test_sign", "table": "user"},
            tables__user__initial={"file": "rows.parquet"},
        )
