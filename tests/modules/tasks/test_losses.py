"""Every loss against its paper's formula, and its gradients in float64; what its least loss predicts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from livetrain.configs.registry import TASKS
from livetrain.configs.schema import GroupTask, Task
from livetrain.modules.tasks.binary import Binary
from livetrain.modules.tasks.groups import Members
from livetrain.modules.tasks.heads import Heads
from livetrain.modules.tasks.ordinal import thresholds
from livetrain.modules.tasks.registry import kinds, register_task
from tests import slow_losses

BY_ROW = {
    "binary": {},
    "focal": {"gamma": 1.7},
    "focal with alpha": {"gamma": 2, "alpha": 0.25},
    "smoothed": {"smoothing": 0.2},
    "watch_time": {},
    "regression": {},
    "huber": {"delta": 2.0},
    "quantile": {"quantile": 0.8},
    "ordinal": {"thresholds": [1, 4, 5.5], "restoration": 0.7, "order": 0.3},
    "distilled": {"of": "y"},
}
BY_GROUP = {"pairwise": {}, "listwise": {}, "jrc": {"alpha": 0.3}, "distilled_list": {"of": "y", "temperature": 1.7}}


def task(name: str, keys: dict) -> Task:
    return TASKS.parse({"label": "x", "kind": name.split()[0], **keys})


def draw(made: Task, rows: int = 9, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and labels in float64, none of them at a kink."""
    generator = torch.Generator().manual_seed(seed)
    kind = kinds({"x": made})["x"]
    shape = (rows,) if kind.outputs == 1 else (rows, kind.outputs)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * 2
    labels = (torch.rand(rows, generator=generator, dtype=torch.float64) < 0.5).double()
    if kind.follows:
        labels = torch.rand(rows, generator=generator, dtype=torch.float64)
    elif kind.numeric:
        labels = labels * torch.rand(rows, generator=generator, dtype=torch.float64) * 8
    return logits.requires_grad_(), labels


@pytest.mark.parametrize(("name", "keys"), BY_ROW.items())
def test_a_rows_loss_is_the_papers(name, keys):
    made = task(name, keys)
    kind = kinds({"x": made})["x"].double()
    logits, labels = draw(made)
    found, wanted = kind.loss(logits, labels), slow_losses.row(made, logits, labels)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), logits)[0] for x in (found, wanted)))
    assert torch.autograd.gradcheck(lambda z: kind.loss(z, labels), logits)


@pytest.mark.parametrize("name", ["focal", "smoothed", "pairwise", "listwise", "jrc", "distilled", "distilled_list"])
def test_no_logit_overflows(name):
    made = task(name, {"of": "y"} if name.startswith("distilled") else {})
    kind = kinds({"x": made})["x"]
    ends = torch.tensor([-1e4, 1e4, -1e4, 1e4])
    logits = (torch.stack([-ends, ends], 1) if kind.outputs == 2 else ends).requires_grad_()
    labels = torch.tensor([0.0, 0.0, 1.0, 1.0])
    if kind.by_group:
        loss = kind.group_loss(logits, labels, torch.ones(4), torch.zeros(4, dtype=torch.int64))[0]
    else:
        loss = kind.loss(logits, labels)
    loss.sum().backward()
    assert bool(loss.isfinite().all())
    assert bool(logits.grad.isfinite().all())


rows = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 1), min_size=n, max_size=n),
        st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=n, max_size=n),
        st.lists(st.integers(-2, 2), min_size=n, max_size=n),
    )
)


@pytest.mark.parametrize(("name", "keys"), BY_GROUP.items())
@given(rows=rows, seed=st.integers(0, 99))
def test_a_groups_loss_is_the_papers(name, keys, rows, seed):
    made = task(name, keys)
    kind = kinds({"x": made})["x"]
    labels, weights = (torch.tensor(column, dtype=torch.float64) for column in rows[:2])
    groups = torch.tensor(rows[2])
    logits, _ = draw(made, len(labels), seed)
    added, counted = kind.group_loss(logits, labels, weights, groups)
    found = added.sum() / counted.sum().clamp(min=1e-30)
    if not weights.any():
        assert float(found.detach()) == 0
        return
    wanted = slow_losses.loss(made, logits, labels, weights, groups)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (found, wanted)))


