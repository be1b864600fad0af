"""Every kind of feature on any legal column: reader, model, exported file and predictions agree with the data."""

import datetime
import functools
import tempfile
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.modules.model import Model, set_statistics
from livetrain.modules.serving.scorer import Scorer
from livetrain.trainers.data.checks import brief
from livetrain.trainers.data.read.decode import NO_GROUP
from livetrain.trainers.data.read.measure import SAMPLE, Drawn
from livetrain.trainers.data.read.reader import Reader
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.statistics import scan
from livetrain.trainers.export import prediction
from livetrain.trainers.export.rows import inputs_of, one_user

WIDTH, ZONE = 3, "Europe/Berlin"
NUMBER = st.none() | st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, 1.0, -1.0])
TEXT = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
VECTOR = st.none() | st.lists(st.none() | st.floats(-100, 100, width=16), min_size=WIDTH, max_size=WIDTH)
TIME = st.none() | st.integers(-(10**8), 4 * 10**9) | st.integers(1_711_846_700, 1_711_846_900)  # summer time begins
TEXTS = (pa.string(), pa.large_string(), pa.dictionary(pa.int16(), pa.string()))
NUMBERS = (pa.float32(), pa.float64())
LISTS = (
    pa.list_(pa.float32()),
    pa.large_list(pa.float64()),
    pa.list_(pa.float16(), WIDTH),
    pa.list_(pa.float32(), WIDTH),
)
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
TIMES = tuple(pa.timestamp(unit, zone) for unit in UNITS for zone in (None, "Asia/Tokyo"))


def text_id(text: str) -> int:
    return int.from_bytes(xxhash.xxh64_digest(text.encode()), "big", signed=True)


def local(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, zoneinfo.ZoneInfo(ZONE))


def signed_log(x: float) -> float:
    return float(np.sign(x) * np.log1p(abs(x)))


@dataclass
class Kind:
    """A feature, what its columns may be, and what the model makes of a row's values, by Python."""

    section: dict[str, Any]
    values: dict[str, st.SearchStrategy]  # by column
    types: tuple[pa.DataType, ...]
    rows: int | None = None  # of its table
    ids: Callable[..., list[int]] | None = None
    numbers: Callable[..., list[float | None]] | None = None  # before they are normalised; None is missing
    measured: int = 0  # how many of the numbers are normalised


def one(function: Callable[[Any], Any]) -> Callable[[Any], list]:
    return lambda value: [] if value is None else [function(value)]


def passed(since: int | None, until: int | None) -> list[float | None]:
    known = since is not None and until is not None
    return [min((until - since) / 3600, 500.0) if known else None, float(not known)]


