"""Vectors that events carry: reader (compiled and NumPy's), model, file and predictor agree on any legal columns."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.modules.model import Model, set_statistics
from livetrain.modules.serving.scorer import Scorer
from livetrain.modules.tables import hashing
from livetrain.trainers.data.read import decode
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.records import Plain, passes
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.statistics import scan
from livetrain.trainers.export.prediction import chunks
from livetrain.trainers.export.rows import inputs_of, one_user

LIMIT = 3


def recipe(folder, width: int, **picture) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"path": str(folder), "batch_size": 8, "shards": 4, "shuffle_window": 8},
            "features": {
                "item": {"type": "id", "table": "item"},
                "tags": {"type": "bag", "table": "item", "weights": "w", "max_length": 2},
                "seen": {"type": "sequence", "table": "item", "max_length": LIMIT, "vectors": "v", "like": "picture"},
                "picture": {"type": "vector", "width": width, **picture},
            },
            "tables": {"item": {"rows": 23, "dim": 4, "init_std": 1.0}},
            "model": {"kind": "din", "attention": [{"query": ["item"], "events": ["seen"]}], "units": [4]},
            "tasks": {"click": {"label": "label"}},
            "cluster": {"workers": 0, "device": "cpu"},
        }
    )


def write(folder, ids, vectors, pictures) -> pa.Table:
    rows = len(ids)
    table = pa.table(
        {
            "item": pa.array(range(rows), pa.int64()),
            "tags": pa.array([[n, n + 1] for n in range(rows)]),
            "w": pa.array([[0.5, n] for n in range(rows)], pa.list_(pa.float32())),
            "seen": ids,
            "v": vectors,
            "picture": pictures,
            "label": pa.array(np.arange(rows) % 2, pa.int8()),
        }
    )
    (folder / "train").mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "train" / "a.parquet", row_group_size=7)
    return table


NUMBER = st.none() | st.floats(-8, 8, width=16)


def vectors(width: int) -> st.SearchStrategy:
    return st.none() | st.lists(NUMBER, min_size=width, max_size=width)


@st.composite
def columns(draw) -> tuple[int, list, list]:
    """Return a width, rows of None or (id, vector) pairs with whether vectors are told, and the rows' pictures."""
    width = draw(st.integers(1, 3))
    event = st.tuples(st.one_of(st.none(), st.integers(-(2**62), 2**62)), vectors(width))
    row = st.one_of(st.none(), st.lists(event, max_size=6))
    rows = draw(st.lists(st.tuples(row, st.booleans()), min_size=1, max_size=16))
    pictures = draw(st.lists(vectors(width), min_size=len(rows), max_size=len(rows)))
    return width, rows, pictures


def typed(values: list, width: int, form: int) -> pa.Array:
    """Return lists of vectors as one of the types that a column may have."""
    if form == 2:
        halves = [
            row and [vector and [None if x is None else np.float16(x) for x in vector] for vector in row]
            for row in values
        ]
        return pa.array(halves, pa.list_(pa.list_(pa.float16())))
    kinds = (pa.list_(pa.list_(pa.float32(), width)), pa.large_list(pa.list_(pa.float64())))
    return pa.array(values, kinds[form])


@settings(max_examples=20, deadline=None, derandomize=True)
@given(given=columns(), form=st.integers(0, 2), compiled=st.booleans(), projected=st.booleans())
def test_reader_model_file_and_predictor_agree(tmp_path_factory, given, form, compiled, projected):
    width, rows, pictures = given
    folder = tmp_path_factory.mktemp("vectors")
    ids = pa.array([None if row is None else [i for i, _ in row] for row, _ in rows], pa.list_(pa.int64()))
    beside = [None if row is None or not told else [vector for _, vector in row] for row, told in rows]
    kind = pa.list_(pa.float32(), width)
    table = write(folder, ids, typed(beside, width, form), pa.array(pictures, kind))
    made = recipe(folder, width, normalise=True, **({"projection": 2} if projected else {}))
    source = Source.open(made, "train")
    found, model = scan(source, made), Model(made).eval().requires_grad_(False)
    set_statistics(model, found.mean, found.std, found.quantiles)
    file = Scorer(model, made).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "passes", passes if compiled else Plain)
        reader = Reader(source, made, rank=0, world=1, shuffle=True)
        scores = {}
        for batch in reader.batches(0):
            with seen_by(model) as events:
                score = model(batch.ids, batch.dense, None, batch.vectors)["click"].sigmoid()
            inputs = inputs_of(batch, made)
            torch.testing.assert_close(file(*inputs)["click"], score)
            once, repeated = one_user(inputs, ["seen"], int(batch.weights.argmax()))
            torch.testing.assert_close(file.rank(*once)["click"], file(*repeated)["click"])
            wanted = [slow(model, *rows[row], width) if row >= 0 else [] for row in batch.rows.tolist()]
            np.testing.assert_allclose(events[0], np.array(sum(wanted, [])).reshape(events[0].shape), atol=1e-5)
            scores |= {row: score for row, score in zip(batch.rows.tolist(), score.tolist(), strict=True) if row >= 0}
        decoder = decode.Decoder(made, groups=False)
    fitting = table.set_column(4, "v", table["v"].cast(source.schema.field("v").type))
    (inputs,) = chunks(decoder.decode(fitting.combine_chunks(), 0, "the table"), decoder, ["picture"], len(rows))
    assert file(*inputs)["click"].tolist() == pytest.approx([scores[row] for row in range(len(rows))], abs=1e-6)


