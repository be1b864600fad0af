"""Training on requests: the updates of flat data, on one rank and on two."""

import pytest
import torch
import torch.distributed as dist

from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Batch
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train.sharding import shard
from tests import twins
from tests.cases import often
from tests.modules.test_requests import CASES
from tests.pool import Pool
from tests.shared_rows import USER, shared
from tests.trainers.train.test_sharding import STEPS, whole

TABLES = {name: {"rows": 60, "dim": 8, "sharding": "row_wise"} for name in ("user", "movie")}
TWO = [{"query": ["movie"], "events": [name]} for name in ("history", "rating")]
KINDS = {
    "din": {},
    "sasrec": CASES["sasrec"],
    "farm": {
        "model": {**CASES["farm, two domains"]["model"], "attention": TWO},
        "features__rating__table": "movie",
        "tables": TABLES,
    },
    "bags": {key: value for key, value in CASES["dnn"].items() if key != "users"},
    "lists": {"tasks": {"click": {"label": "label", "kind": "listwise", "group": "session"}}},
    "retrieval": CASES["dssm"],
    "replicated": {"tables__user__sharding": "data_parallel"},
}


def parts(made_for: Recipe, rank: int, world: int, requests: bool) -> list[Batch]:
    """Each step's rows of a rank, flat or as requests."""
    users = (*USER, "tags", "clock")
    return [shared(twins.part(batch, rank, world), users)[requests] for batch in twins.batches(made_for, STEPS)]


def train(made_for: Recipe, requests: bool):
    sharded = shard(made_for, torch.device("cpu"))
    feed = iter(parts(made_for, dist.get_rank(), dist.get_world_size(), requests))
    sharded.module.train()
    sharded.set_rates(1.0)
    losses = []
    for step in range(STEPS):
        ranks.seed_step(1, step)
        output = sharded.pipeline.progress(feed)
        losses.append((output.loss_sums.tolist(), output.weight_sums.tolist()))
    if "tables" in sharded.optimizers:
        sharded.check_pipelined()
    tables = {k.split(".")[-2]: v for k, v in sharded.model.state_dict().items() if k.startswith("tables.")}
    dense = {k: v.detach().clone() for k, v in sharded.model.dense.state_dict().items()}
    return {"losses": losses, "tables": whole(tables), "dense": dense}


def _same(found: dict, wanted: dict) -> None:
    torch.testing.assert_close(torch.tensor(found["losses"]), torch.tensor(wanted["losses"]), atol=2e-5, rtol=1e-6)
    for part in ("tables", "dense"):
        for name, weight in wanted[part].items():
            torch.testing.assert_close(
                found[part][name], weight, atol=1e-6, rtol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("name", often({name: name for name in KINDS}, ["farm"]))
def test_two_ranks_learn_of_requests_what_they_learn_of_rows(two_ranks: Pool, name):
    made_for = twins.recipe(**KINDS[name])
    for found, wanted in zip(two_ranks.run(train, made_for, True), two_ranks.run(train, made_for, False), strict=True):
        _same(found, wanted)


@pytest.mark.slow
def test_one_rank_learns_of_requests_what_plain_pytorch_learns_of_rows():
    made_for = twins.recipe()
    with ranks.alone(cuda=False):
        found = train(made_for, True)
    model, _, _ = twins.train_plain(made_for, parts(made_for, 0, 1, False))
    for table, weight in model.table_weights().items():
        torch.testing.assert_close(found["tables"][table], weight.detach(), atol=1e-6, rtol=1e-6)
    for key, value in model.dense.state_dict().items():
        torch.testing.assert_close(found["dense"][key], value, atol=1e-6, rtol=1e-6)
