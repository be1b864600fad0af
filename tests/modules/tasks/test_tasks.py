"""Kinds of tasks and the heads: chains, negative down-sampling, watch time. The arithmetic is checked in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from livetrain.configs.errors import BadInput
from livetrain.configs.registry import parse_model
from livetrain.configs.schema import Task
from livetrain.modules.inputs import Inputs
from livetrain.modules.models.registry import network
from livetrain.modules.tasks.heads import Heads, both
from livetrain.modules.tasks.registry import kinds

LOGITS = st.floats(-30, 30)


def tasks(**changes: dict) -> dict[str, Task]:
    return {name: Task(label=name, **changes.get(name, {})) for name in ("click", "view", "gift")}


def test_every_kind_knows_its_labels():
    found = kinds({kind: Task(label="x", kind=kind) for kind in ("binary", "watch_time", "regression", "retrieval")})
    for kind in found.values():
        labels = np.array([0.0, 1.0, 0.5, -1.0, np.nan, np.inf, 1e39])
        fits = kind.fits(labels).tolist()
        assert fits == [True, True, kind.numeric, False, False, False, False]
        assert torch.equal(kind.fits(torch.tensor(labels)), torch.tensor(fits))


@given(LOGITS, LOGITS)
def test_the_logit_of_a_product(a, b):
    x, y = torch.tensor([a, b], dtype=torch.float64)
    complement = torch.sigmoid(-x) + torch.sigmoid(x) * torch.sigmoid(-y)  # 1 - p q without cancellation
    expected = torch.nn.functional.logsigmoid(x) + torch.nn.functional.logsigmoid(y) - complement.log()
    torch.testing.assert_close(both(x, y), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(both(y, x), both(x, y))


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_the_logit_of_a_product_never_overflows(a, b):
    x = torch.tensor([a, b], requires_grad=True)
    joint = both(x[0], x[1])
    joint.backward()
    assert bool(joint.isfinite())
    assert bool(x.grad.isfinite().all())
    assert float(joint) <= min(x.tolist()) + 1e-3


@given(st.lists(LOGITS, min_size=3, max_size=3))
def test_a_chain_is_a_running_product(outputs):
    heads = Heads(tasks(), {"view": "click", "gift": "view"}).double()
    columns = [torch.tensor([x], dtype=torch.float64) for x in outputs]
    found = heads(columns)
    assert list(found) == ["click", "view", "gift"]
    log_p = torch.cumsum(torch.nn.functional.logsigmoid(torch.cat(columns)), 0)
    torch.testing.assert_close(torch.nn.functional.logsigmoid(torch.cat(list(found.values()))), log_p)


def test_chains_may_branch_and_stand_in_any_order():
    declared = {name: Task(label=name) for name in ("gift", "like", "click", "view")}
    heads = Heads(declared, {"gift": "view", "view": "click", "like": "click"})
    outputs = [torch.tensor([x]) for x in (0.3, -0.4, 1.0, -0.2)]
    p = {name: float(x.sigmoid()) for name, x in zip(declared, outputs, strict=True)}
    found = {name: float(x.sigmoid()) for name, x in heads(outputs).items()}
    joint = {"gift": p["click"] * p["view"] * p["gift"], "like": p["click"] * p["like"], "view": p["click"] * p["view"]}
    assert found == pytest.approx({**joint, "click": p["click"]})
    assert list(found) == list(declared)


def test_the_loss_over_the_entire_space():
    """Every impression counts in every task's loss: against explicit probabilities, gradients too."""
    a, b = torch.randn(2, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    click = (torch.arange(500) % 3 == 0).double()
    view = click * (torch.arange(500) % 2)
    found = Heads({name: Task(label=name) for name in ("click", "view")}, {"view": "click"})([a, b])
    binary = kinds({"click": Task(label="click")})["click"]
    loss = binary.loss(found["click"], click).sum() + binary.loss(found["view"], view).sum()
    ctr, cvr = a.sigmoid(), b.sigmoid()
    terms = click * ctr.log() + (1 - click) * (1 - ctr).log()
    terms = terms + view * (ctr * cvr).log() + (1 - view) * (1 - ctr * cvr).log()
    torch.testing.assert_close(loss, -terms.sum())
    ours, theirs = torch.autograd.grad(loss, [a, b]), torch.autograd.grad(-terms.sum(), [a, b])
    torch.testing.assert_close(ours, theirs)
    assert bool(ours[1][click == 0].all())  # rows without a click teach the conditional too


@pytest.mark.parametrize("kept", [0.05, 0.3])
def test_negative_down_sampling_is_corrected_before_products(kept):
    """True rates are known; the sample has few negatives. Free logits fitted to it give back the true rates.

    click 0.1, view given click 0.4: of a million impressions as many negatives of click are kept as `kept` says.
    """
    declared = tasks(click={"negatives_kept": kept})
    heads = Heads(declared, {"view": "click", "gift": "view"})
    generator = np.random.default_rng(0)
    rows = 1_000_000
    click = generator.random(rows) < 0.1
    view = click & (generator.random(rows) < 0.4)
    gift = view & (generator.random(rows) < 0.2)
    rest = click | (generator.random(rows) < kept)
    labels = torch.tensor(np.stack([click, view, gift], 1)[rest].mean(0), dtype=torch.float64)  # rates in the sample
    outputs = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([outputs], lr=1, max_iter=200, tolerance_grad=1e-10)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = torch.stack(list(heads(list(outputs)).values()))
        total = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        total.backward()
        return total

    optimizer.step(loss)
    trained = torch.stack(list(heads(list(outputs)).values())).sigmoid()
    torch.testing.assert_close(trained.detach(), labels, rtol=1e-3, atol=1e-6)
    served = torch.stack(list(heads.eval()(list(outputs)).values())).sigmoid().tolist()
    observed = [click.mean(), view.mean(), gift.mean()]
    for predicted, rate, count in zip(served, observed, (click.sum(), view.sum(), gift.sum()), strict=True):
        assert predicted / rate == pytest.approx(1, abs=4 / math.sqrt(count * kept) + 0.005)  # PCOC
    # Corrected after the product, or not at all, it would be far off.
    wrong = 1 / (1 + math.exp(-(math.log(labels[1] / (1 - labels[1])) + math.log(kept))))
    assert abs(wrong / observed[1] - 1) > 0.02


def test_the_shift_of_a_single_task():
    heads = Heads({"click": Task(label="click", negatives_kept=0.25)})
    logit = torch.tensor([-1.5])
    p = 0.2
    sampled = p / (p + 0.25 * (1 - p))  # of the rows that are left
    assert float(heads([torch.tensor([math.log(p / (1 - p))])])["click"].sigmoid()) == pytest.approx(sampled)
    assert torch.equal(heads.eval()([logit])["click"], logit)


def fitted(kind: str, times: list[float]) -> float:
    """Return the prediction of a single logit that has the least loss on `times`."""
    learned = kinds({"x": Task(label="x", kind=kind)})["x"]
    labels = torch.tensor(times, dtype=torch.float64)
    low, high = torch.tensor(-60.0).double(), torch.tensor(60.0).double()
    for _ in range(200):  # the loss is convex: its slope changes sign at the least
        middle = ((low + high) / 2).requires_grad_()
        (slope,) = torch.autograd.grad(learned.loss(middle.expand_as(labels), labels).sum(), middle)
        low, high = (low, middle.detach()) if slope > 0 else (middle.detach(), high)
    return float(learned(high))


@given(st.lists(st.one_of(st.just(0.0), st.floats(0.01, 1e5)), min_size=1, max_size=30).filter(any))
@pytest.mark.slow
def test_watch_time_predicts_the_mean_however_many_watch(times):
    assert fitted("watch_time", times) == pytest.approx(np.mean(times), rel=1e-6)


@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=30))
@pytest.mark.slow
def test_regression_predicts_the_mean_of_logarithms(times):
    assert fitted("regression", times) == pytest.approx(np.expm1(np.log1p(times).mean()), rel=1e-6, abs=1e-9)


