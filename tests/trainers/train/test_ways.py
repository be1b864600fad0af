"""Sharded equals plain: every way to shard a table, pooled or not, by every optimizer that may, on one to four ranks."""

from collections.abc import Iterator

import pytest

from livetrain.configs import registry
from livetrain.configs.schema import Recipe
from livetrain.configs.schema.recipe import BY_COLUMNS, POOLED_ALONE
from livetrain.trainers.runtime import ranks
from tests.cases import often
from tests.modules.features.test_bag import made
from tests.pool import Pool
from tests.trainers.train.test_sharding import compare, train_sharded

WAYS = ("table_wise", "row_wise", "column_wise", "table_row_wise", "grid", "data_parallel", "auto")
# A larger eps than the default: the first step of Adagrad is g / |g|, which tells rounding errors of zero from zero.
KINDS = {
    "rowwise_adagrad": {"lr": 0.05, "eps": 1e-3},
    "rowwise_adagrad, decay": {"kind": "rowwise_adagrad", "lr": 0.05, "eps": 1e-3, "weight_decay": 0.1},
    "adagrad": {"kind": "adagrad", "lr": 0.05, "eps": 1e-3},
    "sgd": {"kind": "sgd", "lr": 0.2},
    "adam": {"kind": "adam", "lr": 0.01, "eps": 1e-3},
}


def sharded(way: str, kind: str, per_node: int = 2) -> Recipe:
    """A recipe whose bags, ids and, where it can be, sequences are looked up in tables of one way."""
    names = ("tag", "cross", "user") if way in POOLED_ALONE else ("tag", "cross", "user", "movie", "rating")
    return made(
        **{f"tables__{name}__sharding": way for name in names},
        optimizers__sparse=KINDS[kind],
        cluster__topology={"workers_per_node": per_node},
    )


def able(way: str, kind: str) -> bool:
    owner = registry.OPTIMIZERS.owner(KINDS[kind].get("kind", "rowwise_adagrad"))
    return owner.by_columns or way not in BY_COLUMNS


CASES = {f"{way}, {kind}": (way, kind) for way in WAYS for kind in KINDS if able(way, kind)}


@pytest.fixture(scope="module", params=[3, 4])
def more_ranks(request) -> Iterator[Pool]:
    pool = Pool(request.param)
    yield pool
    pool.close()


def test_every_optimizer_is_here():
    assert {options.get("kind", "rowwise_adagrad") for options in KINDS.values()} == {
        kind for kind, owner in registry.OPTIMIZERS.entered().items() if owner.__module__.startswith("livetrain.")
    }


@pytest.mark.parametrize(("way", "kind"), often(CASES, ("table_row_wise, rowwise_adagrad, decay",)))
def test_one_rank_equals_plain(way, kind):
    made_for = sharded(way, kind)
    with ranks.alone(cuda=False):
        found = train_sharded(made_for)
    compare(found, made_for, 2e-6)


@pytest.mark.parametrize(
    ("way", "kind"),
    often(CASES, ("table_row_wise, rowwise_adagrad, decay", "grid, adam", "column_wise, adagrad", "auto, adagrad")),
)
def test_two_ranks_equal_plain(two_ranks, way, kind):
    made_for = sharded(way, kind)
    found = two_ranks.run(train_sharded, made_for)[0]
    assert found["plan"]["tag"]["sharding"] == {"grid": "grid_shard", "auto": "data_parallel"}.get(way, way)
    compare(found, made_for, 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("per_node", [1, 2])
@pytest.mark.parametrize(("way", "kind"), CASES.values(), ids=CASES)
def test_nodes_of_more_ranks_equal_plain(more_ranks, way, kind, per_node):
    """Four ranks are nodes of one or two; three, which two do not divide, are one node or three."""
    if way not in POOLED_ALONE and per_node == 1:
        pytest.skip("nodes change nothing")
    made_for = sharded(way, kind, per_node)
    compare(more_ranks.run(train_sharded, made_for)[0], made_for, 2e-6)