@pytest.mark.parametrize(("name", "keys"), BY_GROUP.items())
def test_a_groups_gradient(name, keys):
    made = task(name, keys)
    kind = kinds({"x": made})["x"]
    logits, labels = draw(made)
    groups, weights = torch.arange(9) % 3, torch.arange(9, dtype=torch.float64) % 4
    assert torch.autograd.gradcheck(lambda z: kind.group_loss(z, labels, weights, groups)[0], logits)


@pytest.mark.parametrize(("name", "keys"), BY_GROUP.items())
def test_a_weight_is_a_number_of_rows_in_groups_too(name, keys):
    made = task(name, keys)
    kind = kinds({"x": made})["x"]
    logits, labels = draw(made)
    groups, weights = torch.arange(9) % 3, torch.arange(9) % 4
    copies = torch.arange(9).repeat_interleave(weights)
    one, other = (
        kind.group_loss(logits[chosen], labels[chosen], given.double(), groups[chosen])
        for chosen, given in ((torch.arange(9), weights), (copies, torch.ones(len(copies))))
    )
    torch.testing.assert_close(one[0].sum() / one[1].sum(), other[0].sum() / other[1].sum())


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.data())
def test_pairs_are_all_pairs(groups, data):
    left, right = (data.draw(st.lists(st.booleans(), min_size=len(groups), max_size=len(groups))) for _ in range(2))
    i, j = Members(torch.tensor(groups)).pairs(torch.tensor(left), torch.tensor(right))
    wanted = [
        (a, b)
        for a in range(len(groups))
        for b in range(len(groups))
        if left[a] and right[b] and groups[a] == groups[b]
    ]
    assert sorted(zip(i.tolist(), j.tolist(), strict=True)) == wanted


