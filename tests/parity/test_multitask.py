"""Multi-task networks against plain twins that follow the papers, expert by expert, from the bottom's output on."""

import pytest
import torch
from torch import Tensor

from livetrain.configs.registry import parse_model
from livetrain.configs.schema import Task
from livetrain.modules.inputs import Inputs
from livetrain.modules.models.registry import network

TASKS = {name: Task(label=name) for name in ("click", "like", "gift")}
INPUTS = Inputs({"user": 4, "movie": 8}, {"seen": 8}, ["age", "price"])
BOTTOM = {"attention": [{"query": ["movie"], "events": ["seen"]}], "tower_units": [7]}


def layers(x: Tensor, weights: list[tuple[Tensor, Tensor]], last: bool) -> Tensor:
    """Linear layers with ReLU; `last`: none after the last one."""
    for i, (weight, bias) in enumerate(weights):
        x = x @ weight + bias
        if not (last and i == len(weights) - 1):
            x = x.clamp(min=0)
    return x


def perceptron(state: dict[str, Tensor], name: str, hidden: int, outputs: bool) -> list[tuple[Tensor, Tensor]]:
    keys = [f"{name}.linears.{i}" for i in range(hidden)] + ([f"{name}.last"] if outputs else [])
    return [(state[f"{key}.weight"].t(), state[f"{key}.bias"]) for key in keys]


def expert(state: dict[str, Tensor], name: str, i: int, units: list[int]) -> list[tuple[Tensor, Tensor]]:
    """The layers of expert i of n."""
    first = slice(i * units[0], (i + 1) * units[0])
    found = [(state[f"{name}.first.weight"][first].t(), state[f"{name}.first.bias"][first])]
    rest = range(len(units) - 1)
    return found + [(state[f"{name}.rest.{j}.weight"][i], state[f"{name}.rest.{j}.bias"][i, 0]) for j in rest]


def gated(state: dict[str, Tensor], name: str, x: Tensor, outputs: list[Tensor]) -> Tensor:
    scores = x @ state[f"{name}.linear.weight"].t() + state[f"{name}.linear.bias"]
    share = scores.exp() / scores.exp().sum(1, keepdim=True)
    return sum(share[:, i : i + 1] * output for i, output in enumerate(outputs))


def tower(state: dict[str, Tensor], t: int, x: Tensor) -> Tensor:
    return layers(x, perceptron(state, f"trunk.towers.{t}", 1, outputs=True), last=True)[:, 0]


def shared_bottom(state: dict[str, Tensor], x: Tensor, config) -> list[Tensor]:
    shared = layers(x, perceptron(state, "trunk.shared", len(config.shared_units), outputs=False), last=False)
    return [tower(state, t, shared) for t in range(3)]


def mmoe(state: dict[str, Tensor], x: Tensor, config) -> list[Tensor]:
    """Ma et al. 2018, equations 5 to 7."""
    experts = [
        layers(x, expert(state, "trunk.experts", i, config.expert_units), last=False) for i in range(config.experts)
    ]
    return [tower(state, t, gated(state, f"trunk.gates.{t}", x, experts)) for t in range(3)]


def ple(state: dict[str, Tensor], x: Tensor, config) -> list[Tensor]:
    """Tang et al. 2020, equations 1 to 7: K levels, of which all but the last have a gate for the shared stream."""
    levels = getattr(config, "levels", 1)
    own, shared = [x] * 3, x
    for level in range(levels):
        name = f"trunk.levels.{level}"
        units = config.expert_units
        ours = [
            [layers(own[t], expert(state, f"{name}.own.{t}", i, units), last=False) for i in range(config.own)]
            for t in range(3)
        ]
        theirs = [layers(shared, expert(state, f"{name}.shared", i, units), last=False) for i in range(config.shared)]
        new = [gated(state, f"{name}.gates.{t}", own[t], ours[t] + theirs) for t in range(3)]
        if level < levels - 1:
            shared = gated(state, f"{name}.shared_gates.0", shared, ours[0] + ours[1] + ours[2] + theirs)
        own = new
    return [tower(state, t, own[t]) for t in range(3)]


def esmm(state: dict[str, Tensor], x: Tensor, config) -> list[Tensor]:
    """Logits of the probabilities of the joint events along click -> like -> gift, by explicit products."""
    p = torch.cumprod(torch.stack([tower(state, t, x).sigmoid() for t in range(3)]), 0)
    return list((p / (1 - p)).log())


CASES = {
    "shared_bottom": (shared_bottom, {"kind": "shared_bottom", "shared_units": [9, 6]}),
    "esmm": (esmm, {"kind": "esmm", "chains": [["click", "like", "gift"]]}),
    "mmoe": (mmoe, {"kind": "mmoe", "experts": 3, "expert_units": [9]}),
    "mmoe of deep experts": (mmoe, {"kind": "mmoe", "experts": 4, "expert_units": [9, 5, 6]}),
    "cgc": (ple, {"kind": "cgc", "own": 2, "shared": 3, "expert_units": [9]}),
    "cgc of single experts": (ple, {"kind": "cgc", "own": 1, "shared": 1, "expert_units": [9, 5]}),
    "ple": (ple, {"kind": "ple", "own": 2, "shared": 1, "expert_units": [9, 8], "levels": 3}),
    "ple of one level": (ple, {"kind": "ple", "own": 1, "shared": 2, "expert_units": [9], "levels": 1}),
}


