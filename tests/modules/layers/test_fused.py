"""The compiled passes against the layers as they are written, which test_attention and test_dice hold to account."""

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from livetrain.modules.layers import compiled
from livetrain.modules.layers.attention import ActivationUnit
from livetrain.modules.layers.dice import Dice, RunningDice
from livetrain.modules.layers.mlp import MLP
from livetrain.trainers.runtime import compiler
from livetrain.trainers.train import compiled_layers


@pytest.fixture(autouse=True)
def plain_again():
    yield
    compiled.use()


ACTIVATIONS = st.sampled_from(["dice", "running_dice"])


def unit(dim: int, side: int, units: list[int], softmax: bool = False, activation: str = "dice") -> ActivationUnit:
    torch.manual_seed(0)
    module = ActivationUnit(dim, side, units, activation, softmax).double()
    for name, parameter in module.named_parameters():
        if name.endswith("alpha"):
            torch.nn.init.uniform_(parameter, -0.5, 0.5)
    return module


def case(dim: int, side: int, lengths: list[int]) -> tuple:
    """Return random query, events and side, and the lengths."""
    draw = torch.Generator().manual_seed(sum(lengths))
    number = sum(lengths)
    query, events, extra = (
        torch.randn(rows, size, generator=draw, dtype=torch.float64, requires_grad=True)
        for rows, size in ((len(lengths), dim), (number, dim), (number, side))
    )
    return query, events, extra if side else None, torch.tensor(lengths)


def moved(module: torch.nn.Module) -> dict[str, Tensor]:
    """Return the statistics after what a running Dice saw has moved them."""
    for part in module.modules():
        if isinstance(part, RunningDice):
            part.follow(part.seen)
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def results(module: ActivationUnit, inputs: tuple, weights: Tensor | None, way: str) -> dict[str, Tensor]:
    """Return what two steps leave: the last output, its gradients and the statistics."""
    compiled.use(*([compiled_layers.library(torch.float64)] if way == "compiled" else []))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    query, events, side, lengths = inputs
    named = {"query": query, "events": events, "side": side, **dict(module.named_parameters())}
    named = {name: tensor for name, tensor in named.items() if tensor is not None}
    for _ in range(2):
        pooled = module(query, events, side, lengths, weights)
    upstream = torch.arange(pooled.numel(), dtype=torch.float64).view_as(pooled).cos()
    gradients = torch.autograd.grad(pooled, list(named.values()), upstream)
    found = {"pooled": pooled.detach(), **dict(zip(named, gradients, strict=True))}
    found |= moved(module)
    module.load_state_dict(before)
    return found


def alike(found: dict[str, Tensor], wanted: dict[str, Tensor], rtol: float = 1e-7, atol: float = 1e-9) -> None:
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol, msg=lambda text, n=name: f"{n}: {text}")


def compare(module: ActivationUnit, inputs: tuple, weights: Tensor | None) -> None:
    plain, fast = (results(module, inputs, weights, way) for way in ("plain", "compiled"))
    alike(fast, plain)


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=40),
    st.sampled_from([0, 3]),
    st.booleans(),
    st.booleans(),
    ACTIVATIONS,
)
@settings(max_examples=60, deadline=None)
def test_any_lengths(lengths, side, softmax, padding, activation):
    weights = torch.tensor([float(row % 3 > 0) for row in range(len(lengths))], dtype=torch.float64)
    compare(unit(4, side, [6, 3], softmax, activation), case(4, side, lengths), weights if padding else None)


@pytest.mark.parametrize(
    ("dim", "side", "units"),
    [(32, 0, [64, 16]), (16, 16, [80, 40]), (1, 0, [1]), (7, 2, [33, 17, 5]), (48, 0, [130, 16]), (16, 0, [16, 200])],
)
def test_any_widths(dim, side, units):
    compare(unit(dim, side, units), case(dim, side, [3, 0, 70, 1, 25, 0, 6]), None)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("whose", ["PyTorch's", "their own"])
def test_threads_share_the_work(threads, whose, monkeypatch):
    if whose == "their own":  # as where no OpenMP is to be found
        other = compiler.shared_object(
            compiled_layers.SOURCES[0], "-DREAL=double", "-DGOMP_parallel=absent", others=compiled_layers.SOURCES[1:]
        )
        monkeypatch.setattr(compiled_layers, "library", lambda dtype: compiled.Native(str(other), dtype))
    module, inputs = unit(8, 0, [16, 5]), case(8, 0, [int(n) for n in torch.arange(150) % 7])
    wanted = results(module, inputs, None, "plain")
    torch.set_num_threads(threads)
    try:
        found = results(module, inputs, None, "compiled")
    finally:
        torch.set_num_threads(1)
    alike(found, wanted)


