"""Combined gradients under sharding are those of plain PyTorch that runs one backward pass per task."""

import copy
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torchjd.aggregation import PCGrad

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import ModelConfig, Recipe, Task
from livetrain.modules.batch import Batch
from livetrain.modules.gradients import combiner as gradients
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers import jagged
from livetrain.modules.model import Model
from livetrain.modules.models.registry import register_model
from livetrain.modules.network import REGULARISER, TARGETS, Network
from livetrain.trainers.runtime import ranks, run_folder
from livetrain.trainers.train.loop import Job
from livetrain.trainers.train.sharding import shard
from tests import samples, slow_losses, twins
from tests.cases import often
from tests.trainers.train.test_loop import job, log, same, train
from tests.trainers.train.test_sharding import whole

STEPS = 20
TASKS = {
    "click": {"label": "click"},
    "like": {"label": "like", "weight": 0.7},
    "watch": {"label": "watch", "kind": "watch_time", "weight": 0.1, "unknown": True},
}
CPU = torch.device("cpu")
ATTENTION = {
    "attention": [{"query": ["movie"], "events": ["history"], "side": ["rating"]}],
    "attention_units": [8],
}
CGC = {"kind": "cgc", "shared": 2, "expert_units": [8], "tower_units": [4], **ATTENTION}


def recipe(kind: str, **changes) -> Recipe:
    made = {
        "model": CGC,
        "tasks": TASKS,
        "gradients__kind": kind,
        # The first step of Adagrad is g / |g|, which tells rounding errors of zero from zero; contrary tasks cancel.
        "optimizers__sparse__eps": 1e-3,
    }
    return twins.recipe(**(made | changes))


def batches(made_for: Recipe) -> list[Batch]:
    """Global batches in which the second task mostly wants the contrary of the first."""
    out = twins.batches(made_for, STEPS)
    generator = torch.Generator().manual_seed(5)
    for batch in out:
        contrary = torch.rand(len(batch.labels), generator=generator) < 0.9
        batch.labels[:, 1] = torch.where(contrary, 1 - batch.labels[:, 0], batch.labels[:, 1])
    return out


# The reference: tables are ordinary parameters on one rank, and nothing of gradients.combination is used.


def with_torchjd(gram: torch.Tensor, losses: torch.Tensor, step: int, seed: int) -> torch.Tensor:
    torch.manual_seed(seed * 1_000_003 + step)
    return PCGrad().gramian_weighting(gram)


def gradients_by_task(model: Model, made_for: Recipe, batch: Batch):
    """Return losses and, by task, gradients at the embeddings (or the trunk's input) and of the dense parameters.

    A parameter that a task's loss does not depend on has no gradient of that task: None.
    """
    at_trunk = made_for.gradients.scope == "trunk"
    with mock.patch.object(type(model.dense), "forward", lambda _, *inputs: inputs):  # what the dense part gets
        values, lengths, numbers, *_ = model(batch.ids, batch.dense, batch.weights)
    below = list(values.values())
    seen = []
    if at_trunk:
        handle = model.dense.network.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        logits = model.dense(values, lengths, numbers, batch.weights)
        handle.remove()
        below = seen
    else:
        seen = [value.detach().requires_grad_() for value in below]
        logits = model.dense(dict(zip(values, seen, strict=True)), lengths, numbers, batch.weights)
    names, parameters = zip(*model.dense.named_parameters(), strict=True)
    losses, at_cut, dense = [], [], []
    answers = logits.get(TARGETS, torch.ones(len(batch.weights), dtype=torch.long))  # of each row
    for number, (task, declared) in enumerate(made_for.tasks.items()):
        known = (batch.weights > 0) & ~batch.labels[:, number].isnan()
        grouped = None if batch.task_groups is None else batch.task_groups[known, 0]
        known, labels = (one.repeat_interleave(answers) for one in (known, batch.labels[:, number]))
        groups = grouped if task in made_for.groups() else None
        weights = torch.ones(int(known.sum()))
        own = slow_losses.loss(declared, logits[task][known], labels[known], weights, groups)
        loss = declared.weight * own
        found = torch.autograd.grad(loss, [*seen, *parameters], retain_graph=True, allow_unused=True)
        losses.append(loss.detach())
        at_cut.append([torch.zeros_like(s) if g is None else g for s, g in zip(seen, found, strict=False)])
        dense.append(dict(zip(names, found[len(seen) :], strict=True)))
    regulariser = logits.get(REGULARISER)
    extra = []  # its gradients, where it lies above the cut
    if regulariser is not None and not at_trunk:
        extra = torch.autograd.grad(regulariser, [*seen, *parameters], materialize_grads=True)
    return torch.stack(losses).double(), below, at_cut, dense, (regulariser, extra)


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1).double() for tensor in tensors])


