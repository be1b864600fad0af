"""Sharded equals plain: every sharding type, gradients, updates and optimizer state, on one rank and on two."""

import pytest
import torch
import torch.distributed as dist

from configs.schema import Recipe
from tests import twins
from trainers import ranks
from trainers.sharding import shard

STEPS = 20


def whole(values: dict[str, object]) -> dict[str, torch.Tensor]:
    """Return every (possibly sharded) tensor whole, from the pieces of all ranks; a rank may hold none of one."""
    pieces = {}
    for name, value in values.items():
        shards = value.local_shards() if hasattr(value, "local_shards") else None
        if shards is None:
            pieces[name] = [(tuple(value.shape), (0,) * value.dim(), value.detach().clone())]
        else:
            pieces[name] = [(tuple(value.size()), tuple(s.metadata.shard_offsets), s.tensor.clone()) for s in shards]
    out = {}
    for held in ranks.gather(pieces):
        for name, parts in held.items():
            for size, offsets, tensor in parts:
                total = out.setdefault(name, torch.zeros(size))
                total[tuple(slice(o, o + n) for o, n in zip(offsets, tensor.shape, strict=True))] = tensor.float()
    return out


def train_sharded(made_for: Recipe, device: torch.device = torch.device("cpu")):
    sharded = shard(made_for, device)
    rank, world = dist.get_rank(), dist.get_world_size()
    feed = iter([twins.part(batch, rank, world) for batch in twins.batches(made_for, STEPS)])
    sharded.module.train()
    sharded.set_rates(1.0)
    losses = []
    for step in range(STEPS):
        ranks.seed_step(1, step)
        output = sharded.pipeline.progress(feed)
        sums = torch.cat([output.loss_sums, output.count.reshape(1)])
        dist.all_reduce(sums)
        losses.append((sums[:-1] / sums[-1]).tolist())
    sharded.check_pipelined()
    state = {}
    if "tables" in sharded.optimizers:
        for key, entry in sharded.optimizers["tables"].state_dict()["state"].items():
            state |= {key.split(".")[-2]: value for value in entry.values()}
    tables = {k.split(".")[-2]: v for k, v in sharded.model.state_dict().items() if k.startswith("tables.")}
    dense = {k: v.detach().clone() for k, v in sharded.model.dense.state_dict().items()}
    return {"losses": losses, "tables": whole(tables), "dense": dense, "state": whole(state), "plan": sharded.plan()}


def compare(found: dict, made_for: Recipe, tolerance: float) -> None:
    model, losses, state = twins.train_plain(made_for, twins.batches(made_for, STEPS))
    tables = {n: e.weight.detach() for c in model.tables.values() for n, e in c.embeddings.items()}
    assert torch.tensor(found["losses"])[:, 0] == pytest.approx(torch.tensor(losses), abs=tolerance)
    for name, weight in tables.items():
        assert torch.allclose(found["tables"][name], weight.float(), atol=tolerance), name
        if name in found["state"]:
            wanted = state[name] if found["state"][name].dim() == 2 else state[name][:, 0]
            assert torch.allclose(found["state"][name], wanted, atol=tolerance), f"state of {name}"
    for name, value in model.dense.state_dict().items():
        assert torch.allclose(found["dense"][name], value, atol=tolerance), name


CASES = {
    "rows and tables, row-wise Adagrad": {},
    "row-wise Adagrad with L2": {"optimizers__sparse__weight_decay": 0.1},
    # A larger eps: the first step of Adagrad is g / |g|, which tells rounding errors of zero from zero.
    "Adagrad": {"optimizers__sparse__kind": "adagrad", "optimizers__sparse__eps": 1e-3},
    "SGD": {"optimizers__sparse__kind": "sgd"},
    "column-wise SGD": {"optimizers__sparse__kind": "sgd", "tables__movie__sharding": "column_wise"},
    "data-parallel": {"tables__rating__sharding": "data_parallel", "tables__movie__sharding": "row_wise"},
    "data-parallel SGD": {"optimizers__sparse__kind": "sgd", "tables__user__sharding": "data_parallel"},
    "planned": {"tables__user__sharding": "auto", "tables__movie__sharding": "auto"},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_one_rank_equals_plain(changes):
    made_for = twins.recipe(**changes)
    with ranks.alone(cuda=False):
        found = train_sharded(made_for)
    compare(found, made_for, 2e-6)


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_two_ranks_equal_plain(two_ranks, changes):
    made_for = twins.recipe(**changes)
    first, second = two_ranks.run(train_sharded, made_for)
    compare(first, made_for, 2e-6)
    assert all(torch.equal(first["dense"][k], second["dense"][k]) for k in first["dense"])
