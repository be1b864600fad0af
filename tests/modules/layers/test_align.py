import math

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from livetrain.modules.layers.align import Align, signature
from livetrain.modules.layers.distributed import all_gather

WIDTH, ROWS = 5, 8


def batch() -> tuple[torch.Tensor, ...]:
    """Two views, users of which some have several rows, and which rows take part."""
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
    return one, other, torch.tensor([7, 8, 7, 9, 10, 8, 11, 7]), torch.tensor([1, 1, 1, 0, 1, 1, 0, 1]) > 0


def by_formula(one, other, user, valid, temperature: float) -> torch.Tensor:
    """The docstring's formula, one pair of rows at a time."""
    total, count = torch.zeros((), dtype=torch.float64), int(valid.sum())
    unit = [[row / row.norm() for row in view] for view in (one, other)]
    for i in range(len(user)):
        if not valid[i]:
            continue
        for a, b in (unit, unit[::-1]):
            partners = [j for j in range(len(user)) if j == i or (valid[j] and user[j] != user[i])]
            scores = {j: (a[i] @ b[j]) / temperature for j in partners}
            total = total - (scores[i] - torch.stack(list(scores.values())).exp().sum().log())
    return total / (2 * count)


@pytest.mark.parametrize("gathered", [True, False])
def test_equals_a_loop(gathered):
    one, other, user, valid = batch()
    one, other = one.requires_grad_(), other.requires_grad_()
    layer = Align(0.3, 0.2, 0, gathered)
    loss = layer(one, other, user, valid)
    wanted = 0.3 * by_formula(one, other, user, valid, 0.2)
    torch.testing.assert_close(loss, wanted)
    found, expected = (torch.autograd.grad(x, [one, other], retain_graph=True) for x in (loss, wanted))
    torch.testing.assert_close(found, expected)
    assert not found[0][~valid].any()
    assert torch.autograd.gradcheck(lambda a, b: Align(0.3, 0.2, 0, gathered)(a, b, user, valid), (one, other))


def test_other_rows_of_a_user_are_no_negatives():
    one, other, user, valid = batch()
    changed = other.clone()
    changed[2] = 5 * torch.randn(WIDTH)  # row 2 is of user 7, as are rows 0 and 7
    rows = torch.tensor([0, 7])
    gradients = []
    for view in (other, changed):
        a = one.clone().requires_grad_()
        Align(1.0, 0.1, 0, True)(a, view, user, valid).backward()
        gradients.append(a.grad[rows])
    torch.testing.assert_close(*gradients)


def test_no_valid_row_is_a_loss_of_0():
    one, other, user, valid = batch()
    one.requires_grad_()
    loss = Align(1.0, 0.1, 0, True)(one, torch.zeros_like(other), user, valid & False)
    loss.backward()
    assert float(loss) == 0
    assert torch.equal(one.grad, torch.zeros_like(one))


def test_warms_up_and_counts_its_steps():
    arguments = batch()
    layer, full = Align(0.5, 0.1, 4, True), float(Align(0.5, 0.1, 0, True)(*arguments))
    losses = [float(layer(*arguments)) for _ in range(6)]
    assert losses == pytest.approx([full * rise for rise in (0.25, 0.5, 0.75, 1, 1, 1)])
    again = Align(0.5, 0.1, 4, True)
    again.load_state_dict(layer.state_dict())
    assert float(again(*arguments)) == pytest.approx(full)


def test_is_float32_under_autocast():
    one, other, user, valid = batch()
    wanted = Align(1.0, 0.1, 0, True)(one.float(), other.float(), user, valid)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Align(1.0, 0.1, 0, True)(one.float(), other.float(), user, valid), wanted)


def part(gathered: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A rank's loss and gradients for its half of the batch."""
    size = ROWS // dist.get_world_size()
    one, other, user, valid = (x[dist.get_rank() * size :][:size].clone() for x in batch())
    loss = Align(0.3, 0.2, 0, gathered)(one.requires_grad_(), other.requires_grad_(), user, valid)
    loss.backward()
    return loss.detach(), one.grad, other.grad


def test_two_ranks_equal_one(two_ranks):
    one, other, user, valid = batch()
    loss = Align(0.3, 0.2, 0, True)(one.requires_grad_(), other.requires_grad_(), user, valid)
    loss.backward()
    found = two_ranks.run(part, True)
    # Ranks' losses and gradients are averaged: each is R times its part.
    torch.testing.assert_close(sum(f[0] for f in found) / 2, loss.detach())
    torch.testing.assert_close(torch.cat([f[1] for f in found]) / 2, one.grad)
    torch.testing.assert_close(torch.cat([f[2] for f in found]) / 2, other.grad)


def test_a_ranks_own_negatives_are_fewer(two_ranks):
    one, other, user, valid = batch()
    halves = [by_formula(one[h], other[h], user[h], valid[h], 0.2) * valid[h].sum() for h in (slice(0, 4), slice(4, 8))]
    found = two_ranks.run(part, False)
    torch.testing.assert_close(sum(f[0] for f in found) / 2, 0.3 * sum(halves) / valid.sum())


def gathering() -> tuple[torch.Tensor, int, torch.Tensor]:
    rank = dist.get_rank()
    x = torch.full([2, 3], float(rank)).requires_grad_()
    everyone, first = all_gather(x)
    (everyone * torch.arange(4.0).unsqueeze(1) * (rank + 1)).sum().backward()
    return everyone.detach(), first, x.grad


def test_gathers_with_gradient(two_ranks):
    for rank, (everyone, first, gradient) in enumerate(two_ranks.run(gathering)):
        assert torch.equal(everyone[:, 0], torch.tensor([0.0, 0, 1, 1]))
        assert first == 2 * rank
        assert torch.equal(gradient[:, 0], 3 * torch.arange(4.0)[2 * rank :][:2])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_signatures_tell_rows_apart(rows):
    table = torch.randn(4, 16)
    marks = signature(table[rows])
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            assert (a == b) == bool(marks[i] == marks[j])
    assert torch.equal(signature(table.half()[rows]), signature(table.half()[rows].float()))


def test_signatures_of_many_rows_are_distinct():
    table = torch.randn(200_000, 4) * 0.01
    assert len(signature(table).unique()) == len(table.unique(dim=0))
    assert math.isclose(len(table), len(table.unique(dim=0)), rel_tol=1e-3)
