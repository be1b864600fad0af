"""An ensemble answers the mean of its members, and teaches each as though it were alone."""

import pytest
import torch
from torch.nn import functional

from livetrain.configs.registry import parse_model
from livetrain.configs.schema import Task
from livetrain.modules.inputs import Inputs
from livetrain.modules.model import Model
from livetrain.modules.models.registry import network
from livetrain.modules.network import REGULARISER, TARGETS
from livetrain.modules.serving.proof import prove
from tests import twins

COUNT, ROWS = 3, 4
LENGTHS = {"user": [1, 0, 1, 1], "movie": [1, 1, 1, 0], "seen": [3, 0, 1, 2]}
TASKS = {"click": Task(label="click"), "like": Task(label="like", negatives_kept=0.5)}
DEEPFM = {"kind": "deepfm", "products": "kernel", "units": [5], "dropout": 0.0, "l2": 0.3}
RANKED = {"kind": "rankmixer", "pooled": ["seen"], "tokens": 3, "width": 6, "tower_units": [4]}


def inputs_of(dim: int) -> Inputs:
    """Of a member's dim: a movie has twice of it, and events carry two numbers of a vector too."""
    dims, like = {"user": dim, "movie": 2 * dim}, {"seen": "picture"}
    return Inputs(dims, {"seen": dim + 2}, ["age", "picture", "picture"], like=like, limits={"seen": 5})


def build(keys: dict, dim: int):
    torch.manual_seed(2)
    config = parse_model(keys)
    return network(config.kind)(config, inputs_of(dim), TASKS).double()


def drawn(dim: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    sizes = {"user": dim, "movie": 2 * dim, "seen": dim + 2}
    values = {name: torch.randn(sum(LENGTHS[name]), size).double() for name, size in sizes.items()}
    return values, {name: torch.tensor(LENGTHS[name]) for name in sizes}, torch.randn(ROWS, 3).double()


def parts(values: dict[str, torch.Tensor], k: int) -> dict[str, torch.Tensor]:
    """What the k-th of the members reads: its columns of each table's, and all of the vectors."""
    tables = {name: value[:, :-2] if name == "seen" else value for name, value in values.items()}
    own = {name: table.chunk(COUNT, 1)[k] for name, table in tables.items()}
    return own | {"seen": torch.cat([own["seen"], values["seen"][:, -2:]], 1)}


def cost(answer: dict[str, torch.Tensor], labels: dict[str, torch.Tensor], each: int) -> torch.Tensor:
    """The tasks' mean log loss, of every row `each` times, and what the network adds."""
    losses = [
        functional.binary_cross_entropy_with_logits(answer[task], labels[task].repeat_interleave(each))
        for task in TASKS
    ]
    return sum(losses) + answer.get(REGULARISER, 0.0)


@pytest.mark.parametrize("of", [DEEPFM, RANKED], ids=["deepfm", "rankmixer"])
def test_members_score_and_learn_as_they_do_alone(of):
    ensemble = build({"kind": "ensemble", "members": COUNT, "of": of}, 4 * COUNT)
    alone = [build(of, 4) for _ in range(COUNT)]
    for one, member in zip(alone, ensemble.members, strict=True):
        one.load_state_dict(member.state_dict())
    first, second = (list(one.parameters())[-2] for one in ensemble.members[:2])
    assert not torch.equal(first, second)  # or an ensemble would be one network
    values, lengths, dense = drawn(4 * COUNT)
    labels = {task: torch.rand(ROWS).round().double() for task in TASKS}

    scores = ensemble.eval()(values, lengths, dense, None)
    for task in TASKS:
        each = [one.eval()(parts(values, k), lengths, dense, None)[task] for k, one in enumerate(alone)]
        torch.testing.assert_close(scores[task], torch.stack(each).mean(0))

    rows = {name: value.clone().requires_grad_() for name, value in values.items()}
    answer = ensemble.train()(rows, lengths, dense, torch.ones(ROWS))
    assert answer[TARGETS].tolist() == [COUNT] * ROWS
    cost(answer, labels, COUNT).backward()
    for k, (one, member) in enumerate(zip(alone, ensemble.members, strict=True)):
        own = {name: value.clone().requires_grad_() for name, value in parts(values, k).items()}
        cost(one.train()(own, lengths, dense, torch.ones(ROWS)), labels, 1).backward()
        found = {name: parameter.grad * COUNT for name, parameter in member.named_parameters()}
        wanted = {name: parameter.grad for name, parameter in one.named_parameters()}
        torch.testing.assert_close(found, wanted)
        for name, gradient in parts({n: row.grad for n, row in rows.items()}, k).items():
            width = 4 if name == "seen" else None  # the vectors' columns have the gradients of all members
            torch.testing.assert_close(gradient[:, :width] * COUNT, own[name].grad[:, :width])


def test_an_ensemble_can_be_exported_and_learns_a_batch_in_parts():
    of = {**twins.recipe().model.model_dump(), "activation": "relu"}
    del of["kind"]
    made = {"kind": "ensemble", "members": 2, "of": {"kind": "din", **of}}
    prove(twins.recipe(model=made))
    prove(twins.recipe(model=made, train__accumulate=2))


REFUSED = {
    "a dim that does not divide": (
        {"kind": "ensemble", "members": 3, "of": {"kind": "dnn"}},
        {"tables__user__dim": 8},
        r"model.members: the table of features.user has dim 8, .* among 3 members; use a dim of 6 or 9",
    ),
    "fewer columns than members": (
        {"kind": "ensemble", "members": 16, "of": {"kind": "dnn"}},
        {"tables__user__dim": 8},
        r"dim 8, .* among 16 members; use a dim of 16$",
    ),
    "a wrong key of a member": (
        {
            "kind": "ensemble",
            "members": 2,
            "of": {"kind": "din", "attention": [{"query": ["mov"], "events": ["seen"]}]},
        },
        {},
        r"^model\.of, with 1/2 of every table's dim: model.attention.0",
    ),
    "trees": ({"kind": "ensemble", "of": {"kind": "gbdt"}}, {}, r"model.of.kind: 'gbdt' is fitted"),
    "rows of a group": (
        {"kind": "ensemble", "members": 2, "of": {"kind": "dnn"}},
        {"tasks": {"click": {"label": "click", "kind": "jrc", "group": "request"}}},
        r"tasks.click.kind: 'jrc' compares rows of a group, and 'ensemble' learns several",
    ),
    "towers": (
        {"kind": "ensemble", "members": 2, "of": {"kind": "dssm", "key": "movie"}},
        {},
        r"model.of.kind: 'dssm' finds items, compares ids",
    ),
    "ensembles": (
        {"kind": "ensemble", "members": 2, "of": {"kind": "ensemble", "members": 2, "of": {"kind": "dnn"}}},
        {},
        r"model.of.kind: 'ensemble' finds items, compares ids or is an ensemble itself",
    ),
}


@pytest.mark.parametrize(("model", "changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_no_ensemble_can_be_of_is_named(model, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        Model(twins.recipe(model=model, **changes))
    assert len(str(caught.value)) < 300
