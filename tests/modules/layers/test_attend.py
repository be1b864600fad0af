"""Attention as an operator, against the attention of padded groups, which test_sequence holds to PyTorch's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from livetrain.modules.layers import attend, sequence

WIDTH = 8
ROWS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=6)


def run(
    layer: sequence.Attention, one: list[int], two: list[int], causal: bool, reads: bool, monkeypatch
) -> list[torch.Tensor]:
    """Return what the first sequence sees of the second, and the gradients, with or without the operator."""
    with monkeypatch.context() as patch:
        patch.setattr(sequence, "reads_rows", lambda lengths: reads)
        draw = torch.Generator().manual_seed(1)
        a, b = (torch.randn(sum(n), WIDTH, generator=draw, dtype=torch.float64).requires_grad_() for n in (one, two))
        if causal:
            layouts = [sequence.laid_out(torch.tensor(one, dtype=torch.long), len(a))] * 2
            b = a
        else:
            lengths = (torch.tensor(n, dtype=torch.long) for n in (one, two))
            asks, answers = lengths
            layouts = list(sequence.laid_out_in_pairs(asks, len(a), answers, len(b)))
        out = layer(a, layouts[0], b, layouts[1], causal)
    weight = torch.arange(out.numel(), dtype=out.dtype).view_as(out).cos()
    return [out, *torch.autograd.grad((out * weight).sum(), [a, b, *layer.parameters()])]


@pytest.mark.parametrize("causal", [False, True])
@settings(max_examples=8, deadline=None)
@given(ROWS)
def test_the_operator_is_attention_of_groups(causal, rows):
    torch.manual_seed(0)
    layer = sequence.Attention(WIDTH, 2).double()
    one, two = [row[0] for row in rows], [row[1] for row in rows]
    with pytest.MonkeyPatch.context() as patch:
        wanted, found = (run(layer, one, two, causal, reads, patch) for reads in (False, True))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_it_is_an_operator_as_pytorch_wants_one():
    """Its shapes are known from shapes, nothing is changed in place, and gradients are traced as they are."""
    asks = torch.tensor([3, 0, 2])
    q, k, v = (torch.randn(5, WIDTH, requires_grad=True) for _ in range(3))
    torch.library.opcheck(attend._attend, (q, k, v, asks, asks, 2, True))


def test_gradients_of_several_tasks_in_one_pass():
    asks, answers = torch.tensor([3, 0, 2]), torch.tensor([1, 4, 2])
    q, k, v = (torch.randn(n, WIDTH, dtype=torch.float64, requires_grad=True) for n in (5, 7, 7))
    out = attend.attend(q, k, v, asks, answers, 2, False)
    upstream = torch.randn(3, *out.shape, dtype=out.dtype)
    together = torch.autograd.grad(out, (q, k, v), upstream, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(out, (q, k, v), each, retain_graph=True) for each in upstream]
    for found, wanted in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(wanted))
