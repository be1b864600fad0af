"""FM and its kin against plain twins, written pair by pair from the papers; the cross network against torchrec's."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchrec.modules.crossnet import CrossNet, LowRankCrossNet

from livetrain.configs.registry import parse_model
from livetrain.configs.schema import Task
from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.cross import Cross
from livetrain.modules.layers.factorisation import BiInteraction
from livetrain.modules.layers.fields import Fields
from livetrain.modules.models.registry import network

EQUAL = Inputs({"user": 8, "movie": 8}, {"seen": 8, "genres": 8}, ["age", "price"])
UNEQUAL = Inputs({"user": 8, "movie": 4}, {"seen": 4, "genres": 12}, ["age", "price"])
LENGTHS = {"user": [1, 0, 1, 1, 1], "movie": [1, 1, 1, 0, 1], "seen": [3, 0, 1, 2, 0], "genres": [0, 2, 1, 4, 0]}
TASKS = ["click", "like", "gift"]
State = dict[str, Tensor]


def build(keys: dict, inputs: Inputs, tasks: int):
    """Return a network in float64 whose parameters all differ from where they began."""
    torch.manual_seed(3)
    config = parse_model(keys)
    model = network(config.kind)(config, inputs, {name: Task(label=name) for name in TASKS[:tasks]}).double()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def draw(inputs: Inputs) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    dims = {**inputs.ids, **inputs.sequences}
    values = {name: torch.randn(sum(LENGTHS[name]), dim).double().requires_grad_() for name, dim in dims.items()}
    lengths = {name: torch.tensor(LENGTHS[name]) for name in dims}
    return values, lengths, torch.randn(5, len(inputs.dense)).double().requires_grad_()


def vectors(values: dict[str, Tensor], b: int) -> list[Tensor]:
    """The mean of each feature's embeddings in row b, zeros where it has none."""
    out = []
    for name, value in values.items():
        start, count = sum(LENGTHS[name][:b]), LENGTHS[name][b]
        events = [value[start + i] for i in range(count)]
        out.append(sum(events) / count if events else torch.zeros_like(value[0]))
    return out


def tower(state: State, name: str, x: Tensor, layers: int) -> Tensor:
    for i in range(layers):
        x = (state[f"{name}.linears.{i}.weight"] @ x + state[f"{name}.linears.{i}.bias"]).clamp(min=0)
    return state[f"{name}.last.weight"] @ x + state[f"{name}.last.bias"] if f"{name}.last.weight" in state else x


def pairs(v: list[Tensor]) -> Tensor:
    return sum(v[i] * v[j] for i, j in combinations(range(len(v)), 2))


def products(state: State, name: str, v: list[Tensor], x: Tensor) -> Tensor:
    """Of all pairs, where each dense feature is a field too: its number times its vector."""
    return pairs(v + [x[i] * state[f"{name}.dense"][i] for i in range(len(x))])


def fm(state: State, name: str, v: list[Tensor], x: Tensor) -> Tensor:
    f = products(state, f"{name}.pairs", v, x)
    return state[f"{name}.weight"] @ f if f"{name}.weight" in state else f.sum()[None]


def kfm(state: State, v: list[Tensor], x: Tensor) -> Tensor:
    """A matrix per pair and task, cut out of one that holds them all."""
    v = [*v, x]
    ends = torch.tensor([len(part) for part in v]).cumsum(0).tolist()
    block = [slice(end - len(part), end) for part, end in zip(v, ends, strict=True)]
    tasks = state["term.weight"]
    found = [sum(v[i] @ w[block[i], block[j]] @ v[j] for i, j in combinations(range(len(v)), 2)) for w in tasks]
    return torch.stack(found)