KINDS = {
    "a string": Kind({"type": "id"}, {"x": TEXT}, TEXTS, 97, one(text_id)),
    "strings": Kind(
        {"type": "sequence", "max_length": 2},
        {"x": st.none() | st.lists(TEXT, max_size=4)},
        (pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(TEXTS[2])),
        97,
        lambda value: [text_id(text) for text in value or [] if text is not None][-2:],
    ),
    "a vector": Kind({"type": "vector", "width": WIDTH}, {"x": VECTOR}, LISTS, numbers=lambda v: v or [None] * WIDTH),
    "a normalised and projected vector": Kind(
        {"type": "vector", "width": WIDTH, "normalise": True, "projection": 2},
        {"x": VECTOR},
        LISTS,
        numbers=lambda v: v or [None] * WIDTH,
        measured=WIDTH,
    ),
    "a vector of one number": Kind(
        {"type": "vector", "width": 1},
        {"x": st.none() | st.lists(st.floats(-9, 9, width=16), min_size=1, max_size=1)},
        (pa.list_(pa.float32()), pa.list_(pa.float16(), 1)),
        numbers=lambda v: v or [None],
    ),
    "a bucket": Kind(
        {"type": "bucket", "bounds": [-1.0, 0.0, 1.0]},
        {"x": NUMBER},
        NUMBERS,
        5,
        lambda x: [0 if x is None else 1 + sum(bound <= x for bound in (-1, 0, 1))],
    ),
    "a number": Kind(
        {"type": "dense", "clip": [-10, 100], "log1p": True, "missing_flag": True},
        {"x": NUMBER},
        (*NUMBERS, pa.float16()),
        numbers=lambda x: [None if x is None else signed_log(min(max(x, -10), 100)), float(x is None)],
        measured=1,
    ),
    "a mixture": Kind(
        {"type": "autodis", "dim": 4, "clip": [-1e4, 1e4]},
        {"x": NUMBER},
        NUMBERS,
        numbers=lambda x: [None if x is None else min(max(x, -1e4), 1e4)],
        measured=1,
    ),
    "an hour": Kind({"type": "hour", "zone": ZONE}, {"x": TIME}, TIMES, 24, one(lambda s: local(s).hour)),
    "a weekday": Kind({"type": "weekday", "zone": ZONE}, {"x": TIME}, TIMES, 7, one(lambda s: local(s).weekday())),
    "an hour of milliseconds": Kind(
        {"type": "hour", "zone": ZONE, "unit": "ms"},
        {"x": TIME},
        (pa.int64(),),
        24,
        one(lambda s: local(s // 1000).hour),
    ),
    "an age": Kind(
        {"type": "age", "until": "y", "per": "hours", "clip": [-1e9, 500], "missing_flag": True},
        {"x": TIME, "y": TIME},
        TIMES,
        numbers=passed,
        measured=1,
    ),
}


def recipe_of(folder: str | Path, section: dict[str, Any], rows: int | None) -> Recipe:
    tables = {"x": {"rows": rows, "dim": 4, "hash": "modulo", "init_std": 1.0}} if rows else {}
    return Recipe.model_validate(
        {
            "data": {"path": str(folder), "batch_size": 6, "shards": 2, "shuffle_window": 4},
            "features": {
                "x": section | ({"table": "x"} if rows else {}),
                "type": {"type": "dense", "column": "other"},
            },
            "tables": tables,
            "model": {"kind": "dnn", "units": [5]},
            "tasks": {"click": {"label": "click"}},
            "cluster": {"workers": 0, "device": "cpu"},
        }
    )


@functools.cache
def made(name: str) -> tuple[Model, dict[str, torch.jit.ScriptModule]]:
    """Return a kind's model and the files that would be exported of it, which share its measured quantities."""
    kind = KINDS[name]
    recipe = recipe_of("unused", kind.section, kind.rows)
    model = Model(recipe).eval().requires_grad_(False)
    return model, {quantize: torch.jit.script(Scorer(model, recipe, quantize).eval()) for quantize in ("none", "int8")}


def arrow(values: list, kind: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(kind):
        return pa.array([None if s is None else s * UNITS[kind.unit] for s in values], pa.int64()).cast(kind)
    if pa.types.is_float16(kind):
        return pa.array([None if x is None else np.float16(x) for x in values], kind)
    if isinstance(kind, pa.FixedSizeListType | pa.ListType) and pa.types.is_float16(kind.value_type):
        return pa.array([v and [None if x is None else np.float16(x) for x in v] for v in values], kind)
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode()
    return pa.array(values, kind)


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(data=st.data())
def test_all_that_read_a_column_agree(name, data):
    kind, (model, files) = KINDS[name], made(name)
    rows = data.draw(st.integers(1, 9))
    columns = {c: data.draw(st.lists(v, min_size=rows, max_size=rows)) for c, v in kind.values.items()}
    form = data.draw(st.sampled_from(kind.types))
    if pa.types.is_float16(form):
        columns = {c: [x if x is None or abs(x) < 6e4 else 1.0 for x in v] for c, v in columns.items()}
        columns = {c: [None if x is None else float(np.float16(x)) for x in v] for c, v in columns.items()}
    table = pa.table({c: arrow(v, form) for c, v in columns.items()} | {"other": pa.array(range(rows), pa.float32())})
    wanted = list(zip(*columns.values(), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train").mkdir()
        labelled = table.append_column("click", pa.array([n % 2 for n in range(rows)]))
        pq.write_table(labelled, Path(folder) / "train/part-0.parquet", row_group_size=4)
        recipe = recipe_of(folder, kind.section, kind.rows)
        source = Source.open(recipe, "train")
        found = scan(source, recipe)
        set_statistics(model, found.mean, found.std, found.quantiles)
        batches = list(Reader(source, recipe, rank=0, world=1, shuffle=False).batches(0))
    scores = {}
    for batch in batches:
        real, place = batch.weights > 0, batch.rows
        _check_seen(kind, model, batch, [wanted[row] if row >= 0 else None for row in place.tolist()], wanted)
        score = model(batch.ids, batch.dense)["click"].sigmoid()
        inputs = inputs_of(batch, recipe)
        torch.testing.assert_close(files["none"](*inputs)["click"], score)
        torch.testing.assert_close(files["int8"](*inputs)["click"], score, atol=0.02, rtol=0)
        for file in files.values():
            once, repeated = one_user(inputs, ["x"], int(real.nonzero()[0]))
            torch.testing.assert_close(file.rank(*once)["click"], file(*repeated)["click"])
        scores |= dict(zip(place[real].tolist(), score[real].tolist(), strict=True))
    predicted = predictor(recipe, files["none"]).predict(table)["click_score"].to_pylist()
    assert predicted == pytest.approx([scores[row] for row in range(rows)], abs=1e-6)


def _check_seen(kind, model, batch, cells, everything) -> None:
    """Compare what the model looks up, or hands its network, with what Python makes of the rows' values."""
    missing = (None,) * len(kind.values)
    if kind.ids is not None:
        rows = model.hash(batch.ids) if model.select is None else model.hash(batch.ids, batch.dense)
        wanted = [[i % kind.rows for i in kind.ids(*(cell or missing))] for cell in cells]
        assert [part.tolist() for part in rows["x"].to_dense()] == wanted
        return
    dense = batch.dense if model.select is None else model.select(batch.dense)
    all_of_it = np.array([kind.numbers(*cell) for cell in everything], np.float64)
    known = ~np.isnan(all_of_it)
    numbers = np.array([kind.numbers(*(cell or missing)) for cell in cells], np.float64)
    for column in range(kind.measured):
        own = all_of_it[known[:, column], column]
        mean, std = (own.mean(), own.std()) if len(own) else (0.0, 1.0)
        numbers[:, column] = (numbers[:, column] - mean) / (std if std > 1e-6 * (1 + abs(mean)) else 1.0)
    found = model.dense.normalise(dense)[:, : numbers.shape[1]].numpy()
    np.testing.assert_allclose(found, np.nan_to_num(numbers), rtol=1e-4, atol=1e-4)


def predictor(recipe: Recipe, file: torch.jit.ScriptModule) -> prediction.Predictor:
    """Return what predicts by a file, without a run around it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction.run_folder, "recipe_of", lambda run: recipe)
        patch.setattr(prediction, "_load", lambda weights, recipe: file)
        return prediction.Predictor(prediction.Weights(Path(), Path(), True, ""))


def written(
    folder: Path, section: dict[str, Any], rows: int | None = None, split: str = "train", **columns: pa.Array
) -> Recipe:
    (folder / split).mkdir()
    size = len(next(iter(columns.values())))
    others = {"other": pa.array(np.zeros(size)), "click": pa.array(np.arange(size) % 2)}
    pq.write_table(pa.table(columns | others), folder / split / "part-0.parquet", row_group_size=4000)
    return recipe_of(folder, section, rows)


@pytest.mark.parametrize("rows", [999, 10 * SAMPLE])
def test_buckets_at_quantiles_have_as_many_rows_each(tmp_path, rows):
    numbers = np.random.default_rng(0).lognormal(size=rows).astype(np.float32)
    recipe = written(tmp_path, {"type": "bucket", "quantiles": 10}, 11, x=pa.array(numbers))
    found = scan(Source.open(recipe, "train"), recipe)
    model = Model(recipe)
    set_statistics(model, found.mean, found.std, found.quantiles)
    filled = torch.bincount(model.transforms["x"](torch.from_numpy(numbers)), minlength=11) / rows
    assert filled[0] == 0
    assert filled[1:].numpy() == pytest.approx(np.full(10, 0.1), abs=0.002 if rows == 999 else 5 * 0.0017)
    assert torch.equal(model.state_dict()["hash.transforms.of_x.bounds"], torch.tensor(found.quantiles["x"]))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.integers(0, 3))
def test_the_sample_is_of_the_rows_and_not_of_how_they_are_grouped(sizes, seed):
    numbers = np.random.default_rng(seed).normal(size=sum(sizes)).astype(np.float32)
    total, first = Drawn.of(numbers[:0], 0), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("livetrain.trainers.data.read.measure.SAMPLE", 20)
        for size in sizes:
            total, first = total.merge(Drawn.of(numbers[first : first + size], first)), first + size
        assert sorted(total.values) == sorted(Drawn.of(numbers, 0).values)
        assert len(total.values) == min(20, sum(sizes))


REFUSED = {
    "a list of another length": (
        {"type": "vector", "width": 2},
        pa.array([[1.0, 2.0], [3.0]] * 3),
        "train/part-0.parquet, row group 0, row 1: features.x holds a list of 1 numbers, but its width is 2; correct",
    ),
    "a fixed length that is another": (
        {"type": "vector", "width": 2},
        pa.array([[1.0, 2.0, 3.0]] * 3, pa.list_(pa.float32(), 3)),
        "row 0: features.x holds a list of 3 numbers, but its width is 2",
    ),
    "NaN in a vector": (
        {"type": "vector", "width": 2},
        pa.array([None, [1.0, None], [0.0, float("nan")]]),
        "row 2: features.x holds nan; store finite float32 numbers, and null where there is none",
    ),
    "a vector as a number": ({"type": "dense"}, pa.array([[1.0]]), "set the feature's type: vector, or keep one value"),
    "a number as a vector": ({"type": "vector", "width": 1}, pa.array([1.0]), "but must be a list of numbers; convert"),
    "texts as a vector": ({"type": "vector", "width": 1}, pa.array([["a"]]), "but must be a list of numbers; convert"),
    "integers without a unit": (
        {"type": "age", "until": "x"},
        pa.array([1]),
        "set the feature's unit: s, ms, us or ns",
    ),
    "a text as a time": (
        {"type": "age", "until": "x"},
        pa.array(["1"]),
        "but must be a timestamp, or an integer whose",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_columns_are_refused_before_training(tmp_path, case):
    section, column, said = REFUSED[case]
    recipe = written(tmp_path, section, x=column)
    with pytest.raises(BadInput) as refused:
        scan(Source.open(recipe, "train"), recipe)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_list_of_another_length_is_refused_when_met(tmp_path):
    recipe = written(tmp_path, {"type": "vector", "width": 2}, x=pa.array([[1.0, 2.0], [3.0]]))
    with pytest.raises(BadInput, match="row group 0, row 1: features.x holds a list of 1 numbers"):
        next(Reader(Source.open(recipe, "train"), recipe, rank=0, world=1, shuffle=False).batches(0))
    _, files = made("a vector")
    recipe = recipe_of("unused", KINDS["a vector"].section, None)
    own, rows = predictor(recipe, files["none"]), pa.table({"x": [[1.0, 2.0]], "other": [0.0]})
    with pytest.raises(BadInput, match="the table, row 0: features.x holds a list of 2 numbers, but its width is 3"):
        own.predict(rows)


SECTIONS = {
    "bounds that fall": ({"type": "bucket", "bounds": [1, 0]}, 9, r"\[1.0, 0.0\] do not rise"),
    "neither": ({"type": "bucket"}, 9, "wants either bounds or quantiles"),
    "both": ({"type": "bucket", "bounds": [1], "quantiles": 2}, 9, "wants either bounds or quantiles"),
    "a table too small": (
        {"type": "bucket", "bounds": [1, 2]},
        3,
        "makes the ids 0 to 3, more than the table's 3 rows",
    ),
    "a zone that is none": ({"type": "hour", "zone": "Europe/Atlantis"}, 24, "there is no time zone 'Europe/Atlantis'"),
    "a clip that falls": ({"type": "dense", "clip": [2, 2]}, None, r"\[2.0, 2.0\] does not rise"),
}


@pytest.mark.parametrize("case", SECTIONS)
def test_wrong_sections_are_refused(case):
    section, rows, said = SECTIONS[case]
    with pytest.raises(ValueError, match=said):
        recipe_of("unused", section, rows)


def test_strings_in_one_split_and_numbers_in_another_are_refused(tmp_path):
    """Unless a split has none, of which a writer may not know the type."""
    for split, column in (("train", ["7"] * 9), ("valid", [7] * 9), ("test", [None] * 9)):
        recipe = written(tmp_path, {"type": "id"}, 9, split, x=pa.array(column))
    sources = {split: Source.open(recipe, split) for split in ("train", "valid", "test")}
    statistics = {split: scan(source, recipe) for split, source in sources.items()}
    brief.examine(recipe, {s: sources[s] for s in ("train", "test")}, statistics, lambda text: None)
    with pytest.raises(BadInput, match="features.x: column 'x' holds strings in .*train and integers in .*valid, so"):
        brief.examine(recipe, sources, statistics, lambda text: None)


def test_groups_and_slices_may_be_of_strings(tmp_path):
    recipe = written(tmp_path, {"type": "id"}, 9, x=pa.array(["a", "b", None, "a"]).dictionary_encode())
    evaluated = recipe.evaluate.model_copy(update={"group_by": "x", "slices": {"a": "x = 'a'"}})
    recipe = recipe.model_copy(update={"evaluate": evaluated})
    reader = Reader(Source.open(recipe, "train"), recipe, rank=0, world=1, shuffle=False, groups=True, slices=True)
    (batch,) = reader.batches(0)
    real = batch.weights > 0
    found = zip(batch.groups[real].tolist(), batch.slices[real].tolist(), strict=True)
    assert sorted(found) == sorted([(text_id("a"), 1), (text_id("b"), 0), (int(NO_GROUP), 0), (text_id("a"), 1)])