def test_pytorch_s_threads_can_be_called():
    """Beside them, threads of our own would find no free processor."""
    process = ctypes.CDLL(None)
    assert all(hasattr(process, name) for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads"))


@pytest.mark.parametrize("way", ["plain", "compiled"])
def test_gradcheck(way):
    compiled.use(*([compiled_layers.library(torch.float64)] if way == "compiled" else []))
    module = unit(3, 2, [4, 3])
    query, events, side, lengths = case(3, 2, [2, 0, 3, 1])
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64)

    def pooled(query: Tensor, events: Tensor, side: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(dict(module.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(module, named, (query, events, side, lengths, weights))

    assert torch.autograd.gradcheck(pooled, (query, events, side, *module.parameters()))


def test_float32_is_accurate_to_float32():
    inputs = case(32, 0, [int(n) for n in torch.arange(400) % 51])
    exact = results(unit(32, 0, [64, 16]), inputs, None, "plain")
    compiled.use(compiled_layers.library(torch.float32))
    module = unit(32, 0, [64, 16]).float()
    query, events = (x.detach().float().requires_grad_() for x in inputs[:2])
    for _ in range(2):
        pooled = module(query, events, None, inputs[3], None)
    upstream = torch.arange(pooled.numel(), dtype=torch.float64).view_as(pooled).cos().float()
    found = dict(zip(["query", "events"], torch.autograd.grad(pooled, [query, events], upstream), strict=True))
    for name, value in {"pooled": pooled, **found}.items():
        apart = (value.double() - exact[name]).abs().max() / exact[name].abs().max()
        assert apart < 2e-6, name


@pytest.mark.parametrize("activation", ["dice", "running_dice"])
@pytest.mark.parametrize("way", ["plain", "compiled"])
def test_several_tasks_go_back_at_once(way, activation):
    compiled.use(*([compiled_layers.library(torch.float64)] if way == "compiled" else []))
    module = unit(4, 2, [6, 3], activation=activation)
    query, events, side, lengths = case(4, 2, [3, 0, 5])
    pooled = module(query, events, side, lengths, torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))
    of, starts = [query, events, side, *module.parameters()], torch.randn(3, *pooled.shape, dtype=torch.float64)
    each = [torch.autograd.grad(pooled, of, start, retain_graph=True) for start in starts]
    found = torch.func.vmap(lambda start: torch.autograd.grad(pooled, of, start, retain_graph=True))(starts)
    for wanted, all_at_once in zip(zip(*each, strict=True), found, strict=True):
        torch.testing.assert_close(all_at_once, torch.stack(wanted))


def test_one_graph_serves_several_backward_passes():
    compiled.use(compiled_layers.library(torch.float64))
    module = unit(4, 2, [6, 3])
    query, events, side, lengths = case(4, 2, [3, 0, 5])
    pooled = module(query, events, side, lengths, None)
    first, second = pooled[:, :3].sum(), (pooled[:, 3:] ** 2).sum()
    of = [query, events, side, *module.parameters()]
    one = torch.autograd.grad(first, of, retain_graph=True)
    two = torch.autograd.grad(second, of, retain_graph=True)
    again = torch.autograd.grad(first, of, retain_graph=True)
    both = torch.autograd.grad(first + second, of)
    for a, b, c, d in zip(one, two, again, both, strict=True):
        assert torch.equal(a, c)
        torch.testing.assert_close(a + b, d)


def tower(width: int, units: list[int], outputs: int | None, dropout: float = 0.0, activation: str = "dice") -> MLP:
    torch.manual_seed(1)
    mlp = MLP(width, units, activation, dropout, outputs).double()
    for activation in mlp.activations:
        torch.nn.init.uniform_(activation.alpha, -0.5, 0.5)
    return mlp


def tower_results(mlp: MLP, x: Tensor, weights: Tensor | None, way: str) -> dict[str, Tensor]:
    """Return what two steps leave: the last output, its gradients and the statistics."""
    compiled.use(*([compiled_layers.library(x.dtype)] if way == "compiled" else []))
    before = {name: value.clone() for name, value in mlp.state_dict().items()}
    for _ in range(2):
        y = mlp(x, weights)
    named = {"x": x, **dict(mlp.named_parameters())}
    upstream = torch.arange(y.numel(), dtype=torch.float64).view_as(y).cos().to(y)
    found = {"y": y.detach(), **dict(zip(named, torch.autograd.grad(y, list(named.values()), upstream), strict=True))}
    found |= moved(mlp)
    mlp.load_state_dict(before)
    return found


@given(
    st.integers(0, 200),
    st.integers(1, 40),
    st.lists(st.integers(1, 70), min_size=1, max_size=3),
    st.sampled_from([None, 1, 3]),
    st.booleans(),
    ACTIVATIONS,
)
@settings(max_examples=60, deadline=None)
def test_a_tower_of_any_shape(rows, width, units, outputs, padding, activation):
    mlp, x = (
        tower(width, units, outputs, activation=activation),
        torch.randn(rows, width, dtype=torch.float64, requires_grad=True),
    )
    weights = (torch.arange(rows) % 5 > 0).double() if padding else None
    wanted, found = (tower_results(mlp, x, weights, way) for way in ("plain", "compiled"))
    alike(found, wanted, rtol=1e-6, atol=1e-8)


def test_threads_share_a_tower():
    mlp, x = tower(32, [48, 5], 2), torch.randn(1000, 32, dtype=torch.float64, requires_grad=True)
    wanted = tower_results(mlp, x, None, "plain")
    torch.set_num_threads(3)
    try:
        found = tower_results(mlp, x, None, "compiled")
    finally:
        torch.set_num_threads(1)
    alike(found, wanted)


def test_a_tower_s_gradients_are_those_of_differences():
    compiled.use(compiled_layers.library(torch.float64))
    mlp, x = tower(3, [5, 4], 2), torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0] * 5 + [0.0] * 2, dtype=torch.float64)

    def outputs(x: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(dict(mlp.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(mlp, named, (x, weights))

    assert torch.autograd.gradcheck(outputs, (x, *mlp.parameters()))


def test_a_tower_in_float32_is_accurate_to_float32():
    mlp, x = tower(256, [200, 80], 1), torch.randn(1536, 256, dtype=torch.float64, requires_grad=True)
    exact = tower_results(mlp, x, None, "plain")
    found = tower_results(mlp.float(), x.detach().float().requires_grad_(), None, "compiled")
    for name, value in found.items():
        apart = (value.double() - exact[name]).abs().max() / exact[name].abs().max().clamp(min=1e-6)
        assert apart < 1e-5, f"{name}: {apart}"


def test_dropout_takes_a_tower_the_plain_way():
    compiled.use(compiled_layers.library(torch.float64))
    mlp = tower(5, [400], None, dropout=0.5)
    zeros = (mlp(torch.randn(3, 5, dtype=torch.float64)) == 0).double().mean()
    assert 0.3 < zeros < 0.7


def test_what_is_not_a_number_stays_so():
    compiled.use(compiled_layers.library())
    x = torch.ones(70, 3)
    x[66, 1] = float("nan")
    y = Dice(3)(x)
    assert bool(y[:, 1].isnan().all())
    assert bool(y[:, [0, 2]].isfinite().all())


def test_outliers_saturate():
    x = torch.zeros(20_000, 2)
    x[0, 0], x[0, 1] = 1.0, -1.0  # 141 deviations away: exp overflows in float32

    def gradient() -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        y = Dice(2)(leaf)
        return y.detach(), torch.autograd.grad(y[:1].sum(), leaf)[0]

    wanted = gradient()
    compiled.use(compiled_layers.library())
    for a, b in zip(gradient(), wanted, strict=True):
        assert bool(a.isfinite().all())
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_autocast_and_other_types_take_the_plain_way():
    compiled.use(compiled_layers.library())
    assert compiled.library_for(torch.zeros(1)) is not None
    assert compiled.library_for(torch.zeros(1, dtype=torch.float64)) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled.library_for(torch.zeros(1)) is None


def test_tensors_that_cannot_be_read_are_refused():
    library = compiled_layers.library()
    with pytest.raises(ValueError, match="dice_forward: a torch.float64 tensor"):
        library.call("dice_forward", 2, 1, torch.zeros(2, 1, dtype=torch.float64), torch.zeros(3, 1), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="cannot be read"):
        library.call("dice_forward", 2, 2, torch.zeros(2, 2).t(), torch.zeros(3, 2), torch.zeros(2, 2))
