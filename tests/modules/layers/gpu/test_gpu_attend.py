"""Triton's attention against the operator's own on a CPU."""

import pytest
import torch

from livetrain.modules.layers import attend

pytest.importorskip("triton", reason="Triton is not installed: pip install -e '.[kernels]'")
from livetrain.modules.layers.gpu import attend as gpu  # noqa: E402

ONE = [3, 0, 40, 1, 7]
TWO = [2, 4, 33, 0, 1]
CASES = {  # heads, width, causal, rows
    "across": (2, 16, False, ONE, TWO),
    "causal": (2, 16, True, [3, 0, 70, 1], [3, 0, 70, 1]),
    "narrow heads": (3, 15, False, [5, 2], [1, 40]),
    "wide": (1, 128, True, [17, 33], [17, 33]),
    "no keys": (1, 4, False, [2, 3], [0, 0]),
    "no events": (1, 4, False, [0, 0], [0, 0]),
    "no rows": (1, 4, True, [], []),
}


def both(case, dtype, device):
    """Return what the kernels and the operator on a CPU make of a case: the result and the gradients of q, k and v."""
    heads, width, causal, one, two = case
    asks, answers = (torch.tensor(rows, dtype=torch.long) for rows in (one, two))
    draw = torch.Generator().manual_seed(0)
    q, both, d_out = (
        torch.randn(n, columns, generator=draw, dtype=torch.float64).to(dtype)
        for n, columns in ((sum(one), width), (sum(two), 2 * width), (sum(one), width))
    )
    k, v = both.chunk(2, 1)  # as they come from one linear layer: rows do not follow one another in memory
    exact = [x.double() for x in (q, k, v)]
    out, lse = attend._attend(*exact, asks, answers, heads, causal)
    wanted = [out, *attend._backward(d_out.double(), *exact, out, lse, asks, answers, heads, causal)]
    q, k, v = q.to(device), *both.to(device).chunk(2, 1)
    asks, answers = asks.to(device), answers.to(device)
    out, lse = gpu.forward(q, k, v, asks, answers, heads, causal)
    found = [out, *gpu.backward(d_out.to(device), q, k, v, out, lse, asks, answers, heads, causal)]
    return found, wanted


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_the_operator(case, device):
    for found, wanted in zip(*both(case, torch.float64, device), strict=True):
        torch.testing.assert_close(found.cpu(), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)], ids=str)
def test_in_other_types(dtype, apart, device):
    for found, wanted in zip(*both(CASES["across"], dtype, device), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.cpu().double(), wanted, rtol=apart, atol=apart)
