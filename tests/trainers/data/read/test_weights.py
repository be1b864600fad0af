"""Bags, with weights: reader (compiled and NumPy's), training batch, scorer, predictor agree on any legal columns."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.modules.model import Model
from livetrain.modules.serving.scorer import Scorer
from livetrain.trainers.data.read import decode
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.records import Plain, passes
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.statistics import scan
from livetrain.trainers.export.prediction import chunks
from livetrain.trainers.export.rows import inputs_of

LIMIT = 3


def recipe(folder, pooling: str = "mean", **bag) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"path": str(folder), "batch_size": 8, "shards": 4, "shuffle_window": 8},
            "features": {
                "number": {"type": "dense"},
                "tags": {"type": "bag", "table": "tag", "pooling": pooling, "max_length": LIMIT, **bag},
                "item": {"type": "id", "table": "tag"},
            },
            "tables": {"tag": {"rows": 23, "dim": 4, "init_std": 1.0}},
            "model": {"kind": "lr"},
            "tasks": {"click": {"label": "label"}},
            "cluster": {"workers": 0, "device": "cpu"},
        }
    )


def write(folder, ids, weights) -> pa.Table:
    rows = len(ids)
    table = pa.table(
        {
            "number": pa.array(np.arange(rows, dtype=np.float32)),
            "item": pa.array(range(rows), pa.int64()),
            "tags": ids,
            "w": weights,
            "label": pa.array(np.arange(rows) % 2, pa.int8()),
        }
    )
    for split in ("train", "valid", "test"):
        (folder / split).mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / split / "a.parquet", row_group_size=7)
    return table


WEIGHT = st.one_of(st.none(), st.just(0.0), st.floats(-8, 8, width=16))
ROW = st.one_of(
    st.none(),
    st.lists(st.tuples(st.one_of(st.none(), st.integers(-(2**62), 2**62)), WEIGHT), max_size=6),
)
TYPES = [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float16())]


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.tuples(ROW, st.booleans()), min_size=1, max_size=20),
    pooling=st.sampled_from(["mean", "sum", "sqrtn"]),
    kind=st.sampled_from(TYPES),
    compiled=st.booleans(),
)
def test_reader_model_file_and_predictor_agree(tmp_path_factory, rows, pooling, kind, compiled):
    folder = tmp_path_factory.mktemp("bags")
    ids = pa.array([None if row is None else [i for i, _ in row] for row, _ in rows], pa.list_(pa.int64()))
    # A row without a list of weights: all of its ids weigh 1.
    given_ = [None if row is None or not told else [w for _, w in row] for row, told in rows]
    table = write(folder, ids, pa.array(given_, kind))
    made = recipe(folder, pooling, weights="w")
    model = Model(made).eval()
    source = Source.open(made, "train")
    scan(source, made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "passes", passes if compiled else Plain)
        reader = Reader(source, made, rank=0, world=1, shuffle=True)
        found = {}
        for batch in reader.batches(0):
            scores = model(batch.ids, batch.dense)["click"]
            exported = Scorer(model, made)(*inputs_of(batch, made))["click"]
            torch.testing.assert_close(exported, scores.sigmoid())
            found |= {row: score for row, score in zip(batch.rows.tolist(), exported.tolist(), strict=True) if row >= 0}
        decoder = decode.Decoder(made, groups=False)
    weight = model.table_weights()["tag"].detach().numpy()
    slow = [_slow(row, told, pooling, weight, i) for i, (row, told) in enumerate(rows)]
    assert [found[row] for row in range(len(rows))] == pytest.approx(_scores(model, slow, len(rows)), abs=1e-5)
    columns = decoder.decode(table.combine_chunks(), 0, "the table")
    (inputs,) = chunks(columns, decoder, ["number"], len(rows))
    predicted = Scorer(model, made)(*inputs)["click"]
    assert predicted.tolist() == pytest.approx([found[row] for row in range(len(rows))], abs=1e-6)


def _slow(row, told: bool, pooling: str, table: np.ndarray, item: int) -> tuple[np.ndarray, np.ndarray]:
    """The pooled vector by the formula, in float64, and the item's."""
    from livetrain.modules.tables.hashing import row as place

    pairs = [(i, 1.0 if w is None or not told else w) for i, w in row or [] if i is not None][-LIMIT:]
    vectors = np.array([table[int(place(torch.tensor(i), len(table), False))] for i, _ in pairs]).reshape(-1, 4)
    w = np.array([w for _, w in pairs], np.float64)
    over = {"sum": 1.0, "mean": np.abs(w).sum(), "sqrtn": np.sqrt((w * w).sum())}[pooling] if len(w) else 1.0
    total = (w[:, None] * vectors).sum(0) / (over or 1.0)
    return total, table[int(place(torch.tensor(item), len(table), False))]


def _scores(model: Model, slow, rows: int) -> list[float]:
    values = {
        name: torch.tensor(np.stack([pair[k] for pair in slow]), dtype=torch.float32)
        for k, name in enumerate(("tags", "item"))
    }
    lengths = {name: torch.ones(rows, dtype=torch.long) for name in values}
    with torch.no_grad():
        logits = model.dense(values, lengths, torch.arange(rows, dtype=torch.float32).unsqueeze(1), None)
    return logits["click"].sigmoid().tolist()


BAD = {
    "row 1 has 1 weights and 2 ids; store one weight of each id": [[1.0], [1.0], None],
    "row 2 has 1 weights and 0 ids": [None, None, [2.0]],
    "row 1 has the weight nan; store finite float32 numbers": [[1.0], [2.0, float("nan")], None],
    "row 0 has the weight inf": [[1e300], None, None],
}


@pytest.mark.parametrize(("message", "weights"), BAD.items(), ids=range(len(BAD)))
def test_wrong_weights_are_one_sentence(tmp_path, message, weights):
    table = write(tmp_path, pa.array([[1], [2, 3], None]), pa.array(weights, pa.list_(pa.float64())))
    made = recipe(tmp_path, weights="w")
    source = Source.open(made, "train")
    wanted = f"a.parquet, row group 0, features.tags.weights: {message}"
    with pytest.raises(BadInput, match=wanted):
        scan(source, made)
    with pytest.raises(BadInput, match=wanted):
        list(Reader(source, made, rank=0, world=1, shuffle=False).batches(0))
    with pytest.raises(BadInput, match=f"the table, features.tags.weights: {message}"):
        decode.Decoder(made, groups=False).decode(table.combine_chunks(), 0, "the table")


def test_a_column_that_is_no_list_of_weights_is_named(tmp_path):
    write(tmp_path, pa.array([[1], [2, 3]]), pa.array([1.0, 2.0]))
    with pytest.raises(BadInput, match=r"features.tags.weights: column 'w' .* is double, but must be list<float32>"):
        Source.open(recipe(tmp_path, weights="w"), "train")


def test_lists_cut_are_counted_and_no_weights_cost_nothing(tmp_path):
    write(tmp_path, pa.array([[1, 2, 3, 4], [2], []]), pa.array([None] * 3, pa.list_(pa.float32())))
    made = recipe(tmp_path)
    reader = Reader(Source.open(made, "train"), made, rank=0, world=1, shuffle=False)
    (batch,) = reader.batches(0)
    assert reader.cut == {"tags": 1}
    assert batch.ids.weights_or_none() is None
    lengths = dict(zip(batch.rows.tolist(), batch.ids["tags"].lengths().tolist(), strict=True))
    assert [lengths[row] for row in range(3)] == [3, 1, 0]
