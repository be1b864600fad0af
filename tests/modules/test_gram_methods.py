"""Combiners that weigh by the Gram matrix, against what defines each, and FAMO and the first losses of GradNorm."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchjd.aggregation import MGDAWeighting
from torchjd.scalarization import FAMO

from livetrain.configs.registry import TASKS
from livetrain.modules.gradients.combiner import Combiner, register_combiner
from livetrain.modules.tasks.registry import kinds
from tests.modules.test_gradients import DOUBLE, jacobians, made

KINDS = ("mgda", "imtl_g", "aligned_mtl", "upgrad", "cagrad", "nash_mtl")


@st.composite
def independent(draw) -> Tensor:
    """(T, P) gradients of which none is a sum of the others, of very different lengths."""
    tasks = draw(st.integers(2, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    rows = torch.randn(tasks, 12, dtype=DOUBLE, generator=generator)
    return rows * 10 ** torch.tensor([draw(st.floats(-1, 1)) for _ in range(tasks)], dtype=DOUBLE).unsqueeze(1)


def weights_of(rows: Tensor, kind: str, **section) -> Tensor:
    return made(len(rows), kind=kind, **section)(rows @ rows.T, None, 0)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)
@given(rows=jacobians())
def test_whatever_the_gradients_weights_are_finite_and_add_up(kind, rows):
    weights = weights_of(rows, kind)
    assert weights.isfinite().all()
    assert float(weights.sum()) == pytest.approx(len(rows), rel=1e-6)
    assert torch.equal(weights[rows.norm(dim=1) == 0], torch.ones(int((rows.norm(dim=1) == 0).sum()), dtype=DOUBLE))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(rows=independent(), size=st.floats(-3, 3))
def test_neither_the_order_of_tasks_nor_a_common_factor_matters(kind, rows, size):
    weights = weights_of(rows, kind)
    assert torch.allclose(weights_of(rows.flip(0), kind).flip(0), weights, atol=2e-3)
    assert torch.allclose(weights_of(rows * 10**size, kind), weights, atol=2e-3)


@settings(deadline=None, max_examples=40)
@given(independent())
def test_mgda_finds_the_shortest_vector(rows):
    weights = weights_of(rows, "mgda", scale="method")
    k = rows @ rows.T
    assert weights.min() >= 0
    assert float(weights.sum()) == pytest.approx(1)
    oracle = MGDAWeighting(epsilon=1e-9, max_iters=5000)(k) @ rows
    assert float((weights @ rows).norm()) <= float(oracle.norm()) * (1 + 1e-9)
    assert torch.allclose(weights @ rows, oracle, atol=0.05 * float(rows.norm(dim=1).max()))
    squared = weights @ k @ weights
    assert (k @ weights).min() >= (1 - 1e-6) * squared  # of the shortest one no gradient goes less far along it


@settings(deadline=None, max_examples=40)
@given(independent())
def test_imtl_goes_as_far_along_every_gradient(rows):
    weights = weights_of(rows, "imtl_g", scale="method")
    assume((weights - 1).abs().max() > 0)  # where they add up to nothing, it is a sum
    along = (rows @ (weights @ rows)) / rows.norm(dim=1)
    assert torch.allclose(along, along[0].expand(len(along)), rtol=1e-5, atol=1e-8 * float(weights.abs().max()))


@settings(deadline=None, max_examples=40)
@given(independent())
def test_aligned_gradients_are_orthogonal_and_of_one_length(rows):
    weights = weights_of(rows, "aligned_mtl", scale="method")
    k = rows @ rows.T
    values, vectors = torch.linalg.eigh(k)
    turned = (values[0].sqrt() * vectors @ torch.diag(values**-0.5) @ vectors.T) @ rows
    assert torch.allclose(turned @ turned.T, values[0] * torch.eye(len(k), dtype=DOUBLE), atol=1e-8 * float(values[-1]))
    assert torch.allclose(weights @ rows, turned.mean(0), atol=1e-6 * float(rows.abs().max()))


def projected(k: Tensor, i: int) -> Tensor:
    """Return argmin of v' k v over v >= e_i, by trying every set of tasks that stay at their bound."""
    best, least = None, math.inf
    for free in itertools.product([False, True], repeat=len(k)):
        f = torch.tensor(free)
        v = torch.zeros(len(k), dtype=DOUBLE)
        v[i] = 1.0
        if f.any():
            fixed = torch.where(f, 0.0, v)
            v[f] = torch.linalg.solve(k[f][:, f], -(k @ fixed)[f])
        bound = torch.zeros(len(k), dtype=DOUBLE)
        bound[i] = 1.0
        if bool((v >= bound - 1e-9).all()) and float(v @ k @ v) < least:
            best, least = v, float(v @ k @ v)
    return best


@settings(deadline=None, max_examples=40)
@given(independent())
def test_upgrad_adds_up_projections_and_conflicts_with_nobody(rows):
    weights, k = weights_of(rows, "upgrad", scale="method"), rows @ rows.T
    wanted = sum(projected(k, i) for i in range(len(k)))
    assert torch.allclose(weights, wanted, rtol=1e-6, atol=1e-8)
    assert ((k @ weights) / k.diagonal()).min() >= -1e-9
    assert torch.equal(weights_of(rows.abs(), "upgrad", scale="method"), torch.ones(len(rows), dtype=DOUBLE))


