"""DIN against a plain twin, written from the paper (1706.06978) on padded tensors with a mask."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from livetrain.configs.schema import Task
from livetrain.modules.inputs import Inputs
from livetrain.modules.models.din import DIN, DINConfig

pytestmark = pytest.mark.usefixtures("way")

LENGTHS = [4, 0, 1, 7, 2, 3]
INPUTS = Inputs({"movie": 8, "maker": 4, "user": 4}, {"seen": 8, "by": 4, "rated": 4}, ["age"])


def dice(x: Tensor, mask: Tensor, state: dict[str, Tensor], name: str, training: bool) -> Tensor:
    """Equation 3; statistics over the positions of x (..., H) where mask (...) is true."""
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    if training:
        valid = x[mask]
        mean, variance = valid.mean(0), valid.var(0, correction=0)
    p = 1 / (1 + torch.exp(-(x - mean) / (variance + 1e-8).sqrt()))
    return p * x + (1 - p) * state[f"{name}.alpha"] * x


def activate(x: Tensor, mask: Tensor, state: dict[str, Tensor], name: str, kind: str, training: bool) -> Tensor:
    return x.clamp(min=0) if kind == "relu" else dice(x, mask, state, name, training)


def linear(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def twin(padded: dict[str, Tensor], mask: Tensor, dense: Tensor, state: dict, config: DINConfig, training: bool):
    """Return (B,) logits from ids (B, d) and sequences (B, T, d) of which mask (B, T) are real."""
    rows = torch.ones(len(mask), dtype=torch.bool)
    q = torch.cat([padded["movie"], padded["maker"]], -1)[:, None, :].expand(-1, mask.size(1), -1)
    e, s = torch.cat([padded["seen"], padded["by"]], -1), padded["rated"]
    unit = "bottom.histories.0.unit"
    h = linear(torch.cat([q, e, q - e, q * e, s], -1), state, f"{unit}.first")  # (B, T, H)
    h = activate(h, mask, state, f"{unit}.activation", config.activation, training)
    h = linear(h, state, f"{unit}.rest.linears.0")
    h = activate(h, mask, state, f"{unit}.rest.activations.0", config.activation, training)
    w = linear(h, state, f"{unit}.rest.last").squeeze(-1)  # (B, T)
    if config.softmax:
        w = w.masked_fill(~mask, -1e30).softmax(1)
    w = (w * mask)[..., None]
    x = [padded["movie"], padded["maker"], padded["user"], dense, (w * e).sum(1), (w * s).sum(1)]
    x = torch.cat(x, 1)
    for layer in range(2):
        x = linear(x, state, f"tower.linears.{layer}")
        x = activate(x, rows, state, f"tower.activations.{layer}", config.activation, training)
    return linear(x, state, "tower.last").squeeze(-1)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("activation", ["dice", "relu"])
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.some(6)
def test_equals_the_padded_twin(softmax, activation, training):
    torch.manual_seed(5)
    config = DINConfig(
        attention=[{"query": ["movie", "maker"], "events": ["seen", "by"], "side": ["rated"]}],
        attention_units=[16, 6],
        units=[12, 5],
        activation=activation,
        softmax=softmax,
    )
    model = DIN(config, INPUTS, {"click": Task(label="click")}).double().train(training)
    for name, value in model.state_dict().items():
        if name.endswith(("alpha", "running_mean")):
            value.uniform_(-0.5, 0.5)
        elif name.endswith("running_var"):
            value.uniform_(0.01, 0.1)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = {name: state[name].requires_grad_() for name, _ in model.named_parameters()}

    size, longest = len(LENGTHS), max(LENGTHS) + 2
    lengths = torch.tensor(LENGTHS)
    mask = torch.arange(longest) < lengths[:, None]  # (B, T)
    # What lies in the padding is noise, so a position that leaked would be seen.
    padded = {name: torch.randn(size, dim).double() for name, dim in INPUTS.ids.items()}
    padded |= {name: torch.randn(size, longest, dim).double() for name, dim in INPUTS.sequences.items()}
    dense, upstream = torch.randn(size, 1).double(), torch.randn(size).double()
    values = {name: (x[mask] if name in INPUTS.sequences else x).clone().requires_grad_() for name, x in padded.items()}
    padded = {name: x.requires_grad_() for name, x in padded.items()}
    each = {name: lengths if name in INPUTS.sequences else torch.ones_like(lengths) for name in values}

    ours = model(values, each, dense, torch.ones(size).double())["click"]
    theirs = twin(padded, mask, dense, state, config, training)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    (ours * upstream).sum().backward()
    (theirs * upstream).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, parameters[name].grad, rtol=1e-6, atol=1e-9, msg=lambda t, name=name: f"{name}: {t}"
        )
    for name, value in values.items():
        expected = padded[name].grad
        torch.testing.assert_close(
            value.grad, expected[mask] if name in INPUTS.sequences else expected, rtol=1e-6, atol=1e-9
        )