def combiner_of(made_for: Recipe) -> gradients.Combiner:
    """Return the combiner of a recipe with the tasks of `recipe`, whose losses are log 2, .7 log 2 and not known."""
    initial = torch.tensor([math.log(2), 0.7 * math.log(2), 0], dtype=torch.float64)
    return gradients.combiner(made_for.gradients, gradients.Start(initial, made_for.train.seed))


def row_by_row(gradients_: list[torch.Tensor], seed: int, step: int) -> torch.Tensor:
    """Return the whole of torchjd's PCGrad in each row of the tasks' gradients (n, d) of a table."""
    out = []
    for rows in torch.stack(gradients_, 1):
        torch.manual_seed(seed * 1_000_003 + step)
        out.append(PCGrad()(rows.double()))
    return torch.stack(out).to(gradients_[0])


def train_reference(made_for: Recipe, combine: Callable) -> dict:
    """Train one plain model; `combine(gram, losses, step)` gives the weights of the tasks."""
    model = Model(made_for)
    tables = model.table_weights()
    state = {name: torch.zeros_like(weight) for name, weight in tables.items()}
    optimizer = torch.optim.SGD(model.dense.parameters(), lr=made_for.optimizers.dense.lr)
    at_trunk = made_for.gradients.scope == "trunk"
    used, conflicts = [], 0
    for step, batch in enumerate(batches(made_for)):
        model.zero_grad()
        losses, below, at_cut, dense, (regulariser, extra) = gradients_by_task(model, made_for, batch)
        reach = {name: [t for t, each in enumerate(dense) if each[name] is not None] for name in dense[0]}
        if at_trunk:  # parameters below get theirs from the one pass below
            above = {name for name in reach if name.startswith(("network.trunk.", "network.heads."))}
        else:
            above = set(reach)
        shared = [name for name in reach if name in above and len(reach[name]) > 1]
        filled = [
            [torch.zeros_like(p) if each[n] is None else each[n] for n, p in model.dense.named_parameters()]
            for each in dense
        ]
        filled = [dict(zip(reach, each, strict=True)) for each in filled]
        jacobian = torch.stack(
            [
                flat([*cut] if at_trunk else [*cut, *(each[name] for name in shared)])
                for cut, each in zip(at_cut, filled, strict=True)
            ]
        )
        gram = jacobian @ jacobian.T
        conflicts += bool((gram < 0).any())
        used.append(combine(gram, losses, step))
        w = used[-1].float()
        if not at_trunk and made_for.gradients.kind == "pcgrad":  # the whole of torchjd, gradients and all
            torch.manual_seed(made_for.train.seed * 1_000_003 + step)
            assert torch.allclose(PCGrad()(jacobian), used[-1] @ jacobian, atol=1e-12)
        grads = [sum(w[t] * cut[i] for t, cut in enumerate(at_cut)) for i in range(len(below))]
        if regulariser is not None and at_trunk:
            below, grads = [*below, regulariser], [*grads, torch.ones(())]
        elif regulariser is not None:
            grads = [grad + more for grad, more in zip(grads, extra, strict=False)]
        if made_for.gradients.scope == "rows":
            ways = [*at_cut, *([extra[: len(below)]] if extra else [])]
            found = [torch.autograd.grad(below, [*tables.values()], way, retain_graph=True) for way in ways]
            for weight, *each in zip(tables.values(), *found, strict=True):
                weight.grad = row_by_row(each[: len(at_cut)], made_for.train.seed, step) + sum(each[len(at_cut) :])
        elif below:
            torch.autograd.backward(below, grads)  # through the bottom too, if that is below
        for name, parameter in model.dense.named_parameters():
            if name in shared:
                parameter.grad = sum(w[t] * each[name] for t, each in enumerate(filled))
            elif name in above and reach[name]:
                parameter.grad = dense[reach[name][0]][name]
        for parameter, more in zip(model.dense.parameters(), extra[len(below) :], strict=False):
            parameter.grad += more
        if made_for.optimizers.dense.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.dense.parameters(), made_for.optimizers.dense.clip_norm)
        optimizer.step()
        touched = twins._touched(made_for, model, batch)
        with torch.no_grad():
            for name, weight in tables.items():
                twins._update(made_for.optimizer(name), weight, state[name], touched[name])
        if getattr(combine, "looks_again", False):
            combine.learn(losses, gradients_by_task(copy.deepcopy(model), made_for, batch)[0])
    return {
        "tables": {name: weight.detach().float() for name, weight in tables.items()},
        "dense": {name: value.detach() for name, value in model.dense.state_dict().items()},
        "weights": torch.stack(used),
        "conflict": conflicts / STEPS,
    }


