"""Sharded equals plain: every way to shard a table, with every optimizer that may, on one to four ranks."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from livetrain.configs import registry
from livetrain.configs.schema import Recipe
from livetrain.configs.schema.table import BY_COLUMNS, POOLED_ALONE
from livetrain.trainers.runtime import ranks, run_folder
from livetrain.trainers.train import checkpoint
from livetrain.trainers.train.sharding import shard
from tests.cases import often
from tests.emulated_cache import cache
from tests.modules.features.test_bag import made
from tests.pool import Pool
from tests.trainers.train.test_sharding import compare, train_sharded
from tests.trainers.train.test_warm_start import everything, save

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


STATE = [kind for kind in KINDS if kind != "sgd"]
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
@pytest.mark.some(2)
def test_two_ranks_equal_plain(two_ranks, way, kind):
    made_for = sharded(way, kind)
    found = two_ranks.run(train_sharded, made_for)[0]
    assert found["plan"]["tag"]["sharding"] == {"auto": "data_parallel"}.get(way, way)
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


def train_cached(made_for: Recipe) -> dict:
    with cache("tag", "cross", "user", part=0.3):
        return train_sharded(made_for)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "kind"), [("table_row_wise", "rowwise_adagrad"), ("grid", "adagrad")])
def test_behind_a_cache_they_equal_plain(two_ranks, way, kind):
    made_for = sharded(way, kind)
    found = two_ranks.run(train_cached, made_for)[0]
    assert found["plan"]["tag"]["kernel"] == "fused_uvm_caching"
    compare(found, made_for, 2e-6)


def resumed(made_for: Recipe, path: Path) -> dict[str, torch.Tensor]:
    """What a run goes on with from a checkpoint."""
    model = shard(made_for, torch.device("cpu"))
    checkpoint.load(model, made_for, path, resume=True)
    return everything(model)


def moves(kind: str) -> Iterator[tuple[str, str]]:
    """Yield each way with the one after it, and back."""
    ways = [way for way in WAYS if able(way, kind)]
    for before, after in zip(ways, [*ways[1:], ways[0]], strict=True):
        yield before, after
        yield after, before


MOVES = {f"{before} -> {after}, {kind}": (before, after, kind) for kind in KINDS for before, after in moves(kind)}


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    often(
        MOVES,
        (
            "auto -> table_wise, adagrad",
            "grid -> data_parallel, adam",
            "data_parallel -> table_row_wise, rowwise_adagrad, decay",
        ),
    ),
)
@pytest.mark.some(1)
def test_a_table_goes_on_whichever_way_it_is_sharded(two_ranks, tmp_path, before, after, kind):
    wanted = two_ranks.run(save, sharded(before, kind), tmp_path, 3)[0]
    path = run_folder.checkpoint(tmp_path, 3)
    found = two_ranks.run(resumed, sharded(after, kind), path)
    with ranks.alone(cuda=False):
        found.append(resumed(sharded(after, kind), path))
    for each in found:
        assert each.keys() == wanted.keys()
        for name, value in wanted.items():
            assert torch.equal(each[name], value), name


@pytest.mark.slow
@pytest.mark.parametrize(("way", "kind"), [("table_row_wise", "rowwise_adagrad, decay"), ("grid", "adam")])
def test_what_nodes_hold_goes_on_elsewhere_and_back(two_ranks, more_ranks, tmp_path, way, kind):
    many = more_ranks.run(save, sharded(way, kind), tmp_path / "many", 3)[0]
    few = two_ranks.run(save, sharded("auto", kind), tmp_path / "few", 3)[0]
    found = two_ranks.run(resumed, sharded("auto", kind), run_folder.checkpoint(tmp_path / "many", 3))[0]
    assert all(torch.equal(found[name], value) for name, value in many.items())
    found = more_ranks.run(resumed, sharded(way, kind), run_folder.checkpoint(tmp_path / "few", 3))[0]
    assert all(torch.equal(found[name], value) for name, value in few.items())


def save_as_before(made_for: Recipe, path: Path) -> dict[str, torch.Tensor]:
    """Write a checkpoint with the names that replicated tables and their optimizers' state once had."""
    now, model = checkpoint.state, shard(made_for, torch.device("cpu"))

    def before(model) -> dict:
        found = now(model)
        for key, values in model.optimizers["replicated"].state_dict()["state"].items():
            stored = checkpoint.stored_name(key)
            del found["optimizer_tables"][stored]
            found.setdefault("optimizer_replicated", {})[key] = values
            found["model"][key.removeprefix("model.")] = found["model"].pop(stored.removeprefix("model."))
        return found

    checkpoint.state = before
    try:
        save(made_for, path, 3, model)
    finally:
        checkpoint.state = now
    return everything(model)


@pytest.mark.parametrize("kind", often({kind: kind for kind in STATE}, ["rowwise_adagrad, decay", "adam"]))
@pytest.mark.some(1)
def test_a_checkpoint_with_the_names_that_replicated_tables_once_had_loads(two_ranks, tmp_path, kind):
    wanted = two_ranks.run(save_as_before, sharded("data_parallel", kind), tmp_path)[0]
    path = run_folder.checkpoint(tmp_path, 3)
    for way in ("data_parallel", "row_wise"):
        for each in two_ranks.run(resumed, sharded(way, kind), path):
            assert each.keys() == wanted.keys()
            for name, value in wanted.items():
                assert torch.equal(each[name], value), name
