"""A run that this machine's memory cannot hold is refused before it starts; what a cluster holds is not asked here."""

import pytest

from livetrain.configs.errors import BadInput
from livetrain.modules.model import Model
from livetrain.trainers.train import memory
from tests import samples

GIB = 2**30


def check(free: int, **changes) -> None:
    recipe = samples.recipe("data", **changes)
    memory.check(recipe, Model(recipe, device="meta", tables_device="meta"), free=free)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"tables__user__rows": 10**9}, "tables.user: the run takes at least 33.5 GiB of memory"),
        ({"tables__movie__sharding": "data_parallel", "tables__movie__rows": 2 * 10**8}, "tables.movie: "),
        ({"model__units": [2**17, 2**17]}, "model: "),
        ({"data__batch_size": 12 * 2**20}, "data.batch_size: "),
        ({"data__batch_size": 12 * 2**16, "data__prefetch": 1024}, "data.batch_size: "),
    ],
)
def test_what_takes_most_is_named(changes, key):
    with pytest.raises(BadInput) as caught:
        check(8 * GIB, **changes)
    assert str(caught.value).startswith(key)
    assert "and this machine has 8.0 GiB free; lower " in str(caught.value)
    assert len(str(caught.value)) < 300
    check(8 * GIB)


def test_a_table_takes_its_rows_with_their_state_and_a_copy_of_both():
    recipe = samples.recipe("data", tables__user__rows=1000, optimizers__sparse__kind="adagrad")
    parts = {part.key: part for part in memory.needs(recipe, Model(recipe, "meta", "meta"))}
    assert parts["tables.user"].bytes == parts["tables.user"].copied == 1000 * 8 * 4 + 1000 * 8 * 4
    half = samples.recipe("data", tables__user__rows=1000, tables__user__dtype="float16")
    parts = {part.key: part for part in memory.needs(half, Model(half, "meta", "meta"))}
    assert parts["tables.user"].bytes == parts["tables.user"].copied == 1000 * 8 * 2 + 1000 * 4
    whole = samples.recipe("data", tables__user__rows=1000, tables__user__sharding="data_parallel")
    parts = {part.key: part for part in memory.needs(whole, Model(whole, "meta", "meta"))}
    assert parts["tables.user"].bytes - parts["tables.user"].copied == 1000 * 8 * 4  # its gradient


def test_where_a_copy_does_not_fit_training_waits():
    recipe = samples.recipe("data", tables__user__rows=10**8)
    model = Model(recipe, "meta", "meta")  # 3.4 GiB of rows with their state
    assert memory.check(recipe, model, free=8 * GIB) is None
    text = memory.check(recipe, model, free=6 * GIB)
    assert text.startswith("training will wait while checkpoints are written: a copy takes 3.4 GiB of memory on this ")
    assert memory.check(recipe, model, saves=False, free=6 * GIB) is None  # an evaluation writes none


def test_a_cluster_may_hold_more_than_this_machine(monkeypatch):
    huge = {"tables__user__rows": 10**9, "cluster__workers": 4}
    with pytest.raises(BadInput, match="tables.user"):
        check(8 * GIB, **huge)
    check(8 * GIB, **huge, cluster__address="ray://head:10001")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    check(8 * GIB, **huge)
    with pytest.raises(BadInput, match="tables.user"):  # without workers the run is in this process, wherever that is
        check(8 * GIB, **huge | {"cluster__workers": 0})


def test_no_layer_is_made_to_be_measured():
    """2**40 parameters, which no machine of these tests could hold."""
    recipe = samples.recipe("data", model__units=[2**20, 2**20])
    assert all(parameter.is_meta for parameter in Model(recipe, "meta", "meta").parameters())
