"""The rows of a step, said over all workers together or for each of them."""

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from livetrain.configs.errors import BadInput
from livetrain.configs.load import dump_recipe, load_recipe, override
from livetrain.configs.schema import Data
from livetrain.configs.schema.data import MOST_ROWS
from livetrain.configs.space import load_space, parse_space

TREE = {
    "data": {"path": "data"},
    "features": {"user": {"type": "id", "table": "user"}},
    "tables": {"user": {"rows": 10, "dim": 4}},
    "model": {"kind": "lr"},
    "tasks": {"label": {"label": "label"}},
}


def recipe(workers=1, **data):
    return load_recipe(TREE, data=data, cluster={"workers": workers})


@given(st.integers(1, 64), st.integers(1, 12), st.integers(1, 500))
def test_a_batch_per_worker_is_as_many_rows_as_the_workers_have_together(workers, each, rows):
    data = Data(path="data", shards=workers * each, batch_size_per_worker=rows * each)
    assert data.on(workers) == Data(path="data", shards=workers * each, batch_size=rows * each * workers)
    assert data.on(workers).on(workers + 1) == data.on(workers)  # a number once settled stays


@given(st.integers(1, 64), st.integers(2, 12), st.integers(1, 500))
def test_rows_that_do_not_divide_are_refused_with_the_nearest_that_do(workers, each, rows):
    assume(rows % each)
    data = Data(path="data", shards=workers * each, batch_size_per_worker=rows)
    said = f"data.batch_size_per_worker: {rows} rows do not divide among the {each} data.shards of each of "
    with pytest.raises(BadInput, match=said) as caught:
        data.on(workers)
    near = [int(one) for one in str(caught.value).split("workers; ")[1].removesuffix(" would").split(", ")]
    assert near == [one for one in range(max(rows - each + 1, 1), rows + each) if one % each == 0]
    for one in near:
        assert data.model_copy(update={"batch_size_per_worker": one}).on(workers).batch_size == one * workers


@pytest.mark.parametrize("workers", [0, 1, 6])
def test_a_run_keeps_the_batch_that_it_was_begun_with(workers):
    """What is written of a recipe and read again is the same recipe, and other workers share the same batch."""
    said = recipe(workers, batch_size_per_worker=384)
    assert said == recipe(workers, batch_size=384 * max(workers, 1))
    assert load_recipe(yaml.safe_load(dump_recipe(said))) == said
    assert load_recipe(yaml.safe_load(dump_recipe(said)), ["cluster.workers=4"]).data == said.data


def test_both_ways_at_once_are_refused(tmp_path):
    path = tmp_path / "both.yaml"
    path.write_text(yaml.safe_dump(TREE | {"data": {"path": "data", "batch_size": 192, "batch_size_per_worker": 96}}))
    said = r"both.yaml, line \d+: data.batch_size_per_worker: 96 rows are said beside data.batch_size: 192"
    with pytest.raises(BadInput, match=f"{said}; leave out one of the two$"):
        load_recipe(path)
    with pytest.raises(BadInput, match=r"data.batch_size_per_worker and data.batch_size say the same number"):
        parse_space({f"data.{way}": {"choice": [192, 384]} for way in ("batch_size_per_worker", "batch_size")})
    most = {"shards": 64, "batch_size_per_worker": MOST_ROWS // 64}
    assert recipe(64, **most).data.batch_size == MOST_ROWS
    with pytest.raises(BadInput, match=f"are {2 * MOST_ROWS} per step, and {MOST_ROWS} are the most; lower it"):
        recipe(64, **most | {"batch_size_per_worker": MOST_ROWS // 32})


def test_what_says_a_batch_over_another_replaces_it(tmp_path):
    """A recipe over its base, the command line, values from Python and a sweep: the last word counts, in either way."""
    base = TREE | {"data": {"path": "data", "batch_size": 384}, "cluster": {"workers": 8}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    path = tmp_path / "over.yaml"
    path.write_text("base: base.yaml\ndata: {batch_size_per_worker: 48}\n")
    over = load_recipe(path)
    assert over.data.batch_size == 8 * 48
    assert over.data.path == "data"
    assert load_recipe(path, ["cluster.workers=16"]).data.batch_size == 16 * 48
    assert load_recipe(path, ["data.batch_size=192"]).data.batch_size == 192
    assert load_recipe(path, ["data.batch_size=192", "data.batch_size_per_worker=96"]).data.batch_size == 8 * 96
    assert load_recipe(path, data={"batch_size": 192}).data.batch_size == 192
    assert load_recipe(over, ["data.batch_size_per_worker=72"]).data.batch_size == 8 * 72
    assert override(over, {"data.batch_size_per_worker": 96}).data.batch_size == 8 * 96
    assert load_recipe(path, ["data.shards=96"]).data.batch_size == 8 * 48


def test_a_sweep_of_batches_per_worker_draws_the_batch_of_its_workers(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("data.batch_size_per_worker: {choice: [48, 96]}\n")
    tried = []
    load_space(path).check(recipe(8, batch_size=384), also=tried.append)
    assert [one.data.batch_size for one in tried] == [8 * 48, 8 * 96]