@settings(deadline=None, max_examples=25)
@given(independent(), st.floats(0.05, 0.9))
def test_cagrad_helps_the_worst_task_more_than_any_other_direction_as_near_to_the_mean(rows, c):
    x = weights_of(rows, "cagrad", scale="method", c=c) @ rows
    mean = rows.mean(0)
    radius = c * mean.norm()
    assert float((x - mean).norm()) == pytest.approx(float(radius), rel=1e-3)
    others = torch.randn(2000, rows.size(1), dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    others = mean + radius * others / others.norm(dim=1, keepdim=True)
    worst = (rows @ others.T).min(0).values.max()
    assert (rows @ x).min() >= worst - 1e-3 * rows.norm(dim=1).max() * radius


@settings(deadline=None, max_examples=40)
@given(independent())
def test_nash_is_where_each_gains_what_it_gives(rows):
    weights, k = weights_of(rows, "nash_mtl", scale="method"), rows @ rows.T
    assert weights.min() > 0
    assert torch.allclose(weights * (k @ weights), torch.ones(len(k), dtype=DOUBLE), atol=1e-5)


def test_cagrad_without_room_is_the_mean():
    rows = torch.tensor([[1.0, 0.0], [-0.5, 1.0]], dtype=DOUBLE)
    assert torch.allclose(weights_of(rows, "cagrad", c=0.0), torch.ones(2, dtype=DOUBLE))


@pytest.mark.parametrize("kind", ["pcgrad", "upgrad"])
def test_products_are_averaged_over_steps_without_a_bias_to_the_start(kind):
    generator = torch.Generator().manual_seed(3)
    grams = [rows @ rows.T for rows in torch.randn(6, 3, 4, dtype=DOUBLE, generator=generator)]
    averaging = made(3, kind=kind, average=0.8)
    for step, gram in enumerate(grams):
        share = [0.8 ** (step - s) for s in range(step + 1)]
        wanted = sum(part * one for part, one in zip(share, grams, strict=False)) / sum(share)
        assert torch.allclose(averaging(gram, None, step), made(3, kind=kind)(wanted, None, step))
    kept = made(3, kind=kind, average=0.8)
    kept.load_state_dict(averaging.state_dict())
    assert torch.equal(kept(grams[0], None, 9), averaging(grams[0], None, 9))


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 5), st.integers(0, 10**6), st.floats(0.001, 0.2))
def test_famo_equals_torchjd(tasks, seed, lr):
    oracle = FAMO(tasks, lr=lr).double()
    oracle._w.data = oracle._w.data.double()
    ours = made(tasks, kind="famo", lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for step in range(8):
        before = torch.rand(tasks, dtype=DOUBLE, generator=generator) + 0.1
        after = before * (0.5 + torch.rand(tasks, dtype=DOUBLE, generator=generator))
        asked = before.clone().requires_grad_()
        oracle(asked).backward()
        weights = ours(None, before, step)
        assert torch.allclose(weights, asked.grad, atol=1e-7)
        assert float(weights.sum()) == pytest.approx(1)
        oracle.update(after)
        ours.learn(before, after)
        assert torch.allclose(ours.logits, oracle._w.detach().double(), atol=1e-6)


def test_gradnorm_begins_with_the_entropy_of_labels():
    combiner = made(torch.tensor([math.log(2), math.log(2), 0.0], dtype=DOUBLE), kind="gradnorm")
    combiner.begin(torch.tensor([0.056, 0.0, 0.0], dtype=DOUBLE))
    assert combiner.initial.tolist() == [0.056, math.log(2), 0.0]
    made(2, kind="pcgrad").begin(torch.ones(2))  # others do not ask


@pytest.mark.parametrize("rate", [0.0, 1e-3, 0.3, 1.0])
def test_the_loss_that_a_rate_leaves_is_the_least_that_one_answer_for_all_has(rate):
    task = kinds({"t": TASKS.parse({"label": "t"})})["t"]
    p = min(max(rate, 1e-6), 1 - 1e-6)
    assert task.base_loss(rate) == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p), rel=1e-6)
    assert kinds({"t": TASKS.parse({"label": "t", "kind": "watch_time"})})["t"].base_loss(3.0) == 0

    class Several(type(task)):
        outputs = 2

        def loss(self, logits, labels):
            return logits[:, 1]

    assert Several().base_loss(rate) == math.log(2)


def test_a_combiner_of_ones_own_is_one_class():
    @register_combiner("of_mine_first")
    class First(Combiner):
        def forward(self, gram, losses, step):
            return torch.eye(self.tasks, dtype=DOUBLE)[0]

    assert made(3, kind="of_mine_first")(None, None, 0).tolist() == [1, 0, 0]
    with pytest.raises(TypeError, match="combiner 'of_mine_second': int must be a subclass of Combiner"):
        register_combiner("of_mine_second")(int)


def test_famo_leaves_out_a_task_that_a_batch_tells_nothing_of():
    combiner = made(3, kind="famo")
    before = torch.tensor([0.5, 0.3, 0.0], dtype=DOUBLE)
    weights = combiner(None, before, 0)
    assert weights[2] == 1  # of a gradient that is 0; what is that task's own is divided by it
    assert torch.allclose(weights[:2], torch.tensor([0.625, 0.375], dtype=DOUBLE).flip(0), atol=1e-6)
    combiner.learn(before, torch.tensor([0.4, 0.29, 0.0], dtype=DOUBLE))
    assert combiner.logits[0] != 0
    nothing, kept = torch.zeros(3, dtype=DOUBLE), combiner.logits.clone()
    assert torch.equal(combiner(None, nothing, 1), torch.ones(3, dtype=DOUBLE))
    combiner.learn(nothing, nothing)
    assert torch.equal(combiner.logits, kept)