def train_sharded(made_for: Recipe, batched: bool = False) -> dict:
    """Train; `batched`: with the tasks' passes as one, as a GPU has them."""
    sharded = shard(made_for, CPU)
    if batched:
        sharded.pipeline.combination.batches = None
    rank, world = dist.get_rank(), dist.get_world_size()
    feed = iter([twins.part(batch, rank, world) for batch in batches(made_for)])
    sharded.module.train()
    sharded.set_rates(1.0)
    seen = []
    for step in range(STEPS):
        ranks.seed_step(1, step)
        sharded.pipeline.progress(feed)
        seen.append(sharded.pipeline.combination.monitor.read())
    sharded.check_pipelined()
    if batched:
        assert sharded.pipeline.combination.batches
    tables = {k.split(".")[-2]: v for k, v in sharded.model.state_dict().items() if k.startswith("tables.")}
    return {
        "tables": whole(tables),
        "dense": {k: v.detach().clone() for k, v in sharded.model.dense.state_dict().items()},
        "learned": {k: v.clone() for k, v in sharded.pipeline.combination.combiner.state_dict().items()},
        "seen": seen,
    }


def compare(found: dict, wanted: dict, tolerance: float = 1e-5) -> None:
    for name, value in wanted["dense"].items():
        assert torch.allclose(found["dense"][name], value, atol=tolerance, rtol=0), name
    for name, value in wanted["tables"].items():
        assert torch.allclose(found["tables"][name], value, atol=tolerance, rtol=0), name
    if found["seen"][0]:
        weights = torch.tensor([[step[f"grad.{task}.weight"] for task in TASKS] for step in found["seen"]])
        assert torch.allclose(weights.double(), wanted["weights"], atol=1e-4)


SHARDINGS = {
    "tables and rows": {},
    "rows": {"tables__movie__sharding": "row_wise", "tables__rating__sharding": "row_wise"},
    "columns and SGD": {"optimizers__sparse__kind": "sgd", "tables__movie__sharding": "column_wise"},
    "replicated": {"tables__user__sharding": "data_parallel", "tables__movie__sharding": "data_parallel"},
    "all replicated": {f"tables__{name}__sharding": "data_parallel" for name in ("user", "movie", "rating")},
}
every_sharding = pytest.mark.parametrize("changes", often(SHARDINGS, ("columns and SGD", "replicated")))
both_scopes = pytest.mark.parametrize("scope", ["shared", "trunk"])


