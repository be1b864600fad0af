"""The arithmetic of combined gradients against vectors, second-order autograd and torchjd."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchjd.aggregation import PCGrad as Oracle

from livetrain.configs.registry import COMBINERS
from livetrain.modules.gradients import combiner as gradients
from livetrain.modules.gradients.gradnorm import GradNorm
from livetrain.modules.gradients.pcgrad import PCGrad, orders, project
from livetrain.modules.gradients.sum import Sum
from livetrain.modules.gradients.uncertainty import Uncertainty

DOUBLE = torch.float64


def made(tasks: int | Tensor, seed: int = 1, **section) -> gradients.Combiner:
    """Return the combiner of a recipe's section, of so many tasks or of tasks with these first losses."""
    losses = torch.zeros(tasks, dtype=DOUBLE) if isinstance(tasks, int) else tasks
    return gradients.combiner(COMBINERS.parse(section), gradients.Start(losses, seed))


@st.composite
def jacobians(draw) -> Tensor:
    """(T, P) gradients with zeros, parallels and opposites among them."""
    tasks, width = draw(st.integers(2, 6)), draw(st.integers(1, 9))
    rows = torch.randn(tasks, width, dtype=DOUBLE, generator=torch.Generator().manual_seed(draw(st.integers(0, 10**6))))
    for _ in range(draw(st.integers(0, 2))):
        to, of = draw(st.integers(0, tasks - 1)), draw(st.integers(0, tasks - 1))
        rows[to] = draw(st.sampled_from([0.0, 1.0, -1.0, -0.3])) * rows[of]
    return rows * 10 ** draw(st.floats(-4, 4))


def by_vectors(rows: Tensor, order: Tensor) -> Tensor:
    """Algorithm 1 of the paper, on the gradients themselves."""
    total = torch.zeros_like(rows[0])
    for i, others in enumerate(order.tolist()):
        g = rows[i].clone()
        for j in others:
            if j != i and rows[j].norm() > 0 and (product := g @ rows[j]) < 0:
                g -= product / (rows[j] @ rows[j]) * rows[j]
        total += g
    return total


@settings(deadline=None, max_examples=200)
@given(jacobians(), st.integers(0, 2**31), st.integers(0, 10**6))
def test_the_weights_give_the_gradient_of_the_paper_and_of_torchjd(rows, seed, step):
    weights = made(len(rows), seed, kind="pcgrad")(rows @ rows.T, None, step)
    size = weights.max() * rows.norm(dim=1).max() + 1e-30
    wanted = by_vectors(rows, orders(len(rows), seed, step))
    assert (weights @ rows - wanted).abs().max() <= 1e-6 * size
    assert weights.min() >= 1
    torch.manual_seed(seed * 1_000_003 + step)
    assert torch.allclose(Oracle()(rows), weights @ rows, rtol=0, atol=1e-6 * float(size))


@settings(deadline=None)
@given(jacobians(), st.integers(0, 10**6))
def test_gradients_without_conflict_are_added(rows, seed):
    rows = rows.abs()
    assert torch.equal(
        made(len(rows), seed, kind="pcgrad")(rows @ rows.T, None, 0), torch.ones(len(rows), dtype=DOUBLE)
    )


@settings(deadline=None)
@given(jacobians(), st.integers(0, 10**6))
def test_two_tasks_have_one_order_and_their_names_do_not_matter(rows, seed):
    rows = rows[:2]
    gram = rows @ rows.T
    weights = [made(2, seed, kind="pcgrad")(gram, None, step) for step in range(4)]
    assert all(torch.equal(each, weights[0]) for each in weights)
    swapped = made(2, seed, kind="pcgrad")(gram.flip(0, 1), None, 0)
    assert torch.allclose(swapped.flip(0), weights[0])


@settings(deadline=None)
@given(jacobians(), st.integers(0, 10**6))
def test_renamed_tasks_that_meet_in_the_renamed_order_get_the_renamed_weights(rows, seed):
    order, names = orders(len(rows), seed, 0), torch.randperm(len(rows))
    renamed = rows[names]
    back = torch.argsort(names)
    weights = project(rows @ rows.T, order)
    again = project(renamed @ renamed.T, back[order[names]])
    size = weights.max() * rows.norm(dim=1).max() + 1e-30
    assert (again @ renamed - weights @ rows).abs().max() <= 1e-6 * size


def test_the_orders_are_a_function_of_seed_and_step_and_differ():
    found = [orders(5, seed, step) for seed in (1, 2) for step in range(20)]
    assert torch.equal(found[3], orders(5, 1, 3))
    assert len({tuple(order.flatten().tolist()) for order in found}) == 40
    assert all(sorted(row) == list(range(5)) for order in found for row in order.tolist())


