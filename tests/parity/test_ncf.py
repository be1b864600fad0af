"""NCF against equations 8 to 12 of 1708.05031, row by row."""

import pytest
import torch

from livetrain.configs.errors import BadInput
from livetrain.configs.registry import parse_model
from livetrain.configs.schema import Task
from livetrain.modules.inputs import Inputs
from livetrain.modules.models.ncf import NCF
from livetrain.modules.models.registry import network

INPUTS = Inputs({"user": 8, "movie": 12}, {}, [])
TASKS = {name: Task(label=name) for name in ("click", "like")}
LENGTHS = {"user": [1, 1, 0, 1], "movie": [1, 0, 1, 1]}


def build(inputs: Inputs = INPUTS, **changes) -> NCF:
    torch.manual_seed(0)
    config = parse_model({"kind": "ncf", "item": "movie", "product": 4, "units": [6, 5], **changes})
    return network("ncf")(config, inputs, TASKS).double()


def batch(inputs: Inputs = INPUTS):
    generator = torch.Generator().manual_seed(1)
    lengths = {name: torch.tensor(counts) for name, counts in LENGTHS.items()}
    rows = {name: torch.randn(4, dim, generator=generator).double() for name, dim in inputs.ids.items()}
    rows = {name: row * lengths[name].unsqueeze(1) for name, row in rows.items()}
    values = {name: row[lengths[name] > 0].requires_grad_() for name, row in rows.items()}
    return rows, values, lengths, torch.zeros(4, 0).double()


@pytest.mark.parametrize("product", [0, 4, 8])
@pytest.mark.parametrize("units", [[6, 5], []])
def test_equals_the_equations(product, units):
    model = build(product=product, units=units)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    rows, values, lengths, dense = batch()
    for trained in (model, torch.jit.script(model)):
        found = trained(values, lengths, dense, None)
        for b in range(4):
            p, q = rows["user"][b], rows["movie"][b]
            phi = torch.cat([p[product:], q[product:]])
            for layer in range(len(units)):
                phi = state[f"mlp.linears.{layer}.weight"] @ phi + state[f"mlp.linears.{layer}.bias"]
                phi = phi.clamp(min=0)
            z = torch.cat([p[:product] * q[:product], phi])
            for t, task in enumerate(TASKS):
                wanted = state["last.weight"][t] @ z + state["last.bias"][t]
                torch.testing.assert_close(found[task][b], wanted)


def test_the_product_alone():
    inputs = Inputs({"user": 8, "movie": 8}, {}, [])
    model = build(inputs, product=8)
    assert not any(name.startswith("mlp") for name, _ in model.named_parameters())
    rows, values, lengths, dense = batch(inputs)
    wanted = (rows["user"] * rows["movie"]) @ model.last.weight[0] + model.last.bias[0]
    torch.testing.assert_close(torch.jit.script(model)(values, lengths, dense, None)["click"], wanted)


def test_everything_learns():
    model = build()
    _, values, lengths, dense = batch()
    sum(logits.square().sum() for logits in model(values, lengths, dense, None).values()).backward()
    for name, tensor in {**values, **dict(model.named_parameters())}.items():
        assert bool(tensor.grad.any()), name


@pytest.mark.parametrize(
    ("inputs", "change", "message"),
    [
        (INPUTS, {"item": "film"}, "model.item: there is no id feature 'film'"),
        (INPUTS, {"user": "usr"}, "model.user: there is no id feature 'usr' .did you mean 'user'"),
        (INPUTS, {"product": 12}, "model.product: 12 columns are more than the table of features.user has, dim 8"),
        (Inputs({"user": 8, "movie": 8}, {}, ["age"]), {}, "features.age: ncf reads model.user and model.item only"),
        (Inputs({"user": 8, "movie": 8, "sex": 4}, {}, []), {}, "features.sex: ncf reads"),
        (Inputs({"user": 8, "movie": 8}, {"seen": 8}, []), {}, "features.seen: ncf reads"),
    ],
)
def test_names_what_is_wrong(inputs, change, message):
    with pytest.raises(BadInput, match=message):
        build(inputs, **change)
