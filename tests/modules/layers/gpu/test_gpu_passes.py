"""Triton's passes against the layers as they are written, which test_attention and test_dice hold to account."""

import pytest
import torch
from torch import Tensor

from livetrain.modules.layers import compiled
from livetrain.modules.layers.attention import ActivationUnit
from livetrain.modules.layers.mlp import MLP

pytest.importorskip("triton", reason="Triton is not installed: pip install -e '.[kernels]'")
from livetrain.modules.layers.gpu.passes import Triton  # noqa: E402

WEIGHTS = [1.0, 1.0, 0.0, 1.0, 1.0]
UNITS = {  # d, side, units, softmax, lengths of the lists, weights of the rows, the request of each row
    "side and padding": (4, 3, [6, 3], False, [3, 0, 40, 1, 7], WEIGHTS, None),
    "softmax": (16, 0, [64, 16], True, [5, 20, 0], None, None),
    "more rows than a program takes": (2, 0, [4], False, [2, 0, 1] * 7, None, None),
    "more columns than a block has": (70, 0, [80, 20], False, [2, 3], None, None),
    "one unit": (3, 0, [1], False, [2, 3], None, None),
    "no events": (4, 2, [6], False, [0, 0], None, None),
    "no row that counts": (4, 2, [6], False, [2, 1], [0.0, 0.0], None),
    "rows share events": (8, 2, [16, 8], False, [5, 0, 3], WEIGHTS, [0, 0, 0, 2, 2]),
    "three layers": (5, 0, [20, 9, 3], False, [4, 1], None, None),
}


@pytest.fixture(autouse=True)
def plain_again():
    yield
    compiled.use()


def drawn(module: torch.nn.Module) -> torch.nn.Module:
    for name, parameter in module.named_parameters():
        if name.endswith("alpha"):
            torch.nn.init.uniform_(parameter, -0.5, 0.5)
    return module.double()


def run(module: torch.nn.Module, inputs: list[Tensor], call) -> list[Tensor]:
    """Return what two steps leave: the last output, its gradients and the statistics."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for _ in range(2):
        out = call(module, *inputs)
    upstream = torch.arange(out.numel(), dtype=torch.float64, device=out.device).view_as(out).cos().to(out.dtype)
    gradients = torch.autograd.grad(out, [*inputs, *module.parameters()], upstream)
    found = [out.detach(), *gradients, *(buffer.clone() for buffer in module.buffers())]
    module.load_state_dict(before)
    return found


def pooled(case: tuple, device: torch.device, kind: torch.dtype, passes: bool) -> list[Tensor]:
    """Return `run` of an activation unit, by Triton's passes or as it is written."""
    dim, side, units, softmax, lengths, weights, request = case
    torch.manual_seed(0)
    unit = drawn(ActivationUnit(dim, side, units, softmax=softmax)).to(device, kind)
    draw, number = torch.Generator().manual_seed(1), sum(lengths)
    rows = len(lengths if request is None else request)
    shapes = [(rows, dim), (dim, number), (number, side)][: 3 if side else 2]  # events lie by columns
    inputs = [torch.randn(shape, generator=draw, dtype=torch.float64).to(device, kind) for shape in shapes]
    own, held = torch.tensor(lengths, device=device), None if weights is None else torch.tensor(weights, device=device)
    shared = None if request is None else torch.tensor(request, device=device)
    total = 0 if request is None else sum(lengths[i] for i in request)

    def call(unit: ActivationUnit, query: Tensor, events: Tensor, beside: Tensor | None = None) -> Tensor:
        return unit(query, events.t(), beside, own, held, shared, total)

    compiled.use(*([Triton(device.type, kind)] if passes else []))
    return run(unit, [x.requires_grad_() for x in inputs], call)


@pytest.mark.parametrize("case", UNITS.values(), ids=UNITS)
def test_an_activation_unit(case, device):
    wanted, found = (pooled(case, device, torch.float64, passes) for passes in (False, True))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_an_activation_unit_in_float32(device):
    case = UNITS["side and padding"]
    wanted, found = pooled(case, device, torch.float64, False), pooled(case, device, torch.float32, True)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=2e-5)


def test_under_autocast_events_are_read_and_kept_in_bfloat16(device):
    """Sums and parameters' gradients stay as wide as they are."""
    case = UNITS["softmax"]
    wanted = pooled(case, device, torch.float64, False)
    with torch.autocast(device.type, torch.bfloat16):
        found = pooled(case, device, torch.float32, True)
    assert {x.dtype for x in found[1:]} == {torch.float32}
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("weights", [None, [1.0] * 60 + [0.0] * 10], ids=["all", "padding"])
@pytest.mark.parametrize("outputs", [None, 2])
def test_a_tower(weights, outputs, device):
    """Its products are PyTorch's, its Dice are passes."""
    torch.manual_seed(0)
    tower = drawn(MLP(9, [70, 5], "dice", 0.0, outputs)).to(device)
    x = torch.randn(70, 9, dtype=torch.float64).to(device).requires_grad_()
    held = None if weights is None else torch.tensor(weights, device=device)
    compiled.use()
    wanted = run(tower, [x], lambda tower, x: tower(x, held))
    compiled.use(Triton(device.type, torch.float64))
    found = run(tower, [x], lambda tower, x: tower(x, held))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_what_is_not_a_number_stays_so(device):
    compiled.use(Triton(device.type, torch.float32))
    x = torch.ones(70, 3, device=device)
    x[66, 1] = float("nan")
    y = MLP(3, [3], "dice").to(device).activations[0](x)
    assert bool(y[:, 1].isnan().all())
    assert bool(y[:, [0, 2]].isfinite().all())
