"""Gradients compared in every row of replicated tables are those of plain PyTorch, row after row."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from livetrain.modules.gradients.pcgrad import orders, project
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train.gradients.rows import combined
from livetrain.trainers.train.sharding import shard
from tests import samples, twins
from tests.trainers.train.gradients.test_combination import (
    CPU,
    TASKS,
    compare,
    recipe,
    row_by_row,
    train_reference,
    train_sharded,
    whole_run,
    with_torchjd,
)
from tests.trainers.train.test_loop import log, same, train

ROWS = {"gradients__scope": "rows"} | {
    f"tables__{name}__sharding": "data_parallel" for name in ("user", "movie", "rating")
}


@st.composite
def some_gradients(draw) -> tuple[torch.Tensor, int]:
    """Gradients of 1 to 5 tasks in a table, with rows that some tasks or none move, and a seed."""
    tasks, rows, dim = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    seed = draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(tasks, rows, dim, generator=generator, dtype=torch.float64)
    found *= torch.rand(tasks, rows, 1, generator=generator) < draw(st.sampled_from([0.3, 0.7, 1.0]))
    return found * 10.0 ** torch.randint(-3, 3, (tasks, 1, 1), generator=generator), seed


@given(some_gradients())
@settings(max_examples=150, deadline=None)
def test_each_row_is_projected_as_torchjd_projects_it(made):
    gradients, seed = made
    found, (conflicts, rows) = combined(gradients, lambda grams: project(grams, orders(len(gradients), seed, 3)))
    assert_close(found, row_by_row([*gradients], seed, 3), rtol=1e-9, atol=1e-9)
    alone = torch.stack([gradient.any(1) for gradient in gradients]).sum(0) < 2
    assert rows == (~alone).sum()
    assert_close(found[alone], sum(gradients)[alone], rtol=0, atol=0)
    pairs = itertools.combinations(gradients, 2)
    against = torch.stack([torch.zeros(len(found)), *((a * b).sum(1) < 0 for a, b in pairs)]).any(0)
    assert conflicts == against.sum()


@given(some_gradients())
@settings(max_examples=50, deadline=None)
def test_one_task_and_two_that_agree_are_summed(made):
    (first, *_), seed = made
    for gradients in (torch.stack([first]), torch.stack([first, 2 * first])):
        found, (conflicts, _) = combined(gradients, lambda grams: project(grams, orders(grams.shape[1], seed, 0)))
        assert_close(found, sum(gradients))
        assert conflicts == 0


def test_ranks_learn_what_plain_pytorch_learns(two_ranks):
    made_for = recipe("pcgrad", **ROWS)
    wanted = train_reference(made_for, lambda *given: with_torchjd(*given, seed=made_for.train.seed))
    with ranks.alone(cuda=False):
        found = train_sharded(made_for)
    compare(found, wanted)
    assert all(0 < step["grad.conflict.rows"] <= 1 for step in found["seen"])
    first, second = two_ranks.run(train_sharded, made_for)
    compare(first, wanted)
    assert [step["grad.conflict.rows"] for step in first["seen"]] == pytest.approx(
        [step["grad.conflict.rows"] for step in found["seen"]], abs=0.02
    )
    assert first["seen"] == second["seen"]
    with ranks.alone(cuda=False):
        shared = train_sharded(recipe("pcgrad", **ROWS | {"gradients__scope": "shared"}))
    assert all((shared["tables"][name] - table).abs().max() > 1e-3 for name, table in found["tables"].items())


def user_gradient(scope: str, kind: str, label: float, tasks: tuple[int, ...]) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the gradient of one user, and the log, of a step in which the first task knows one sample of that user
    alone, and the second task another sample alone, with a label.

    Args:
        scope, kind: of the combiner.
        label: the second task's.
        tasks: those whose sample counts; the others know none.
    """
    made_for = recipe(kind, **ROWS | {"gradients__scope": scope}, tasks=dict([*TASKS.items()][:2]))
    (batch,) = twins.batches(made_for, 1)
    batch.weights[:] = 1
    lengths = torch.ones_like(batch.ids.lengths())
    batch.ids = type(batch.ids)(keys=batch.ids.keys(), values=torch.full((len(lengths),), 7), lengths=lengths)
    batch.sample_weights = torch.zeros(len(batch.weights), 2)
    for task in tasks:
        batch.sample_weights[task, task] = 1
    batch.labels[0, 0], batch.labels[1, 1] = 1.0, label
    with ranks.alone(cuda=False):
        sharded = shard(made_for, CPU)
        sharded.module.train()
        sharded.set_rates(1.0)
        sharded.pipeline.progress(iter([batch]))
        users = next(table for name, table in sharded.model.tables.named_parameters() if ".user." in name)
        return users.grad.sum(0).double(), sharded.pipeline.combination.monitor.read()  # of one row


