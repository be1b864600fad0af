"""A run that this machine's memory cannot hold is refused before it starts; what a cluster holds is not asked here."""

import pyarrow as pa
import pyarrow.parquet as pq
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


NEXT = {
    "model": {
        "kind": "sasrec_retrieval",
        "attention": [{"query": ["movie"], "events": ["history"], "side": ["rating"]}],
    },
    "tasks": {"click": {"label": "label", "kind": "retrieval"}},
    "evaluate": {},
}


def test_items_that_a_step_shares_are_counted(tmp_path):
    """Each worker computes its part of them, and has the vectors of all."""
    pq.write_table(pa.table({"movie": list(range(5000))}), tmp_path / "items.parquet")
    section, sizes = {"catalogue": str(tmp_path / "items.parquet"), "item": "movie"}, {}
    for shared in (2500, 5000, "all"):
        recipe = samples.recipe("data", data__negatives={**section, "shared": shared}, **NEXT)
        (part,) = (p for p in memory.needs(recipe, Model(recipe, "meta", "meta")) if p.key == "data.negatives.shared")
        sizes[shared] = (
            part.bytes,
            *(memory.besides(recipe, w, False, ())["host"]["activations"] for w in (1, 2, 2**20)),
        )
    assert sizes["all"] == sizes[5000] == (2 * sizes[2500][0], *sizes[5000][1:])
    none = samples.recipe("data", data__negatives={**section, "task": "click"}, **NEXT)
    alone = [memory.besides(none, w, False, ())["host"]["activations"] for w in (1, 2, 2**20)]
    (one, half, vectors), dim = (a - b for a, b in zip(sizes[5000][1:], alone, strict=True)), 8
    assert one - vectors == pytest.approx(2 * (half - vectors), rel=0.01)
    assert vectors == pytest.approx(5000 * 8 * dim, rel=0.01)
    with pytest.raises(BadInput, match="^data.negatives.shared: the run takes at least .* lower it"):
        check(8 * GIB, data__negatives={**section, "shared": 2**24}, **NEXT)


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