@every_sharding
@both_scopes
def test_pcgrad_equals_torchjd_on_one_rank_and_on_two(two_ranks, changes, scope):
    made_for = recipe("pcgrad", gradients__scope=scope, **changes)
    wanted = train_reference(made_for, lambda *given: with_torchjd(*given, seed=made_for.train.seed))
    assert wanted["conflict"] > 0.5  # or there would be nothing to project
    with ranks.alone(cuda=False):
        compare(train_sharded(made_for), wanted)
    first, second = two_ranks.run(train_sharded, made_for, scope == "shared")
    compare(first, wanted)
    assert all(torch.equal(first["dense"][k], second["dense"][k]) for k in first["dense"])
    conflicts = [step["grad.conflict"] for step in first["seen"]]
    assert sum(conflicts) / STEPS == pytest.approx(wanted["conflict"])


MODELS = {
    "din": {"kind": "din", "units": [8], **ATTENTION},
    "shared bottom": {"kind": "shared_bottom", "shared_units": [8], "tower_units": [4], **ATTENTION},
    "esmm": {"kind": "esmm", "chains": [["click", "like"]], "tower_units": [4], **ATTENTION},
    "mmoe": {"kind": "mmoe", "experts": 3, "expert_units": [8], "tower_units": [4], **ATTENTION},
    "ple": {**CGC, "kind": "ple", "levels": 2},
    "pepnet": {"kind": "pepnet", "domain": ["rate"], "personal": ["user"], "tower_units": [4], **ATTENTION},
    "hstu": {"kind": "hstu", "width": 8, "length": 6, "tower_units": [4], "attention": ATTENTION["attention"]},
    "twin": {"kind": "twin", "search": ATTENTION["attention"], "nearest": 2, "tower_units": [4]},
    "onetrans": {"kind": "onetrans", "width": 8, "newest": 3, "tower_units": [4], "attention": ATTENTION["attention"]},
    "rankmixer": {"kind": "rankmixer", "tokens": 4, "width": 8, "tower_units": [4], **ATTENTION},
    "ensemble": {"kind": "ensemble", "members": 2, "of": {"kind": "shared_bottom", "tower_units": [4], **ATTENTION}},
}


ALL = {f"{name}-{scope}": (name, scope) for name in MODELS for scope in ("shared", "trunk")}
del ALL["din-trunk"], ALL["ensemble-trunk"]


@pytest.mark.parametrize(("model", "scope"), often(ALL, ("din-shared", "esmm-trunk", "mmoe-shared", "ple-trunk")))
@pytest.mark.some(1)
def test_every_multi_task_model_learns_as_torchjd_would_have_it(two_ranks, model, scope):
    made_for = recipe("pcgrad", model=MODELS[model], gradients__scope=scope)
    wanted = train_reference(made_for, lambda *given: with_torchjd(*given, seed=made_for.train.seed))
    assert wanted["conflict"] > 0.2
    compare(two_ranks.run(train_sharded, made_for)[0], wanted)


LOSSES = {
    "click": {"label": "click", "kind": "jrc", "group": "request"},
    "like": {"label": "like", "kind": "pairwise", "group": "request", "weight": 0.7},
    "watch": {"label": "watch", "kind": "ordinal", "thresholds": [1, 4], "unknown": True},
}


@both_scopes
@pytest.mark.some(1)
def test_losses_over_groups_are_combined_too(two_ranks, scope):
    made_for = recipe("pcgrad", gradients__scope=scope, tasks=LOSSES)
    wanted = train_reference(made_for, lambda *given: with_torchjd(*given, seed=made_for.train.seed))
    assert wanted["conflict"] > 0.2
    compare(two_ranks.run(train_sharded, made_for)[0], wanted)