def test_two_tasks_that_pull_a_row_apart_through_different_samples():
    """At the embeddings, where `shared` compares, they do not meet."""
    conflicts = []
    for label in (0.0, 1.0):  # with one of them the second task pulls against the first
        first, second = (user_gradient("shared", "sum", label, (task,))[0] for task in (0, 1))
        found, seen = user_gradient("rows", "pcgrad", label, (0, 1))
        wanted = row_by_row([first.unsqueeze(0), second.unsqueeze(0)], seed=1, step=0).squeeze(0)
        assert_close(found, wanted, rtol=1e-4, atol=1e-7)
        conflicts.append(seen["grad.conflict.rows"])
        if float(first @ second) < 0:
            weighed, log_ = user_gradient("shared", "pcgrad", label, (0, 1))
            weights = [log_[f"grad.{task}.weight"] for task in ("click", "like")]
            assert_close(weighed, weights[0] * first + weights[1] * second, rtol=1e-4, atol=1e-7)
            assert not torch.allclose(weighed, found, rtol=0.1)
            assert min(float(found @ first), float(found @ second)) > -1e-9
            assert "grad.conflict.rows" not in log_
    assert min(conflicts) < max(conflicts)


def test_killed_and_resumed_it_is_bitwise_the_run_that_was_not(tmp_path):
    data = samples.write(tmp_path / "samples", rows=960)
    changes = {"train__checkpoint_every": 3, **{k: v for k, v in ROWS.items() if k.startswith("tables")}}
    never, made = (
        whole_run(data, tmp_path / name, {"kind": "pcgrad", "scope": "rows"}, **changes) for name in ("never", "made")
    )
    wanted = train(never)
    train(made, 7)
    assert same(train(made), wanted)
    shown = [[line["grad.conflict.rows"] for line in log(tmp_path / name)] for name in ("made", "never")]
    assert shown[0] == shown[1]
    assert len(shown[0]) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tables__movie__sharding": "auto"},
            "gradients.scope: rows compares gradients in tables that every worker holds whole, and 'movie' may be "
            "spread over them; write sharding: data_parallel in tables.movie, or use scope: shared",
        ),
        (
            {"gradients__kind": "mgda"},
            "gradients.scope: 'mgda' does not compare gradients row by row; use scope: shared, or kind: pcgrad",
        ),
        ({"gradients__kind": "sum"}, "gradients.scope: 'sum' does not compare gradients row by row"),
    ],
)
def test_what_would_hang_on_a_tables_place_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        recipe("pcgrad", **ROWS | changes)


def test_a_frozen_table_may_lie_anywhere(two_ranks):
    made_for = recipe("pcgrad", **ROWS | {"tables__rating__sharding": "table_wise", "tables__rating__frozen": True})
    with ranks.alone(cuda=False):
        alone = train_sharded(made_for)
    compare(two_ranks.run(train_sharded, made_for)[0] | {"seen": [{}]}, alone)
