import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from livetrain.modules.layers.dice import Dice, RunningDice
from livetrain.modules.layers.distributed import all_reduce_sum

pytestmark = pytest.mark.usefixtures("way")

SCRIPT = Path(__file__).with_name("dice_rank.py")
ROOT = Path(__file__).parents[3]


class Reference(nn.Module):
    """Dice on torch's batch normalisation."""

    def __init__(self, units: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(units, affine=False, eps=1e-8, momentum=momentum)
        self.alpha = nn.Parameter(torch.zeros(units))

    def forward(self, x):
        p = torch.sigmoid(self.norm(x))
        return p * x + (1 - p) * self.alpha * x


def pair(units: int, **settings) -> tuple[Dice, Reference]:
    ours, theirs = Dice(units, **settings).double(), Reference(units, **settings).double()
    with torch.no_grad():
        ours.alpha.copy_(torch.linspace(-0.5, 0.5, units))
        theirs.alpha.copy_(ours.alpha)
    return ours, theirs


def compare(ours: Dice, theirs: Reference) -> None:
    torch.testing.assert_close(ours.alpha.grad, theirs.alpha.grad)
    torch.testing.assert_close(ours.running_mean, theirs.norm.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.norm.running_var)


@pytest.mark.parametrize("momentum", [0.1, 0.01])
def test_equals_batch_norm(momentum):
    ours, theirs = pair(5, momentum=momentum)
    for step in range(4):
        x = torch.randn(9, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64) * 3 + 1
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        upstream = x.cos()
        y, z = ours(a), theirs(b)
        torch.testing.assert_close(y, z)
        y.backward(upstream)
        z.backward(upstream)
        torch.testing.assert_close(a.grad, b.grad)
    compare(ours, theirs)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x))


def test_masked_equals_dropped():
    ours, theirs = pair(4)
    weights = torch.tensor([1.0, 0.0, 2.5, 0.5, 0.0, 1.0], dtype=torch.float64)
    keep = weights > 0
    for step in range(3):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        a, b = x.clone().requires_grad_(), x[keep].clone().requires_grad_()
        upstream = x.sin() * keep.unsqueeze(1)  # a padded row has no loss
        y, z = ours(a, weights), theirs(b)
        torch.testing.assert_close(y[keep], z)
        y.backward(upstream)
        z.backward(upstream[keep])
        torch.testing.assert_close(a.grad[keep], b.grad)
        assert not bool(a.grad[~keep].any())
    compare(ours, theirs)


@pytest.mark.parametrize("weights", [None, [1.0, 1.0, 0.0, 1.0, 0.0]])
def test_gradcheck(weights):
    dice, _ = pair(3)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, alpha: dice(x, weights), (x, dice.alpha))


def test_a_running_dice_is_dice_in_evaluation_and_follows_batch_norm():
    running, _ = pair(4)
    norm = nn.BatchNorm1d(4, affine=False, eps=1e-8).double()  # of which the statistics are wanted alone
    dice = RunningDice(4).double()
    dice.load_state_dict(running.state_dict())
    for step in range(3):
        x = torch.randn(7, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64) * 2 + 1
        weights = torch.tensor([1.0] * 5 + [0.0] * 2, dtype=torch.float64)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        running.eval()
        running.load_state_dict(dice.state_dict())
        y, z = torch.cat([dice(a[:3], weights[:3]), dice(a[3:], weights[3:])]), running(b)  # called twice in a step
        torch.testing.assert_close(y, z)
        dice.alpha.grad = running.alpha.grad = None
        (y * x.cos()).sum().backward()
        p = torch.sigmoid((b - dice.running_mean) * (dice.running_var + 1e-8).rsqrt())
        ((p + (1 - p) * running.alpha) * b * x.cos()).sum().backward()  # the statistics are constants
        torch.testing.assert_close(a.grad, b.grad)
        torch.testing.assert_close(dice.alpha.grad, running.alpha.grad)
        norm(x[:5])
        dice.follow(dice.seen)
        assert dice.seen is None
        torch.testing.assert_close(dice.running_mean, norm.running_mean)
        torch.testing.assert_close(dice.running_var, norm.running_var)