SECTIONS = {
    "sum": {},
    "gradnorm": {"lr": 1.0},
    "uncertainty": {"lr": 0.1},
    "famo": {"lr": 0.1},
    "upgrad": {"average": 0.5},
    "nash_mtl": {"scale": "method"},
    "mgda": {},
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in ("sum", "nash_mtl", "mgda"))) for kind in SECTIONS]
)
@both_scopes
def test_the_other_combiners_equal_a_backward_pass_a_task(two_ranks, kind, scope):
    made_for = recipe(kind, gradients={"kind": kind, "scope": scope, **SECTIONS[kind]})
    if kind in ("sum", "famo"):
        made_for = recipe(kind, gradients=dict(made_for.gradients), tables__rating__sharding="data_parallel")
    combiner = combiner_of(made_for)
    wanted = train_reference(made_for, combiner)
    if kind != "sum":
        assert (wanted["weights"] - 1).abs().max() > 0.05
    with ranks.alone(cuda=False):
        compare(train_sharded(made_for), wanted)
    first, _ = two_ranks.run(train_sharded, made_for)
    compare(first, wanted)
    for name, value in combiner.state_dict().items():
        assert torch.allclose(first["learned"][name], value, atol=1e-3 if kind == "famo" else 1e-5), name


def test_famo_bears_batches_that_tell_nothing_of_a_task(monkeypatch):
    """The weight of such a task must divide what is the task's own."""
    made_for = recipe("famo")
    some = batches(made_for)
    for batch in some[::2]:
        batch.labels[:, 2] = float("nan")
    monkeypatch.setattr(sys.modules[__name__], "batches", lambda _: some)
    with ranks.alone(cuda=False):
        found = train_sharded(made_for)
    assert all(value.isfinite().all() for part in ("dense", "tables", "learned") for value in found[part].values())
    assert [step["grad.watch.weight"] == 1 for step in found["seen"]] == [True, False] * (STEPS // 2)


def test_a_second_look_sees_the_draws_of_the_first(two_ranks):
    still = {"optimizers": {"sparse": {"lr": 1e-30}, "dense": {"lr": 1e-30}}, "model": CGC | {"dropout": 0.5}}
    made_for = recipe("famo", train__seed=1, **still)
    for found in two_ranks.run(train_sharded, made_for):
        assert not found["learned"]["logits"].any()  # no loss has changed
        assert found["learned"]["steps"] == STEPS
    moving = recipe("famo", train__seed=1, model=still["model"])
    assert two_ranks.run(train_sharded, moving)[0]["learned"]["logits"].abs().max() > 1e-3


LEARNED = {
    "features__vector": {"type": "vector", "width": 5, "projection": 3},
    "features__mixed": {"type": "autodis", "dim": 4, "embeddings": 6},
    "features__tags": {"type": "bag", "table": "tag", "weights": "w"},
    "features__both": {"type": "cross", "table": "tag", "of": ["user", "movie"]},
    "tables__tag": {"rows": 50, "dim": 8, "sharding": "row_wise", "init_std": 0.1},
}


@pytest.mark.parametrize(("kind", "scope"), [("pcgrad", "shared"), ("pcgrad", "trunk"), ("gradnorm", "shared")])
@pytest.mark.some(1)
def test_what_is_learned_of_numbers_and_bags_is_combined_too(two_ranks, kind, scope):
    made_for = recipe(kind, gradients__scope=scope, **LEARNED)
    wanted = train_reference(made_for, combiner_of(made_for))
    first, second = two_ranks.run(train_sharded, made_for)
    compare(first, wanted)
    assert all(torch.equal(first["dense"][k], second["dense"][k]) for k in first["dense"])
    begun = Model(made_for).dense.state_dict()
    learned = [name for name in begun if name.startswith("encode.")]
    assert learned
    assert not any(torch.equal(begun[name], first["dense"][name]) for name in learned)


def test_a_model_of_dense_features_alone():
    small = {"features": {"rate": {"type": "dense"}}, "tables": {}}
    small["model"] = {"kind": "cgc", "expert_units": [8], "tower_units": [4]}
    made_for = recipe("pcgrad", **small)
    wanted = train_reference(made_for, lambda *given: with_torchjd(*given, seed=made_for.train.seed))
    with ranks.alone(cuda=False):
        compare(train_sharded(made_for), wanted)
        seen = train_sharded(recipe("pcgrad", gradients__scope="trunk", **small))["seen"]
    assert all(step["grad.click.norm"] > 0 for step in seen)


@pytest.mark.parametrize("kind", ["sum", "uncertainty"])
@both_scopes
@pytest.mark.slow
def test_measuring_changes_nothing_that_is_learned(kind, scope):
    found = []
    for every in (None, 4):
        made_for = recipe(kind, gradients={"kind": kind, "scope": scope, "measure_every": every})
        with ranks.alone(cuda=False):
            found.append(train_sharded(made_for))
    for part in ("dense", "tables"):
        for name, value in found[0][part].items():
            assert torch.allclose(found[1][part][name], value, atol=1e-5), name
    measured = [step for step, seen in enumerate(found[1]["seen"]) if "grad.conflict" in seen]
    assert measured == list(range(0, STEPS, 4))
    names = {"grad.cos.click.like", "grad.cos.click.watch", "grad.cos.like.watch"}
    assert names < set(found[1]["seen"][0])
    cosines = [[found[1]["seen"][step][name] for name in names] for step in measured]
    assert [found[1]["seen"][step]["grad.conflict"] for step in measured] == [min(each) < 0 for each in cosines]
    assert sum(min(each) < 0 for each in cosines) > 0
    assert not any("norm" in key for seen in found[0]["seen"] for key in seen)


@pytest.mark.slow
def test_pcgrad_in_bfloat16_stays_close(two_ranks):
    made_for = recipe("pcgrad", train__precision="bfloat16", gradients__scope="trunk")
    wanted = train_reference(recipe("pcgrad"), lambda *given: with_torchjd(*given, seed=1))
    found = two_ranks.run(train_sharded, made_for)[0]
    for name, value in wanted["tables"].items():
        assert torch.allclose(found["tables"][name], value, atol=0.2), name


def test_clipping_sees_the_combined_gradient(two_ranks):
    made_for = recipe("pcgrad", optimizers__dense__clip_norm=1e-3)
    before = Model(made_for).dense.state_dict()
    found = two_ranks.run(train_sharded, made_for)[0]["dense"]
    parameters = [name for name, _ in Model(made_for).dense.named_parameters()]
    moved = flat(found[name] - before[name] for name in parameters).norm()
    assert 0 < moved <= STEPS * 1e-3 * made_for.optimizers.dense.lr * 1.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradients": {"kind": "pcgrad"}}, "gradients.kind: 'pcgrad' combines the gradients of several tasks"),
        ({"gradients": {"measure_every": 5}}, "gradients.measure_every: one task has no other"),
        ({"gradients": {"kind": "pcgrad", "alpha": 1}}, "Extra inputs are not permitted"),
        ({"gradients": {"kind": "gradnorm", "measure_every": 3}}, "Extra inputs are not permitted"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        twins.recipe(**changes)


def test_a_model_without_a_trunk_is_refused():
    made_for = twins.recipe(tasks=TASKS, gradients={"kind": "pcgrad", "scope": "trunk"})
    with pytest.raises(BadInput, match="gradients.scope: 'din' has no trunk that its tasks share; use scope: shared"):
        Model(made_for, device="meta", tables_device="meta")


class ShortCutConfig(ModelConfig):
    kind: Literal["test_short_cut"] = "test_short_cut"


@register_model("test_short_cut", ShortCutConfig)
class ShortCut(Network):
    """The user's embedding goes past the trunk, straight to the logits."""

    def __init__(self, config: ShortCutConfig, inputs: Inputs, tasks: dict[str, Task]) -> None:
        super().__init__()
        self.tasks, self.trunk = list(tasks), nn.Linear(8, len(tasks))

    def forward(self, values, lengths, dense, weights=None):
        rows = jagged.rows(values["movie"], lengths["movie"])
        past = jagged.rows(values["user"], lengths["user"]).sum(1)
        return {task: logit + past for task, logit in zip(self.tasks, self.trunk(rows).unbind(1), strict=True)}


def test_a_table_that_is_read_past_the_trunk_is_not_left_untrained():
    made_for = recipe("pcgrad", model={"kind": "test_short_cut"}, gradients__scope="trunk")
    with ranks.alone(cuda=False), pytest.raises(RuntimeError, match="read past the input of the shared trunk"):
        train_sharded(made_for)


# A whole run: what combiners learn goes on after a kill, and its figures reach the log.


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return samples.write(tmp_path_factory.mktemp("samples"), rows=960)


def whole_run(data: Path, run: Path, config: dict, **changes) -> Job:
    content = {"model": CGC, "tasks": samples.MULTI_TASK["tasks"], "gradients": config, "train__epochs": 1}
    return job(data, run, **(content | changes))


KINDS = {
    "pcgrad": {"kind": "pcgrad", "scope": "trunk"},
    "gradnorm": {"kind": "gradnorm", "lr": 1.0},
    "uncertainty": {"kind": "uncertainty", "lr": 0.3, "measure_every": 2},
}
FIGURES = ("step", "loss", "samples", "grad.like.weight", "grad.like.norm", "grad.cos.click.like", "grad.conflict")


@pytest.mark.parametrize("config", often(KINDS, ("gradnorm",)))
def test_killed_and_resumed_it_is_bitwise_the_run_that_was_not(data, tmp_path, config):
    never = whole_run(data, tmp_path / "never", config, train__checkpoint_every=3)
    made = whole_run(data, tmp_path / "made", config, train__checkpoint_every=3)
    wanted = train(never)
    train(made, 7)
    found = train(made)
    assert same(found, wanted)
    lines = [
        [{k: x[k] for k in FIGURES if k in x} for x in log(run)] for run in (tmp_path / "made", tmp_path / "never")
    ]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 10
    assert all(set(FIGURES) <= set(line) for line in lines[0][::2])
    weights = [line["grad.like.weight"] for line in lines[0]]
    assert len(set(weights)) > 1


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.some(1)
def test_it_goes_on_with_another_number_of_ranks(two_ranks, data, tmp_path, first):
    slow = {"optimizers__sparse__kind": "sgd", "optimizers__dense__kind": "sgd", "train__checkpoint_every": 3}
    never = whole_run(data, tmp_path / "never", KINDS["gradnorm"], **slow)
    made = whole_run(data, tmp_path / "made", KINDS["gradnorm"], **slow)
    wanted = train(never)
    if first == 1:
        train(made, 7)
        found = two_ranks.run(train, made)[0]
    else:
        two_ranks.run(train, made, 7)
        found = train(made)
    for name, value in wanted["dense"].items():
        assert torch.allclose(found["dense"][name], value, atol=1e-5), name
    weights = [[line["grad.like.weight"] for line in log(tmp_path / run)] for run in ("made", "never")]
    assert weights[0] == pytest.approx(weights[1], abs=1e-5)


def test_another_combiner_cannot_take_a_checkpoint_over(data, tmp_path):
    train(whole_run(data, tmp_path, KINDS["pcgrad"], train__checkpoint_every=3), 7)
    with pytest.raises(BadInput, match="gradients.kind=pcgrad, but the recipe says gradnorm"):
        train(whole_run(data, tmp_path, KINDS["gradnorm"]))


def test_a_checkpoint_from_before_combiners_is_one_of_a_sum(data, tmp_path):
    made = whole_run(data, tmp_path, {"kind": "sum"}, train__checkpoint_every=3)
    train(made, 7)
    for path in run_folder.committed(tmp_path):
        content = json.loads((path / "manifest.json").read_text())
        del content["recipe"]["gradients"]
        (path / "manifest.json").write_text(json.dumps(content))
    assert train(made)["result"]["step"] == 10