class Small:
    """Three regressions on a shared hidden layer, in float64, trained with plain gradient descent."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.w = torch.randn(6, 4, dtype=DOUBLE).div_(2).requires_grad_()
        self.heads = torch.randn(3, 4, dtype=DOUBLE)
        self.x, self.y = torch.randn(32, 6, dtype=DOUBLE), torch.randn(32, 3, dtype=DOUBLE) * torch.tensor([1, 3, 0.2])

    def losses(self) -> list[Tensor]:
        out = torch.tanh(self.x @ self.w) @ self.heads.T
        return [(out[:, i] - self.y[:, i]).square().mean() for i in range(3)]

    def descend(self, weights: Tensor) -> None:
        total = sum(w * loss for w, loss in zip(weights, self.losses(), strict=True))
        (gradient,) = torch.autograd.grad(total, [self.w])
        with torch.no_grad():
            self.w -= 0.05 * gradient

    def gram(self) -> Tensor:
        rows = [torch.autograd.grad(loss, [self.w], retain_graph=True)[0].flatten() for loss in self.losses()]
        return torch.stack(rows) @ torch.stack(rows).T


def gradnorm_by_autograd(small: Small, weights: Tensor, initial: list[Tensor], alpha: float, lr: float) -> Tensor:
    """The published algorithm: L_grad is built on the graph of the norms and differentiated again."""
    weights = weights.clone().requires_grad_()
    losses = small.losses()
    norms = torch.stack(
        [
            torch.autograd.grad(weights[i] * losses[i], [small.w], create_graph=True, retain_graph=True)[0].norm()
            for i in range(3)
        ]
    )
    ratios = torch.stack([(losses[i] / initial[i]).detach() for i in range(3)])
    target = (norms.mean() * (ratios / ratios.mean()) ** alpha).detach()
    (gradient,) = torch.autograd.grad((norms - target).abs().sum(), [weights])
    moved = weights.detach() - lr * gradient
    return moved * 3 / moved.sum()


@pytest.mark.parametrize("alpha", [0.0, 0.12, 1.5])
@pytest.mark.parametrize("first_batch", [True, False])
def test_gradnorm_equals_second_order_autograd(alpha, first_batch):
    one, other = Small(), Small()
    known = torch.zeros(3, dtype=DOUBLE) if first_batch else torch.full((3,), math.log(2), dtype=DOUBLE)
    combiner = made(known, kind="gradnorm", alpha=alpha, lr=0.01)
    initial = [loss.detach() for loss in other.losses()] if first_batch else list(known)
    weights = torch.ones(3, dtype=DOUBLE)
    for step in range(60):
        losses = torch.stack(one.losses()).detach()
        found = combiner(one.gram(), losses, step)
        assert torch.allclose(found, weights, atol=1e-10)
        one.descend(found)
        moved = gradnorm_by_autograd(other, weights, initial, alpha, 0.01)
        other.descend(weights)
        weights = moved
    assert (weights - 1).abs().max() > 0.1
    assert float(weights.sum()) == pytest.approx(3)


def test_gradnorm_keeps_weights_positive_and_waits_for_a_first_loss():
    combiner = made(2, kind="gradnorm", alpha=1.0, lr=50.0)
    gram = torch.diag(torch.tensor([100.0, 1.0], dtype=DOUBLE))
    assert combiner(gram, torch.tensor([0.0, 1.0], dtype=DOUBLE), 0).tolist() == [1, 1]
    assert combiner.initial.tolist() == [0, 1]
    weights = combiner(gram, torch.tensor([2.0, 1.0], dtype=DOUBLE), 1)
    assert combiner.initial.tolist() == [2, 1]
    assert weights.min() > 0
    assert float(weights.sum()) == pytest.approx(2)
    flat = combiner(torch.zeros(2, 2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE), 2)  # everything is learned
    assert flat.isfinite().all()
    assert combiner.weights.isfinite().all()


def test_uncertainty_equals_autograd_through_the_whole_loss():
    one, other = Small(), Small()
    combiner = made(3, kind="uncertainty", lr=0.1)
    s = torch.zeros(3, dtype=DOUBLE, requires_grad=True)
    for step in range(60):
        one.descend(combiner(None, torch.stack(one.losses()).detach(), step))
        total = (torch.exp(-s) * torch.stack(other.losses()) + s / 2).sum()
        by_w, by_s = torch.autograd.grad(total, [other.w, s])
        with torch.no_grad():
            other.w -= 0.05 * by_w
            s -= 0.1 * by_s
        assert torch.allclose(combiner.log_variance, s.detach(), atol=1e-12)
        assert torch.allclose(one.w, other.w, atol=1e-12)
    assert s.abs().min() > 0.1


def test_a_recipes_section_makes_its_combiner():
    sections = {
        Sum: {},
        PCGrad: {"kind": "pcgrad"},
        GradNorm: {"kind": "gradnorm", "alpha": 0.5, "lr": 0.2},
        Uncertainty: {"kind": "uncertainty", "lr": 0.3},
    }
    combiners = {kind: made(2, 3, **section) for kind, section in sections.items()}
    assert all(type(combiner) is kind for kind, combiner in combiners.items())
    assert combiners[PCGrad].seed == 3
    assert (combiners[GradNorm].config.alpha, combiners[GradNorm].config.lr) == (0.5, 0.2)
    assert combiners[Uncertainty].config.lr == 0.3
    for kind in (Sum, PCGrad):  # they have nothing for a checkpoint to keep
        assert not combiners[kind].state_dict()


def test_cosines_and_conflict():
    rows = torch.tensor([[3.0, 0.0], [0.0, 2.0], [-1.0, 1.0], [0.0, 0.0]], dtype=DOUBLE)
    half = math.sqrt(0.5)
    wanted = torch.tensor([[1, 0, -half, 0], [0, 1, half, 0], [-half, half, 1, 0], [0, 0, 0, 0]], dtype=DOUBLE)
    assert torch.allclose(gradients.cosines(rows @ rows.T), wanted)
    assert gradients.conflicting(rows @ rows.T)
    assert not gradients.conflicting(rows[:2] @ rows[:2].T)
