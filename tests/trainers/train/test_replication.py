"""Which tables every rank holds whole."""

import pytest

from livetrain.configs.schema import Recipe
from livetrain.modules.optimizers import RowwiseAdagrad
from livetrain.trainers.train.replication import SMALL, exchanged, replicated, settled
from tests import twins

ROWS = {f"tables__{name}__sharding": "auto" for name in ("user", "movie", "rating")}


def made(**changes) -> Recipe:
    """A batch of 2,400 rows, each with a user, a movie, and of histories and ratings three on average."""
    return twins.recipe(**ROWS | {"data__batch_size": 2400} | changes)


def test_one_rank_keeps_its_fused_kernels_but_for_what_says_so():
    assert replicated(made(), 1) == frozenset()
    assert replicated(made(tables__movie__sharding="data_parallel"), 1) == {"movie"}
    assert replicated(made(), 2) == {"user", "movie", "rating"}
    assert replicated(made(tables__movie__sharding="row_wise"), 2) == {"user", "rating"}


@pytest.mark.parametrize("wire", ["none", "fp16"])
@pytest.mark.parametrize("world", [2, 3, 12])
def test_a_table_is_replicated_where_its_gradient_is_less_to_send_than_ids_and_rows(world, wire):
    """By hand: n rows of 64 columns take 2 * 4 * 64 n bytes; a batch's ids, rows and gradients 8 + 2 * 64 w each."""
    looked_up = 2400 / world * 4  # by movie and history
    each = 8 + 2 * 64 * (4 if wire == "none" else 2)
    most = int(looked_up * each / (2 * 4 * 64))
    assert 4 * 64 * most > SMALL
    changes = {"tables__movie__dim": 64, "tables__user__dim": 64, "cluster__quantize_comms": wire}
    assert exchanged(made(**changes), "movie", world) == looked_up * each
    for rows, whole in ((most, True), (most + 1, False)):
        assert ("movie" in replicated(made(tables__movie__rows=rows, **changes), world)) == whole


def test_of_a_bag_one_row_travels_whatever_the_number_of_its_ids():
    bag = {"features__movie": {"type": "dense"}, "features__history": {"type": "bag", "table": "movie"}}
    bag |= {"model": {"kind": "dnn", "units": [8]}, "features__history__max_length": 100}
    ids = made(**bag)
    assert exchanged(ids, "movie", 2) == 1200 * (50 * 8 + 2 * 4 * 8)


@pytest.mark.parametrize("rows", [SMALL // 32, SMALL // 32 + 1])
def test_a_small_table_is_replicated_whatever_the_batch(rows):
    made_for = made(data__batch_size=12, tables__user__rows=rows)  # of 8 columns
    assert ("user" in replicated(made_for, 12)) == (4 * 8 * rows <= SMALL)


def test_what_may_not_or_gains_nothing_stays_sharded(monkeypatch):
    for changes in ({"tables__user__dtype": "float16"}, {"tables__user__memory": "host"}):
        assert "user" not in replicated(made(**changes), 2)
        assert "user" in replicated(made(**changes, tables__user__sharding="data_parallel"), 2)
    monkeypatch.setattr(RowwiseAdagrad, "replicated", False)
    assert replicated(made(), 2) == frozenset()


def test_a_settled_recipe_says_which_they_are_and_nothing_else_changes():
    before = made(tables__movie__rows=10**6)
    after = settled(before, 2)
    assert {name: table.sharding for name, table in after.tables.items()} == {
        "user": "data_parallel",
        "movie": "auto",
        "rating": "data_parallel",
    }
    assert settled(after, 2) == after
    assert before == made(tables__movie__rows=10**6)
    tables = {name: table.model_copy(update={"sharding": "auto"}) for name, table in after.tables.items()}
    assert after.model_copy(update={"tables": tables}) == before