def test_large_mean_keeps_its_variance():
    dice = Dice(1, momentum=1.0)
    x = torch.randn(4096, 1, generator=torch.Generator().manual_seed(0)) + 3000
    dice(x)  # the first batch moves the running mean to 3000
    dice(x)
    torch.testing.assert_close(dice.running_var, x.double().var(0).float(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows(rows):
    dice = Dice(3)
    x = torch.randn(rows, 3, requires_grad=True)
    dice(x).sum().backward()
    assert torch.equal(dice.running_var, torch.ones(3))
    assert bool(dice.running_mean.isfinite().all())
    assert bool(dice.alpha.grad.isfinite().all())
    assert x.grad.shape == (rows, 3)


def test_all_rows_padding_leaves_the_statistics():
    dice = Dice(3)
    assert bool(dice(torch.randn(4, 3), torch.zeros(4)).isfinite().all())
    assert torch.equal(dice.running_mean, torch.zeros(3))
    assert torch.equal(dice.running_var, torch.ones(3))


def test_low_precision_keeps_float32_statistics():
    # 515 rows: 16 bits could not even count them.
    x = (torch.randn(515, 4, generator=torch.Generator().manual_seed(0)) + 20).bfloat16()
    low, high = Dice(4), Dice(4)
    with torch.autocast("cpu", torch.bfloat16):
        y = low(x)
    z = high(x.float())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), z, rtol=1e-2, atol=1e-2)
    for name, value in low.named_buffers():  # autocast takes the plain way: it may round differently
        torch.testing.assert_close(value, high.get_buffer(name), rtol=1e-4, atol=0)


def test_scripted_scores_like_eager():
    dice = Dice(4)
    dice(torch.randn(32, 4) * 2 + 1)
    dice.eval()
    x = torch.randn(7, 4)
    assert torch.equal(torch.jit.script(dice)(x, None), dice(x))


def test_without_a_group_a_sum_is_the_identity():
    x = torch.ones(2, requires_grad=True)
    assert all_reduce_sum(x) is x


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, way) -> list[dict]:
    """What two gloo ranks computed."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(rank), "2", str(folder), way], env=environment)
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=120) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def alone(way) -> ModuleType:
    """The script, to compute on one rank with the whole batches."""
    spec = importlib.util.spec_from_file_location("dice_rank", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def compare_sums(ranks: list[dict], key: str, wanted: dict) -> None:
    """The ranks' gradients add up to those of one rank, and all of them have its running statistics."""
    first, second = (rank[key] for rank in ranks)
    for name, gradient in wanted["parameters"].items():
        both = first["parameters"][name] + second["parameters"][name]
        torch.testing.assert_close(both, gradient, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
    for name, buffer in wanted["buffers"].items():
        torch.testing.assert_close(first["buffers"][name], buffer, **CLOSE)
        assert torch.equal(first["buffers"][name], second["buffers"][name])


@pytest.mark.some(1)
def test_two_ranks_equal_one(ranks, alone):
    wanted = alone.steps(0, 1)
    for step in range(3):
        for part in ("y", "x"):
            both = torch.cat([rank["steps"][part][step] for rank in ranks])
            torch.testing.assert_close(both, wanted[part][step], **CLOSE)
    compare_sums(ranks, "steps", wanted)


def test_two_ranks_pool_like_one(ranks, alone):
    wanted = alone.histories(0, 1)
    for step in range(3):
        both = torch.cat([rank["histories"]["y"][step] for rank in ranks])
        torch.testing.assert_close(both, wanted["y"][step], **CLOSE)
        for i, gradient in enumerate(wanted["inputs"][step]):
            both = torch.cat([rank["histories"]["inputs"][step][i] for rank in ranks])
            torch.testing.assert_close(both, gradient, **CLOSE)
    compare_sums(ranks, "histories", wanted)


def test_reduction_and_its_gradient(ranks):
    for rank in ranks:
        total, gradient = rank["reduced"]
        assert total.tolist() == [3.0, 6.0]  # 1 * [1, 2] + 2 * [1, 2]
        assert gradient.tolist() == [3.0, 3.0]  # the ranks' gradients 1 and 2, summed
