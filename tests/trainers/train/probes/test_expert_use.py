"""Gate figures: of the rows of all ranks, in the watched steps alone."""

import pytest
import torch

from livetrain.modules.model import Model
from livetrain.trainers.train.probes.expert_use import Utilisation
from tests import twins

BOTTOM = {"attention": twins.recipe().model.model_dump()["attention"], "attention_units": [8]}
TASKS = {"click": {"label": "label"}, "like": {"label": "label"}}


def recipe(**model):
    return twins.recipe(model={**BOTTOM, **model}, tasks=TASKS)


def figures(made_for, rank: int = 0, world: int = 1, spoil: bool = False) -> dict[str, float]:
    model = Model(made_for)
    (batch,) = twins.batches(made_for, 1)
    batch = twins.part(batch, rank, world)
    if spoil:
        batch.dense[batch.weights == 0] = 1e3
    watched = Utilisation(model.dense)
    with watched.watching(False):
        model(batch.ids, batch.dense, batch.weights)
    assert watched.read(batch.weights) == {}
    with watched.watching(True):
        model(batch.ids, batch.dense, batch.weights)
    found = watched.read(batch.weights)
    assert not any(module._forward_hooks for module in model.modules())
    return found


def test_names_and_sums():
    found = figures(recipe(kind="cgc", own=2, shared=1))
    experts = ["own0", "own1", "shared0"]
    assert list(found) == [f"gate.{task}.{name}" for task in TASKS for name in [*experts, "entropy"]]
    for task in TASKS:
        assert sum(found[f"gate.{task}.{name}"] for name in experts) == pytest.approx(1)
        assert 0 < found[f"gate.{task}.entropy"] < 1
    found = figures(recipe(kind="ple", levels=2))
    assert {"gate.level0.click.own0", "gate.level0.shared.like_own0", "gate.level1.like.shared0"} <= found.keys()
    assert not any(key.startswith("gate.level1.shared") for key in found)
    assert figures(twins.recipe()) == {}


def test_padding_does_not_count():
    made_for = recipe(kind="mmoe", experts=3, activation="relu")
    assert figures(made_for, spoil=True) == pytest.approx(figures(made_for))


def test_a_gate_that_takes_one_expert_has_no_entropy():
    made_for = recipe(kind="mmoe", experts=3)
    model = Model(made_for)
    gate = model.dense.network.trunk.gates[1].linear
    with torch.no_grad():
        gate.weight.zero_()
        gate.bias.copy_(torch.tensor([0.0, 1e3, 0.0]))
    (batch,) = twins.batches(made_for, 1)
    watched = Utilisation(model.dense)
    with watched.watching(True):
        model(batch.ids, batch.dense, batch.weights)
    found = watched.read(batch.weights)
    assert [found[f"gate.like.shared{i}"] for i in range(3)] == [0, 1, 0]
    assert found["gate.like.entropy"] == 0


def on_a_rank(made_for) -> dict[str, float]:
    import torch.distributed as dist

    return figures(made_for, dist.get_rank(), dist.get_world_size())


def test_two_ranks_are_averaged_by_rows(two_ranks):
    made_for = recipe(kind="mmoe", experts=3, activation="relu")
    first, second = two_ranks.run(on_a_rank, made_for)
    assert first == second == pytest.approx(figures(made_for), abs=1e-6)
