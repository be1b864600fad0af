"""Sharded equals plain: every sharding type, gradients, updates and optimizer state, on one rank and on two."""

import pytest
import torch
import torch.distributed as dist

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train.sharding import shard
from tests import twins
from tests.cases import often
from tests.pool import Pool

STEPS = 20


def whole(values: dict[str, object]) -> dict[str, torch.Tensor]:
    """Return every (possibly sharded) tensor whole, from the pieces of all ranks; a rank may hold none of one."""
    pieces = {}
    for name, value in values.items():
        shards = value.local_shards() if hasattr(value, "local_shards") else None
        if shards is None:
            pieces[name] = [(tuple(value.shape), (0,) * value.dim(), value.detach().cpu().clone())]
        else:
            pieces[name] = [
                (tuple(value.size()), tuple(s.metadata.shard_offsets), s.tensor.cpu().clone()) for s in shards
            ]
    out = {}
    for held in ranks.gather(pieces):
        for name, parts in held.items():
            for size, offsets, tensor in parts:
                total = out.setdefault(name, torch.zeros(size))
                total[tuple(slice(o, o + n) for o, n in zip(offsets, tensor.shape, strict=True))] = tensor.float()
    return out


def train_sharded(made_for: Recipe):
    device = torch.device(made_for.cluster.device)
    sharded = shard(made_for, device)
    rank, world = dist.get_rank(), dist.get_world_size()
    feed = iter([twins.part(batch, rank, world) for batch in twins.batches(made_for, STEPS)])
    sharded.module.train()
    sharded.set_rates(1.0)
    losses = []
    for step in range(STEPS):
        ranks.seed_step(1, step)
        output = sharded.pipeline.progress(feed)
        sums = torch.stack([output.loss_sums, output.weight_sums])
        dist.all_reduce(sums)
        losses.append((sums[0] / sums[1]).tolist())
    sharded.check_pipelined()
    state = {}
    for key, entry in sharded.states().get("tables", {}).items():
        state |= {key.split(".")[-2]: value for name, value in entry.items() if name.endswith(".momentum1")}
    tables = {k.split(".")[-2]: v for k, v in sharded.model.state_dict().items() if k.startswith("tables.")}
    dense = {k: v.detach().cpu().clone() for k, v in sharded.model.dense.state_dict().items()}
    return {"losses": losses, "tables": whole(tables), "dense": dense, "state": whole(state), "plan": sharded.plan()}


def compare(found: dict, made_for: Recipe, tolerance: float) -> None:
    model, losses, state = twins.train_plain(made_for, twins.batches(made_for, STEPS))
    tables = {name: weight.detach() for name, weight in model.table_weights().items()}
    weights = torch.tensor([task.weight for task in made_for.tasks.values()])
    assert torch.tensor(found["losses"]) @ weights == pytest.approx(torch.tensor(losses), abs=tolerance)
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
    "data-parallel with L2": {"optimizers__sparse__weight_decay": 0.1, "tables__user__sharding": "data_parallel"},
    # As of Adagrad: a larger eps.
    "Adam": {"optimizers__sparse": {"kind": "adam", "lr": 0.01, "eps": 1e-3}},
    "Adam on all ways": {
        "optimizers__sparse": {"kind": "adam", "lr": 0.01, "eps": 1e-3},
        "tables__user__sharding": "data_parallel",
        "tables__movie__sharding": "row_wise",
    },
    "an optimizer per table": {
        "tables__user__optimizer": {"kind": "adam", "lr": 0.01, "eps": 1e-3},
        "tables__movie__optimizer": {"kind": "sgd", "lr": 0.2},
        "tables__rating__optimizer": {"kind": "adagrad", "lr": 0.1, "eps": 1e-3},
    },
    "rates and decay per table": {
        "tables__user__optimizer": {"lr": 0.01, "eps": 1e-3, "weight_decay": 0.1},
        "tables__movie__optimizer": {"lr": 0.1, "eps": 1e-3},
        "tables__rating__sharding": "data_parallel",
        "tables__rating__optimizer": {"lr": 0.02, "eps": 1e-3, "weight_decay": 0.2},
    },
    "frozen": {
        "tables__movie__frozen": True,
        "tables__rating__frozen": True,
        "tables__rating__sharding": "data_parallel",
    },
    "in parts": {"model__activation": "relu", "train__accumulate": 4, "tables__rating__sharding": "data_parallel"},
    "running Dice in parts": {
        "model__activation": "running_dice",
        "train__accumulate": 4,
        "tables__rating__sharding": "data_parallel",
    },
    "planned": {"tables__user__sharding": "auto", "tables__movie__sharding": "auto"},
}