class seen_by:
    """The events that a model's network is given."""

    def __init__(self, model: Model) -> None:
        self._network = model.dense.network

    def __enter__(self) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        self._hook = self._network.register_forward_pre_hook(lambda _, given: found.append(given[0]["seen"].numpy()))
        return found

    def __exit__(self, *failure: object) -> None:
        self._hook.remove()


def slow(model: Model, row, told: bool, width: int) -> list[list[float]]:
    """A row's events by plain Python: the id's table row, and behind it the vector, normalised and projected."""
    table, normalise = model.table_weights()["item"], model.dense.normalise
    encoder = model.dense.encode.encoders["of_picture"]
    events = []
    for number, vector in [(i, v) for i, v in row or [] if i is not None][-LIMIT:]:
        given = vector if told and vector is not None else [None] * width
        known = [
            0.0 if x is None else (x - m) / s
            for x, m, s in zip(given, normalise.mean.tolist(), normalise.std.tolist(), strict=True)
        ]
        place = int(hashing.row(torch.tensor(number), len(table), False))
        events.append(table[place].tolist() + encoder(torch.tensor([known])).flatten().tolist())
    return events


BAD = {
    "row 1 has 1 vectors and 2 ids; store one vector of each id": [[[1.0, 2.0]], [[1.0, 2.0]], None],
    "row 2 has 1 vectors and 0 ids": [None, None, [[1.0, 2.0]]],
    "row 1 has a vector of 3 numbers, but the width is 2; write vectors of 2": [None, [None, [1.0, 2.0, 3.0]], None],
    "row 1 has a vector with nan; store finite float32 numbers": [None, [None, [float("nan"), 1.0]], None],
    "row 0 has a vector with inf": [[[1e300, None]], None, None],
}


@pytest.mark.parametrize(("message", "given"), BAD.items(), ids=range(len(BAD)))
def test_wrong_vectors_are_one_sentence(tmp_path, message, given):
    column = pa.array(given, pa.list_(pa.list_(pa.float64())))
    table = write(tmp_path, pa.array([[1], [2, 3], None]), column, pa.array([[0.0, 1.0]] * 3))
    made = recipe(tmp_path, 2)
    source = Source.open(made, "train")
    wanted = f"a.parquet, row group 0, features.seen.vectors: {message}"
    with pytest.raises(BadInput, match=wanted):
        scan(source, made)
    with pytest.raises(BadInput, match=wanted):
        list(Reader(source, made, rank=0, world=1, shuffle=False).batches(0))
    with pytest.raises(BadInput, match=f"the table, features.seen.vectors: {message}"):
        decode.Decoder(made, groups=False).decode(table.combine_chunks(), 0, "the table")


@pytest.mark.parametrize("column", [pa.array([[1.0], [2.0]]), pa.array([[["a"]], []])], ids=["flat", "texts"])
def test_a_column_that_is_no_list_of_vectors_is_named(tmp_path, column):
    write(tmp_path, pa.array([[1], [2]]), column, pa.array([[0.0, 1.0]] * 2))
    with pytest.raises(
        BadInput, match=r"features.seen.vectors: column 'v' .* must be a list of lists of float32; store"
    ):
        Source.open(recipe(tmp_path, 2), "train")


def test_a_column_of_nothing_is_vectors_that_are_missing(tmp_path):
    write(tmp_path, pa.array([[1], [2]]), pa.array([None, None]), pa.array([[0.0, 1.0]] * 2))
    made = recipe(tmp_path, 2)
    (batch,) = Reader(Source.open(made, "train"), made, rank=0, world=1, shuffle=False).batches(0)
    assert batch.vectors.isnan().tolist() == [True] * 4
