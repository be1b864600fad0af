"""The newer rankers against plain twins: written from the papers' equations, on padded rows, one row at a time."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from livetrain.configs.registry import parse_model
from livetrain.configs.schema import Task
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.rankmixer import mixed
from livetrain.modules.models.registry import network

TASKS = {name: Task(label=name) for name in ("click", "like")}
DENSE = ["age", "price"]
LENGTHS = [3, 0, 1, 5, 2, 4]
Row = dict[str, Tensor]  # (d,) of an id, (T, d) of a sequence, (D,) the dense features
State = dict[str, Tensor]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return state[f"{name}.weight"] @ x + state[f"{name}.bias"]


def norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    return (x - x.mean()) / ((x - x.mean()) ** 2).mean().add(eps).sqrt()


def layer_norm(state: State, name: str, x: Tensor) -> Tensor:
    return norm(x) * state[f"{name}.weight"] + state[f"{name}.bias"]


def tower(state: State, task: int, x: Tensor) -> Tensor:
    hidden = linear(state, f"trunk.towers.{task}.linears.0", x).clamp(min=0)
    return linear(state, f"trunk.towers.{task}.last", hidden)[0]


def towers(state: State, x: Tensor) -> list[Tensor]:
    return [tower(state, task, x) for task in range(len(TASKS))]


def mean(events: Tensor) -> Tensor:
    return events.sum(0) / max(len(events), 1)


def gathered(row: Row) -> Tensor:
    return torch.cat([row["user"], row["movie"], row["dense"]])


def rankmixer(state: State, row: Row, config) -> list[Tensor]:
    """RankMixer, 2507.15551: tokens by slices; token mixing, then a perceptron per token, LN after each sum."""
    e = torch.cat([row["user"], row["movie"], mean(row["seen"]), row["dense"]])
    count, slice_ = config.tokens, math.ceil(len(e) / config.tokens)
    e = torch.cat([e, e.new_zeros(slice_ * count - len(e))])
    weight, bias = state["bottom.tokens.project.weight"], state["bottom.tokens.project.bias"]
    tokens = [e[t * slice_ : (t + 1) * slice_] @ weight[t] + bias[t, 0] for t in range(count)]
    part = config.width // count
    for block in range(config.blocks):
        name = f"bottom.blocks.{block}"
        heads = [[token[h * part : (h + 1) * part] for h in range(count)] for token in tokens]
        mixed = [torch.cat([heads[t][h] for t in range(count)]) for h in range(count)]
        sums = [layer_norm(state, f"{name}.mixed_norm", m + x) for m, x in zip(mixed, tokens, strict=True)]
        tokens = []
        for t, s in enumerate(sums):
            hidden = s @ state[f"{name}.hidden.weight"][t] + state[f"{name}.hidden.bias"][t, 0]
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
            out = hidden @ state[f"{name}.out.weight"][t] + state[f"{name}.out.bias"][t, 0]
            tokens.append(layer_norm(state, f"{name}.norm", out + s))
    return towers(state, sum(tokens) / count)


INPUTS = Inputs({"user": 4, "movie": 8}, {"seen": 8}, DENSE)
Twin = Callable[[State, Row, Any], list[Tensor]]
CASES: dict[str, tuple[Twin, dict, Inputs]] = {
    "rankmixer": (rankmixer, {"kind": "rankmixer", "pooled": ["seen"], "tokens": 4, "width": 12, "blocks": 3}, INPUTS),
}


@pytest.mark.parametrize(("twin", "keys", "inputs"), CASES.values(), ids=CASES.keys())
def test_equals_the_plain_twin(twin, keys, inputs):
    torch.manual_seed(3)
    config = parse_model({"tower_units": [7], **keys})
    model = network(config.kind)(config, inputs, TASKS).double()
    for parameter in model.parameters():  # also those that start at 0 or 1
        parameter.data += 0.1 * torch.randn_like(parameter)
    state = {name: value.detach().clone().requires_grad_() for name, value in model.state_dict().items()}
    counts = {name: torch.tensor(LENGTHS) for name in inputs.sequences} | {
        name: torch.ones(len(LENGTHS), dtype=torch.long) for name in inputs.ids
    }
    dims = {**inputs.ids, **inputs.sequences}
    values = {name: torch.randn(int(counts[name].sum()), dims[name]).double().requires_grad_() for name in dims}
    dense = torch.randn(len(LENGTHS), len(inputs.dense)).double().requires_grad_()
    beside = {f"(gaps of) {name}": torch.randint(0, 9999, (sum(LENGTHS), 1)).double() for name in inputs.timed}

    ours = model(values | beside, counts, dense, torch.ones(len(LENGTHS)).double())
    parts = {name: value.split(counts[name].tolist()) for name, value in values.items()}
    parts |= {name: value.split(LENGTHS) for name, value in beside.items()}
    theirs = []
    for place in range(len(LENGTHS)):
        row = {name: part[place] if name not in inputs.ids else part[place][0] for name, part in parts.items()}
        theirs.append(torch.stack(twin(state, {**row, "dense": dense[place]}, config)))
    for task, wanted in zip(TASKS, torch.stack(theirs, 1), strict=True):
        torch.testing.assert_close(ours[task], wanted, rtol=1e-9, atol=1e-10)

    upstream = torch.randn(len(TASKS), len(LENGTHS)).double()
    reached = {**dict(model.named_parameters()), **values, "dense": dense}
    found = torch.autograd.grad((torch.stack(list(ours.values())) * upstream).sum(), list(reached.values()))
    copies = {**{name: state[name] for name, _ in model.named_parameters()}, **values, "dense": dense}
    wanted = torch.autograd.grad((torch.stack(theirs, 1) * upstream).sum(), list(copies.values()))
    for name, one, other in zip(reached, found, wanted, strict=True):
        assert bool(one.any()), name
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_exchanging_parts_undoes_itself():
    tokens = torch.randn(5, 4, 12)
    once = mixed(tokens)
    assert not torch.equal(once, tokens)
    assert torch.equal(mixed(once), tokens)
    for t in range(4):
        for h in range(4):
            assert torch.equal(once[:, h, 3 * t : 3 * t + 3], tokens[:, t, 3 * h : 3 * h + 3])
