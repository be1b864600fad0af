"""The losses: unknown labels and weights change what they should and nothing else, on one rank and on two."""

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from livetrain.modules.batch import Batch
from livetrain.trainers.train.loss import Loss
from tests import slow_losses, twins

TASKS = {
    "click": {"label": "click"},
    "like": {"label": "like", "unknown": True, "sample_weight": "worth"},
    "watch": {"label": "watch", "kind": "watch_time", "unknown": True},
    "gift": {"label": "gift", "kind": "regression", "unknown": True},
}
RECIPE = twins.recipe(tasks=TASKS)


def batch(labels: torch.Tensor, weights: torch.Tensor, sample_weights: torch.Tensor | None) -> Batch:
    size = len(weights)
    ids = KeyedJaggedTensor(keys=["user"], values=torch.zeros(0).long(), lengths=torch.zeros(size).long())
    return Batch(ids, torch.zeros(size, 0), labels, weights, torch.arange(size), sample_weights=sample_weights)


def draw(size: int = 40) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits, labels, weights and sample weights; some labels are unknown and some rows padding."""
    generator = torch.Generator().manual_seed(2)
    logits = {task: torch.randn(size, generator=generator) for task in TASKS}
    labels = (torch.rand(size, 4, generator=generator) < 0.5).float()
    labels[:, 2:] *= 7
    labels[::3, 1:] = float("nan")
    weights = (torch.rand(size, generator=generator) < 0.8).float()
    sample_weights = torch.ones(size, 4)
    sample_weights[:, 1] = torch.rand(size, generator=generator) * 0.01  # they add up to less than 1
    labels[weights == 0], sample_weights[weights == 0] = 0, 0
    return logits, labels, weights, sample_weights


def run(logits: dict, labels: torch.Tensor, weights: torch.Tensor, sample_weights: torch.Tensor | None) -> dict:
    logits = {task: logit.clone().requires_grad_() for task, logit in logits.items()}
    losses, output = Loss(RECIPE)(logits, batch(labels, weights, sample_weights))
    losses.sum().backward()
    grads = {task: logit.grad for task, logit in logits.items()}
    return {"losses": losses.detach(), "grads": grads, "counts": (output.weight_sums, output.count)}


def test_a_task_without_its_unknown_rows_is_the_same_task():
    logits, labels, weights, sample_weights = draw()
    found = run(logits, labels, weights, sample_weights)
    assert bool(found["losses"].isfinite().all())
    for t, task in enumerate(TASKS):
        known = ~labels[:, t].isnan()
        fewer = run({k: v[known] for k, v in logits.items()}, labels[known], weights[known], sample_weights[known])
        torch.testing.assert_close(found["losses"][t], fewer["losses"][t])
        torch.testing.assert_close(found["grads"][task][known], fewer["grads"][task])
        assert not found["grads"][task][~known].any()
        assert not found["grads"][task][weights == 0].any()
        real = known & (weights > 0)
        assert float(found["counts"][0][t]) == pytest.approx(float(sample_weights[real, t].sum()))
    assert float(found["counts"][1]) == float(weights.sum())


def test_a_single_task_counts_what_it_knows():
    logits, labels, weights, _ = draw()
    loss = Loss(twins.recipe(tasks={"like": TASKS["like"]}))
    losses, output = loss(logits, batch(labels[:, 1:2], weights, None))
    known = (weights > 0) & ~labels[:, 1].isnan()
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits["like"][known], labels[known, 1])
    torch.testing.assert_close(losses, each.reshape(1))
    assert output.weight_sums.tolist() == [float(known.sum())]
    assert float(output.count) == float(weights.sum())


def test_nothing_of_an_unknown_row_leaks():
    """Whatever its logit: even one that overflows the loss."""
    logits, labels, weights, sample_weights = draw()
    wild = {task: logit.clone() for task, logit in logits.items()}
    for t, task in enumerate(TASKS):
        wild[task][labels[:, t].isnan()] = 1e30
    calm, found = run(logits, labels, weights, sample_weights), run(wild, labels, weights, sample_weights)
    torch.testing.assert_close(found["losses"], calm["losses"])
    for task in TASKS:
        torch.testing.assert_close(found["grads"][task], calm["grads"][task])


def test_a_weight_is_a_number_of_copies():
    logits, labels, weights, _ = draw()
    copies = torch.ones(40, 4)
    copies[5, 1], copies[6, 1] = 3, 0
    weighted = run(logits, labels, weights, copies)["losses"]
    index = torch.cat([torch.arange(40), torch.tensor([5, 5])])
    index = index[index != 6]
    copied = run({k: v[index] for k, v in logits.items()}, labels[index], weights[index], torch.ones(41, 4))["losses"]
    torch.testing.assert_close(weighted[1], copied[1])
    plain = run(logits, labels, weights, None)["losses"]
    torch.testing.assert_close(weighted[[0, 2, 3]], plain[[0, 2, 3]])


def test_a_batch_that_knows_no_label_of_a_task_teaches_it_nothing():
    logits, labels, weights, sample_weights = draw()
    labels[:, 1] = float("nan")
    found = run(logits, labels, weights, sample_weights)
    assert float(found["losses"][1]) == 0
    assert not found["grads"]["like"].any()
    assert bool(found["losses"].isfinite().all())


def on_a_rank(parts: list[slice]) -> dict:
    import torch.distributed as dist

    logits, labels, weights, sample_weights = draw()
    part = parts[dist.get_rank()]
    return run({k: v[part] for k, v in logits.items()}, labels[part], weights[part], sample_weights[part])


def test_two_ranks_are_one(two_ranks):
    whole = run(*draw())
    for parts in ([slice(0, 20), slice(20, 40)], [slice(0, 1), slice(1, 40)]):  # row 0 knows the click alone
        found = two_ranks.run(on_a_rank, parts)
        torch.testing.assert_close(sum(part["losses"] for part in found) / 2, whole["losses"])
        for task, grad in whole["grads"].items():
            torch.testing.assert_close(torch.cat([part["grads"][task] for part in found]) / 2, grad)


GROUPED = {
    "click": {"label": "click", "kind": "jrc", "group": "request"},
    "like": {"label": "like", "kind": "pairwise", "group": "user", "unknown": True, "sample_weight": "worth"},
    "watch": {"label": "watch", "kind": "ordinal", "thresholds": [2, 9], "unknown": True},
    "gift": {"label": "gift", "kind": "listwise", "group": "user", "unknown": True},
}


def run_grouped(part: slice) -> dict:
    """Return what `run` does, of a part of 40 rows whose groups lie anywhere."""
    made_for = twins.recipe(tasks=GROUPED)
    logits, labels, weights, sample_weights = draw()
    labels[:, 3] = labels[:, 3].clamp(max=1)
    generator = torch.Generator().manual_seed(3)
    outputs = {"click": 2, "watch": 2}
    logits = {
        task: torch.stack([x, torch.randn(40, generator=generator)], 1)[part] if task in outputs else x[part]
        for task, x in logits.items()
    }
    logits = {task: x.clone().requires_grad_() for task, x in logits.items()}
    made = batch(labels[part], weights[part], sample_weights[part])
    made.task_groups = torch.randint(-3, 4, (40, 2), generator=generator)[part]
    losses, output = Loss(made_for)(logits, made)
    losses.sum().backward()
    sums = torch.stack([output.loss_sums, output.weight_sums])
    return {"losses": losses.detach(), "grads": {t: x.grad for t, x in logits.items()}, "sums": sums, "made": made}


def test_a_group_is_whole_wherever_its_rows_lie(two_ranks):
    whole = run_grouped(slice(0, 40))
    generator = torch.Generator().manual_seed(3)
    made_for, made = twins.recipe(tasks=GROUPED), whole["made"]
    logits, _, _, sample_weights = draw()
    for t, (task, declared) in enumerate(made_for.tasks.items()):
        more = torch.randn(40, generator=generator) if task in ("click", "watch") else None
        known = (made.weights > 0) & ~made.labels[:, t].isnan()
        given = logits[task] if more is None else torch.stack([logits[task], more], 1)
        groups = made.task_groups[known, {"click": 0, "like": 1, "gift": 1}[task]] if task != "watch" else None
        wanted = slow_losses.loss(declared, given[known], made.labels[known, t], sample_weights[known, t], groups)
        torch.testing.assert_close(whole["losses"][t], wanted)
        assert not whole["grads"][task][~known].any()
    found = two_ranks.run(grouped_on_a_rank)
    torch.testing.assert_close(sum(part["losses"] for part in found) / 2, whole["losses"])
    torch.testing.assert_close(sum(part["sums"] for part in found), whole["sums"])
    for task, grad in whole["grads"].items():
        torch.testing.assert_close(torch.cat([part["grads"][task] for part in found]) / 2, grad)


def grouped_on_a_rank() -> dict:
    import torch.distributed as dist

    found = run_grouped(slice(20 * dist.get_rank(), 20 * dist.get_rank() + 20))
    del found["made"]
    return found


def test_an_evaluation_has_logits_and_no_losses():
    made_for = twins.recipe(tasks=GROUPED)
    logits, labels, weights, _ = draw()
    losses, output = Loss(made_for).eval()(logits, batch(labels, weights, None))
    assert torch.equal(output.logits, torch.stack(list(logits.values()), 1))
    assert not losses.any()


def test_groups_must_be_named():
    assert twins.recipe(tasks=GROUPED).groups() == {"click": "request", "like": "user", "gift": "user"}
    unnamed = {"click": {"label": "click", "kind": "listwise"}}
    assert twins.recipe(tasks=unnamed, evaluate__group_by="user").groups() == {"click": "user"}
    with pytest.raises(ValueError, match=r"tasks.click.group: kind listwise compares the rows of a group"):
        twins.recipe(tasks=unnamed)