TERMS = {
    "fm": lambda state, v, x: fm(state, "term", v, x),
    "nfm": lambda state, v, x: tower(state, "term.tower", products(state, "term.pairs", v, x), 2),
    "kfm": kfm,
    "wide_deep": lambda state, v, x: tower(state, "term.tower", torch.cat([*v, x]), 2),
    "deepfm": lambda state, v, x: (
        fm(state, "term.products", v, x) + tower(state, "term.deep.tower", torch.cat([*v, x]), 2)
    ),
}
TERMS["deepfm-kernel"] = lambda state, v, x: (
    kfm({"term.weight": state["term.products.weight"]}, v, x) + tower(state, "term.deep.tower", torch.cat([*v, x]), 2)
)


def first_and_term(kind: str):
    def twin(state: State, rows: list[Tensor], x: Tensor, tasks: int) -> Tensor:
        first = state["fields.weight"] @ x + state["fields.bias"] + sum(row[:tasks] for row in rows)
        return first + TERMS[kind](state, [row[tasks:] for row in rows], x)

    return twin


def dcnv2(rank: bool, stacked: bool):
    def twin(state: State, rows: list[Tensor], x: Tensor, tasks: int) -> Tensor:
        start = crossed = torch.cat([*rows, x])
        for i in range(3):
            low = state[f"cross.down.{i}.weight"] @ crossed if rank else crossed
            crossed = start * (state[f"cross.up.{i}.weight"] @ low + state[f"cross.up.{i}.bias"]) + crossed
        hidden = tower(state, "tower", crossed if stacked else start, 2)
        return state["last.weight"] @ (hidden if stacked else torch.cat([crossed, hidden])) + state["last.bias"]

    return twin


UNITS = {"units": [7, 5]}
CROSS = {"kind": "dcnv2", **UNITS, "cross_layers": 3}
CASES = {
    "fm": (first_and_term("fm"), {"kind": "fm"}, EQUAL),
    "nfm": (first_and_term("nfm"), {"kind": "nfm", **UNITS}, EQUAL),
    "kfm": (first_and_term("kfm"), {"kind": "kfm"}, UNEQUAL),
    "wide_deep": (first_and_term("wide_deep"), {"kind": "wide_deep", **UNITS}, UNEQUAL),
    "deepfm": (first_and_term("deepfm"), {"kind": "deepfm", **UNITS}, EQUAL),
    "deepfm-kernel": (first_and_term("deepfm-kernel"), {"kind": "deepfm", "products": "kernel", **UNITS}, UNEQUAL),
    "dcnv2": (dcnv2(rank=False, stacked=False), CROSS, UNEQUAL),
    "dcnv2-low-rank": (dcnv2(rank=True, stacked=False), {**CROSS, "rank": 3}, UNEQUAL),
    "dcnv2-stacked": (dcnv2(rank=False, stacked=True), {**CROSS, "structure": "stacked"}, UNEQUAL),
}


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize(("twin", "keys", "inputs"), CASES.values(), ids=CASES.keys())
@pytest.mark.some(6)
def test_equals_the_plain_twin(twin, keys, inputs, tasks):
    model = build(keys, inputs, tasks)
    state = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    values, lengths, dense = draw(inputs)
    upstream = torch.randn(5, tasks).double()

    ours = torch.stack(list(model(values, lengths, dense, torch.ones(5)).values()), 1)
    (ours * upstream).sum().backward()
    found = {**{name: parameter.grad for name, parameter in model.named_parameters()}, "dense": dense.grad}
    found |= {name: value.grad for name, value in values.items()}

    copies = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
    numbers = dense.detach().clone().requires_grad_()
    theirs = torch.stack([twin(state, vectors(copies, b), numbers[b], tasks) for b in range(5)])
    (theirs * upstream).sum().backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert found.keys() == {**state, **copies, "dense": numbers}.keys()
    for name, tensor in {**state, **copies, "dense": numbers}.items():
        assert bool(tensor.grad.any()), name
        torch.testing.assert_close(found[name], tensor.grad, rtol=1e-9, atol=1e-12, msg=name)