def test_only_binary_tasks_have_negatives():
    with pytest.raises(ValueError, match="a task of kind watch_time has no negatives"):
        Task(label="x", kind="watch_time", negatives_kept=0.1)


INPUTS = Inputs({"user": 4}, {}, [])


@pytest.mark.parametrize(
    ("chains", "changes", "message"),
    [
        ([["click", "vew"]], {}, r"model.chains.0: there is no task 'vew' \(did you mean 'view'"),
        ([["click", "view"], ["gift", "view"]], {}, r"model.chains.1: task 'view' follows 'gift' here and 'click'"),
        ([["click", "view", "click"]], {}, r"model.chains.0: task 'click' stands in this chain twice"),
        ([["click", "view"], ["view", "gift"]], {}, r"model.chains: task 'view' begins one chain and follows 'click'"),
        ([["click", "view"]], {"view": {"kind": "regression"}}, r"chains.0: task 'view' is of kind regression"),
        ([["click", "view"]], {"view": {"negatives_kept": 0.5}}, r"tasks.view.negatives_kept: 'view' is down a chain"),
    ],
)
def test_impossible_chains_are_refused(chains, changes, message):
    def build() -> None:
        network("esmm")(parse_model({"kind": "esmm", "chains": chains}), INPUTS, tasks(**changes))

    with pytest.raises((BadInput, ValueError), match=message):
        build()