def least(made: Task, labels: list[float]) -> float:
    """Return what the free outputs that have the least loss on `labels` predict."""
    kind = kinds({"x": made})["x"].double()
    y = torch.tensor(labels, dtype=torch.float64)
    free = torch.zeros(kind.outputs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([free], lr=1, max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = free.expand(len(y), -1)
        total = kind.loss(logits if kind.outputs > 1 else logits[:, 0], y).mean()
        total.backward()
        return total

    optimizer.step(loss)
    outputs = free.detach().unsqueeze(0)
    return float(kind(kind.score(outputs) if kind.outputs > 1 else outputs[:, 0]))


@given(st.lists(st.one_of(st.just(0.0), st.floats(0.01, 30)), min_size=2, max_size=12))
def test_ordinal_restores_the_expected_time(times):
    """Exactly, wherever between thresholds times lie: its least is where chances are the mean ways, and order holds."""
    ends, y = np.array([1, 2.5, 7, 20]), torch.tensor(times, dtype=torch.float64)
    ways = np.clip((np.array(times)[:, None] - np.array([0, 1, 2.5, 7])) / np.diff(ends, prepend=0), 0, 1).mean(0)
    logits = torch.tensor(ways).clamp(1e-12, 1 - 1e-12).logit().requires_grad_()
    loss = {}
    for order in (0.0, 0.1):
        kind = kinds({"x": task("ordinal", {"thresholds": ends.tolist(), "order": order})})["x"].double()
        loss[order] = kind.loss(logits.expand(len(y), -1), y).mean()
    assert float(kind(kind.score(logits.unsqueeze(0)))) == pytest.approx(np.minimum(times, 20).mean(), abs=1e-9)
    assert torch.autograd.grad(loss[0.0], logits)[0].abs().max() < 1e-9
    assert float(loss[0.1]) == pytest.approx(float(loss[0.0]), abs=1e-12)


def test_huber_lies_between_median_and_mean():
    times = [0.0, 1, 2, 3, 100]
    assert least(task("huber", {"delta": 1e3}), times) == pytest.approx(np.mean(times), rel=1e-6)
    assert least(task("huber", {"delta": 0.01}), times) == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_a_quantile_is_that_of_the_labels(share):
    times = np.random.default_rng(0).exponential(20, 2001)
    kind = kinds({"x": task("quantile", {"quantile": share})})["x"]
    candidates = torch.tensor(np.log1p(np.quantile(times, np.arange(1, 100) / 100)))
    losses = [float(kind.loss(z.expand(2001), torch.tensor(times)).mean()) for z in candidates]
    assert float(kind(candidates[int(np.argmin(losses))])) == pytest.approx(np.quantile(times, share))


def test_smoothing_and_focus_draw_predictions_to_the_middle():
    labels = [1.0] * 2 + [0.0] * 18
    assert least(task("smoothed", {"smoothing": 0.1}), labels) == pytest.approx(0.9 * 0.1 + 0.05, abs=1e-4)
    assert 0.15 < least(task("focal", {}), labels) < 0.5
    assert least(task("focal", {"gamma": 0}), labels) == pytest.approx(0.1, abs=1e-4)


def test_jrc_is_calibrated_and_its_correction_cancels_within_groups():
    made = task("jrc", {"alpha": 0.4})
    kind = kinds({"x": made})["x"]
    logits, labels = draw(made)
    groups, ones = torch.arange(9) % 3, torch.ones(9, dtype=torch.float64)
    shifted = Heads({"x": made.model_copy(update={"negatives_kept": 0.1})})(list(logits.unbind(1)))["x"]
    torch.testing.assert_close(kind.score(shifted), kind.score(logits) - np.log(0.1))
    only = kinds({"x": task("jrc", {"alpha": 0})})["x"]
    torch.testing.assert_close(*(only.group_loss(x, labels, ones, groups)[0] for x in (shifted, logits)))


def test_several_outputs_make_one_logit_when_served():
    made = {"a": task("jrc", {}), "b": Task(label="y"), "c": task("ordinal", {"thresholds": [2, 5]})}
    heads = Heads(made)
    columns = list(torch.randn(4, 5).unbind(1))
    trained, served = heads(columns), heads.eval()(columns)
    assert {name: tuple(x.shape) for name, x in trained.items()} == {"a": (4, 2), "b": (4,), "c": (4, 2)}
    torch.testing.assert_close(served["a"], columns[1] - columns[0])
    torch.testing.assert_close(served["c"], 2 * columns[3].sigmoid() + 3 * columns[4].sigmoid())
    with pytest.raises(ValueError, match="the tasks need 5 outputs, not 3"):
        heads(columns[:3])


def test_error_adaptive_thresholds():
    times = np.random.default_rng(0).exponential(30, 5000)
    even, adaptive = (np.array(thresholds(times, 20, alpha)) for alpha in (1e-6, 3.0))
    counts = [np.histogram(times, np.concatenate([[0], ends]))[0] for ends in (even, adaptive)]
    assert counts[0].std() < 2
    assert (np.diff(counts[1]) < 0).all()
    assert even[-1] == adaptive[-1] == pytest.approx(times.max(), rel=1e-5)
    assert np.diff(adaptive)[-1] < np.diff(even)[-1]
    assert thresholds(np.zeros(9), 5) == []


@pytest.mark.parametrize("kind", ["focal", "smoothed", "pairwise", "listwise", "huber", "quantile"])
def test_what_predicts_no_probability_has_no_negatives(kind):
    with pytest.raises(ValueError, match=f"a task of kind {kind} has no negatives"):
        task(kind, {"negatives_kept": 0.1})


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"\[3.0, 1.0\] do not rise"):
        task("ordinal", {"thresholds": [3, 1]})
    with pytest.raises(TypeError, match="must be a subclass of GroupTask"):

        @register_task("test_ungrouped")
        class Ungrouped(Binary):
            by_group = True

    assert issubclass(TASKS.configs()["jrc"], GroupTask)