@pytest.mark.parametrize(("twin", "keys"), CASES.values(), ids=CASES.keys())
def test_equals_the_plain_twin(twin, keys):
    torch.manual_seed(3)
    config = parse_model({**BOTTOM, **keys})
    model = network(config.kind)(config, INPUTS, TASKS).double()
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    parameters = {name: state[name].requires_grad_() for name, _ in model.trunk.named_parameters(prefix="trunk")}
    lengths = torch.tensor([3, 0, 1, 5, 2] * 8)
    size, events = len(lengths), int(lengths.sum())
    dims = {**INPUTS.ids, **INPUTS.sequences}
    values = {name: torch.randn(events if name == "seen" else size, dim).double() for name, dim in dims.items()}
    each = {name: lengths if name == "seen" else torch.ones_like(lengths) for name in dims}
    seen = []
    model.trunk.register_forward_hook(lambda trunk, inputs, outputs: seen.append(inputs[0]))

    ours = model(values, each, torch.randn(size, 2).double(), torch.ones(size).double())
    (x,) = seen  # once a step
    assert x.shape == (size, model.bottom.width)
    x.retain_grad()
    y = x.detach().clone().requires_grad_()
    theirs = dict(zip(TASKS, twin(state, y, config), strict=True))
    for task in TASKS:
        torch.testing.assert_close(ours[task], theirs[task], rtol=1e-9, atol=1e-12)
    upstream = torch.randn(3, size).double()
    (torch.stack(list(ours.values())) * upstream).sum().backward()
    (torch.stack(list(theirs.values())) * upstream).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-9, atol=1e-12)
    for name, parameter in model.trunk.named_parameters(prefix="trunk"):
        assert bool(parameter.grad.any()), name
        torch.testing.assert_close(parameter.grad, parameters[name].grad, rtol=1e-9, atol=1e-12, msg=name)


def owners(keys: dict) -> dict[str, set[str]]:
    """Return from which tasks' logits autograd reaches each parameter of the trunk."""
    config = parse_model({**BOTTOM, **keys})
    model = network(config.kind)(config, Inputs({"user": 4, "movie": 8}, {"seen": 8}, ["age"]), TASKS)
    values = {"user": torch.randn(2, 4), "movie": torch.randn(2, 8), "seen": torch.randn(3, 8)}
    lengths = {"user": torch.ones(2).long(), "movie": torch.ones(2).long(), "seen": torch.tensor([1, 2])}
    logits = model(values, lengths, torch.randn(2, 1), torch.ones(2))
    names, parameters = zip(*model.trunk.named_parameters(), strict=True)
    out: dict[str, set[str]] = {name: set() for name in names}
    for task, logit in logits.items():
        grads = torch.autograd.grad(logit.sum(), parameters, retain_graph=True, allow_unused=True)
        for name, grad in zip(names, grads, strict=True):
            if grad is not None:
                out[name].add(task)
    return out


def test_what_belongs_to_a_task_is_reached_from_its_logit_alone():
    everyone = set(TASKS)
    for name, tasks in owners({"kind": "cgc"}).items():
        kind, _, rest = name.removeprefix("levels.0.").partition(".")
        assert tasks == (everyone if kind == "shared" else {list(TASKS)[int(rest[0])]}), name
    for name, tasks in owners({"kind": "ple", "levels": 2}).items():
        mixed = name.startswith(("levels.0.own", "levels.0.shared", "levels.1.shared"))
        assert len(tasks) == (3 if mixed else 1), name
    for name, tasks in owners({"kind": "mmoe"}).items():
        assert len(tasks) == (3 if name.startswith("experts") else 1), name
    for name, tasks in owners({"kind": "esmm", "chains": [["click", "like"]]}).items():
        wanted = [{"click", "like"}, {"like"}, {"gift"}]
        assert tasks == wanted[int(name.split(".")[1])], name


def test_backward_passes_of_all_tasks_can_be_batched():
    """What gradient combiners do: the gradients of every task at the trunk's input, in one batched pass."""
    config = parse_model({**BOTTOM, "kind": "ple", "expert_units": [9, 5]})
    model = network(config.kind)(config, INPUTS, TASKS)
    x = torch.randn(6, model.bottom.width, requires_grad=True)
    logits = torch.stack(model.trunk(x, None))
    (batched,) = torch.autograd.grad(
        logits, x, torch.eye(3).unsqueeze(2).expand(3, 3, 6), retain_graph=True, is_grads_batched=True
    )
    for t in range(3):
        (alone,) = torch.autograd.grad(logits[t].sum(), x, retain_graph=True)
        torch.testing.assert_close(batched[t], alone)