@given(
    fields=st.integers(1, 6),
    dense=st.integers(0, 4),
    width=st.integers(1, 9),
    size=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_half_of_square_of_sum_less_sum_of_squares_is_the_sum_of_all_pairs(fields, dense, width, size, seed):
    generator = torch.Generator().manual_seed(seed)
    layer = BiInteraction(Fields(Inputs({f"f{i}": width + 1 for i in range(fields)}, {}, []), 1), dense).double()
    factors = list(torch.randn(fields, size, width, generator=generator).double())
    x = torch.randn(size, dense, generator=generator).double()
    every = factors + [x[:, i : i + 1] * layer.dense[i] for i in range(dense)]
    wanted = torch.zeros(size, width).double() + pairs(every)
    torch.testing.assert_close(layer(factors, x), wanted, rtol=1e-9, atol=1e-9)


def test_kfm_with_identities_is_fm():
    inputs = Inputs(EQUAL.ids, EQUAL.sequences, [])
    kernel, plain = build({"kind": "kfm"}, inputs, 1), build({"kind": "fm"}, inputs, 1)
    plain.fields.load_state_dict(kernel.fields.state_dict())
    kernel.term.weight.data.copy_(torch.eye(7).repeat(4, 4))
    values, lengths, dense = draw(inputs)
    found, wanted = (model(values, lengths, dense)["click"] for model in (kernel, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_fm_on_two_ids_is_matrix_factorisation_with_biases():
    model = build({"kind": "fm"}, Inputs({"user": 8, "movie": 8}, {}, []), 1)
    p, q = torch.randn(2, 5, 8).double()
    once = torch.ones(5, dtype=torch.long)
    logits = model({"user": p, "movie": q}, {"user": once, "movie": once}, torch.zeros(5, 0).double())["click"]
    torch.testing.assert_close(logits, model.fields.bias + p[:, 0] + q[:, 0] + (p[:, 1:] * q[:, 1:]).sum(1))


def test_tasks_of_fm_begin_with_the_textbook_product_and_part():
    torch.manual_seed(3)
    declared = {name: Task(label=name) for name in TASKS}
    model = network("fm")(parse_model({"kind": "fm"}), EQUAL, declared).double()
    assert torch.equal(model.term.weight, torch.ones(3, 5).double())
    values, lengths, dense = draw(EQUAL)
    _, factors = model.fields(values, lengths, dense)
    several = model.term(factors, dense, None)
    torch.testing.assert_close(several, model.term.pairs(factors, dense).sum(1, keepdim=True).expand(-1, 3))
    several[:, 1].sum().backward()
    assert model.term.weight.grad[1].any()
    assert not model.term.weight.grad[::2].any()


@pytest.mark.parametrize("rank", [None, 1, 3])
def test_cross_equals_torchrec(rank):
    torch.manual_seed(3)
    ours = Cross(6, 3, rank).double()
    theirs = (CrossNet(6, 3) if rank is None else LowRankCrossNet(6, 3, rank)).double()
    for i in range(3):
        ours.up[i].bias.data.normal_()
        theirs.bias[i].data.copy_(ours.up[i].bias.view_as(theirs.bias[i]))
        if rank is None:
            theirs.kernels[i].data.copy_(ours.up[i].weight)
        else:
            theirs.W_kernels[i].data.copy_(ours.up[i].weight)
            theirs.V_kernels[i].data.copy_(ours.down[i].weight)
    x, upstream = torch.randn(2, 7, 6).double()
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.testing.assert_close(ours(one), theirs(other), rtol=1e-12, atol=1e-12)
    (ours(one) * upstream).sum().backward()
    (theirs(other) * upstream).sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-12)
    for i in range(3):
        theirs_bias, theirs_up = theirs.bias[i], (theirs.kernels if rank is None else theirs.W_kernels)[i]
        torch.testing.assert_close(ours.up[i].weight.grad, theirs_up.grad, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(ours.up[i].bias.grad, theirs_bias.grad.view(-1), rtol=1e-9, atol=1e-12)
        if rank is not None:
            torch.testing.assert_close(ours.down[i].weight.grad, theirs.V_kernels[i].grad, rtol=1e-9, atol=1e-12)