@pytest.mark.parametrize(
    "changes",
    often(CASES, ("Adagrad", "data-parallel with L2", "Adam", "an optimizer per table", "running Dice in parts")),
)
def test_one_rank_equals_plain(changes):
    made_for = twins.recipe(**changes)
    with ranks.alone(cuda=False):
        found = train_sharded(made_for)
    compare(found, made_for, 2e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("memory", ["gpu", "host"])
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_a_gpu_equals_plain(drawn_on_the_host, changes, memory):
    made_for = twins.recipe(**changes, cluster__device="cuda", tables__movie__memory=memory)
    with ranks.alone(cuda=True):
        found = train_sharded(made_for)
    compare(found, made_for, 2e-5)


@pytest.mark.parametrize(
    "changes",
    often(
        CASES,
        ("row-wise Adagrad with L2", "column-wise SGD", "Adam on all ways", "frozen", "running Dice in parts"),
    ),
)
def test_two_ranks_equal_plain(two_ranks, changes):
    made_for = twins.recipe(**changes)
    first, second = two_ranks.run(train_sharded, made_for)
    compare(first, made_for, 2e-6)
    assert all(torch.equal(first["dense"][k], second["dense"][k]) for k in first["dense"])


LOOSE = {
    "fp16 tables": {"tables__user__dtype": "float16", "tables__movie__dtype": "float16"},
    "fp16 on the wire": {"cluster__quantize_comms": "fp16"},
    "bf16 on the wire": {"cluster__quantize_comms": "bf16"},
    "bf16 in the dense part": {"train__precision": "bfloat16"},
}


@pytest.mark.parametrize("changes", often(LOOSE, ("fp16 tables", "bf16 in the dense part")))
@pytest.mark.slow
def test_fewer_bits_stay_close(two_ranks, changes):
    made_for = twins.recipe(**changes)
    found = two_ranks.run(train_sharded, made_for)[0]
    assert found["tables"]["user"].dtype == torch.float32
    _, losses, _ = twins.train_plain(twins.recipe(), twins.batches(made_for, STEPS))
    apart = (torch.tensor(found["losses"])[:, 0] - torch.tensor(losses)).abs().max()
    assert 0 < apart < 5e-3


def test_two_tasks_weigh_in(two_ranks):
    made_for = twins.recipe(tasks__like={"label": "like", "weight": 0.3})
    compare_tasks = two_ranks.run(train_sharded, made_for)[0]
    model, _, _ = twins.train_plain(made_for, twins.batches(made_for, STEPS))
    for name, value in model.dense.state_dict().items():
        assert torch.allclose(compare_tasks["dense"][name], value, atol=2e-6), name


BOTTOM = {"attention": twins.recipe().model.model_dump()["attention"], "attention_units": [8], "tower_units": [8]}
MODELS = {
    "shared_bottom": {"shared_units": [16]},
    "esmm": {"chains": [["click", "like"]]},
    "mmoe": {"experts": 3, "expert_units": [16]},
    "cgc": {"own": 2, "expert_units": [16]},
    "ple": {"expert_units": [16, 8]},
    "rankmixer": {"tokens": 4, "width": 8},
    "hstu": {"width": 8, "length": 6},
    "twin": {"search": BOTTOM["attention"], "nearest": 2, "head_width": 4},
    "onetrans": {"width": 8, "newest": 3},
    "pepnet": {"domain": ["rate"], "personal": ["user", "movie"], "gate_units": 8},
    "stem": {"expert_units": [16], "gate_units": [8]},
}
FACTORS = {  # these want more columns than there are tasks
    "kfm": {"l2": 0.01},
    "deepfm": {"units": [16]},
    "ensemble": {"members": 2, "of": {"kind": "kfm", "l2": 0.01}},
}
TASKS = {
    "click": {"label": "click", "negatives_kept": 0.3},
    "like": {"label": "like", "weight": 0.5, "unknown": True},
    "watch": {"label": "watch", "kind": "watch_time", "weight": 0.2, "sample_weight": "worth"},
    "gift": {"label": "gift", "kind": "regression", "weight": 0.4, "unknown": True},
}


def multi_task(kind: str) -> Recipe:
    dim = 16 if kind in FACTORS else 20
    dims = {f"tables__{table}__dim": dim for table in ("user", "movie", "rating") if kind in ("stem", *FACTORS)}
    if kind in FACTORS:
        return twins.recipe(model={"kind": kind, **FACTORS[kind]}, tasks=TASKS, **dims)
    model = {
        key: value for key, value in BOTTOM.items() if kind not in ("hstu", "onetrans") or key != "attention_units"
    }
    return twins.recipe(model={"kind": kind, **model, **MODELS[kind]}, tasks=TASKS, **dims)


@pytest.mark.parametrize("kind", often({kind: kind for kind in (*MODELS, *FACTORS)}, ("esmm", "cgc")))
@pytest.mark.some(1)
def test_multi_task_models_with_tasks_of_every_kind_equal_plain(two_ranks, kind):
    made_for = multi_task(kind)
    with ranks.alone(cuda=False):
        alone = train_sharded(made_for)
    compare(alone, made_for, 5e-6)
    first, second = two_ranks.run(train_sharded, made_for)
    compare(first, made_for, 5e-6)
    assert all(torch.equal(first["dense"][k], second["dense"][k]) for k in first["dense"])


LOSSES = {
    "click": {"label": "click", "kind": "jrc", "group": "request", "negatives_kept": 0.3},
    "like": {"label": "like", "kind": "pairwise", "group": "user", "unknown": True, "sample_weight": "worth"},
    "share": {"label": "like", "kind": "listwise", "group": "request", "unknown": True},
    "watch": {"label": "watch", "kind": "ordinal", "thresholds": [1, 3, 9], "sample_weight": "worth", "weight": 0.2},
    "gift": {"label": "gift", "kind": "quantile", "unknown": True},
}


@pytest.mark.slow
def test_losses_over_groups_that_lie_on_two_ranks_equal_plain(two_ranks):
    made_for = twins.recipe(model={"kind": "mmoe", **BOTTOM, **MODELS["mmoe"]}, tasks=LOSSES)
    with ranks.alone(cuda=False):
        alone = train_sharded(made_for)
    compare(alone, made_for, 1e-5)
    first, second = two_ranks.run(train_sharded, made_for)
    compare(first, made_for, 1e-5)
    assert all(torch.equal(first["dense"][k], second["dense"][k]) for k in first["dense"])


def test_tables_that_fit_nowhere_are_refused():
    made_for = twins.recipe(
        tables__user__rows=2**30, tables__user__dim=128, tables__movie__dim=128, cluster__topology={"ddr_gb": 1}
    )
    with ranks.alone(cuda=False), pytest.raises(BadInput, match="no sharding plan fits 1 worker of"):
        shard(made_for, torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tables__movie__sharding": "column_wise"},
            "column_wise splits rows, and of parts .rowwise_adagrad. would .* adagrad or sgd or adam",
        ),
        ({"optimizers__sparse": {"kind": "sgd", "weight_decay": 0.1}}, "weight_decay"),
        (
            {"tables__user__optimizer": {"kind": "adam", "weight_decay": 0.1}},
            "tables.user.optimizer.weight_decay: 'adam' ignores it on some devices",
        ),
        (
            {"tables__user__frozen": True, "tables__user__optimizer": {"kind": "sgd"}},
            "tables.user: a frozen table has no optimizer; leave out one of the two keys",
        ),
        (
            {"tables__user__optimizer": {"kind": "adma"}},
            "tables.user.optimizer.kind: there is no|adma",
        ),
        (
            {"cluster__workers": 5},
            "12 shards do not divide among 5 workers; data.shards of 10 with a data.batch_size of 50 would",
        ),
        ({"cluster__workers": 8}, "12 shards do not divide among 8 workers; data.shards of 8, 16, 24, 48 would"),
        ({"data__batch_size": 50}, "50 rows do not divide among 12 data.shards; 48, 60 would"),
    ],
)
def test_what_would_compute_something_else_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        twins.recipe(**changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["Adam on all ways", "an optimizer per table", "rates and decay per table", "in parts"]
)
def test_four_ranks_equal_plain(name):
    made_for = twins.recipe(**CASES[name])
    pool = Pool(4)
    try:
        compare(pool.run(train_sharded, made_for)[0], made_for, 2e-6)
    finally:
        pool.close()
