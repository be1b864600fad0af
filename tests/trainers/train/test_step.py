"""Every pipeline takes the same step, that of plain PyTorch; none can go past the gradient combiner."""

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from livetrain.configs.schema import Recipe
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train.sharding import shard
from livetrain.trainers.train.step import CachedTablePipeline, DensePipeline, TablePipeline, Update
from tests import twins
from tests.cases import often
from tests.emulated_cache import cache
from tests.trainers.train import test_farm as farm
from tests.trainers.train import test_sharding as one
from tests.trainers.train.gradients import test_combination as several

CPU = torch.device("cpu")
WHOLE = {f"tables__{name}__sharding": "data_parallel" for name in ("user", "movie", "rating")}
# Kind of pipeline, what makes a recipe one for it, and the tables that lie behind a cache.
PIPELINES = {
    "tables": (TablePipeline, {}, ()),
    "one table behind a cache": (CachedTablePipeline, {}, ("movie",)),
    "all behind a cache": (CachedTablePipeline, {}, ("user", "movie", "rating")),
    "whole tables": (DensePipeline, WHOLE, ()),
}
every_pipeline = pytest.mark.parametrize("pipeline", PIPELINES)


def trained(train: Callable, made_for: Recipe, behind: tuple[str, ...]) -> dict:
    """Train on this group's ranks, with tables behind a cache that holds a third of their rows."""
    if not behind:
        return train(made_for)
    with cache(*behind, part=0.33):
        return train(made_for)


@every_pipeline
def test_a_model_gets_the_pipeline_for_where_its_tables_lie(pipeline):
    kind, its, behind = PIPELINES[pipeline]
    with ranks.alone(cuda=False):
        assert type(trained(lambda made_for: shard(made_for, CPU).pipeline, twins.recipe(**its), behind)) is kind


CLIPPED = {"optimizers__dense__clip_norm": 5e-3}
ONE_TASK = {  # what test_sharding does not have already
    "tables, clipped": ("tables", CLIPPED),
    "one table behind a cache": ("one table behind a cache", {}),
    "all behind a cache, clipped": ("all behind a cache", CLIPPED),
    "all behind a cache, SGD by columns": (
        "all behind a cache",
        {"optimizers__sparse__kind": "sgd", "tables__movie__sharding": "column_wise"},
    ),
    "whole tables, clipped": ("whole tables", CLIPPED),
}


@pytest.mark.parametrize(("pipeline", "changes"), ONE_TASK.values(), ids=ONE_TASK.keys())
def test_one_task_on_two_ranks_is_plain_pytorch(two_ranks, pipeline, changes):
    _, its, behind = PIPELINES[pipeline]
    made_for = twins.recipe(**its, **changes)
    first, second = two_ranks.run(trained, one.train_sharded, made_for, behind)
    one.compare(first, made_for, 5e-6)
    assert all(torch.equal(first["dense"][k], second["dense"][k]) for k in first["dense"])


@pytest.mark.parametrize("tasks", [{}, {"model": several.CGC, "tasks": several.TASKS}], ids=["one", "several"])
def test_the_norm_that_is_clipped_here_is_exceeded(tasks):
    found = []
    for changes in ({}, CLIPPED):
        made_for = twins.recipe(**tasks, **changes)
        found.append(twins.train_plain(made_for, twins.batches(made_for, 3))[0].dense.state_dict())
    assert max(float((found[0][name] - found[1][name]).abs().max()) for name in found[0]) > 1e-4


COMBINERS = {
    "sum": {"kind": "sum"},
    "pcgrad": {"kind": "pcgrad"},
    "pcgrad at the trunk": {"kind": "pcgrad", "scope": "trunk"},
    "gradnorm": {"kind": "gradnorm", "lr": 1.0},
    "uncertainty": {"kind": "uncertainty", "lr": 0.1},
}


def reference(made_for: Recipe) -> dict:
    """Train as plain PyTorch, with a backward pass for each task."""
    if made_for.gradients.kind == "pcgrad":
        return several.train_reference(made_for, lambda *given: several.with_torchjd(*given, seed=made_for.train.seed))
    return several.train_reference(made_for, several.combiner_of(made_for))


SEVERAL = [("all behind a cache", name) for name in COMBINERS]  # of the others test_combine has most already
SEVERAL += [("tables", "pcgrad"), ("whole tables", "uncertainty")]
EACH_TIME = ("all behind a cache pcgrad", "all behind a cache gradnorm", "tables pcgrad")


@pytest.mark.parametrize(("pipeline", "combiner"), often({" ".join(pair): pair for pair in SEVERAL}, EACH_TIME))
def test_several_tasks_on_two_ranks_are_plain_pytorch_whatever_combines_them(two_ranks, pipeline, combiner):
    _, its, behind = PIPELINES[pipeline]
    config = COMBINERS[combiner]
    made_for = several.recipe(config["kind"], gradients=config, **its, **CLIPPED)
    wanted = reference(made_for)
    first, second = two_ranks.run(trained, several.train_sharded, made_for, behind)
    several.compare(first, wanted)
    assert all(torch.equal(first["dense"][k], second["dense"][k]) for k in first["dense"])


@pytest.mark.parametrize("pipeline", ["all behind a cache", "whole tables"])  # test_farm has the other
@pytest.mark.slow
def test_a_regulariser_is_in_every_pipelines_sum(two_ranks, pipeline):
    _, its, behind = PIPELINES[pipeline]
    made_for = farm.recipe(**its)
    one.compare(two_ranks.run(trained, one.train_sharded, made_for, behind)[0], made_for, 5e-6)


def inlined(pipeline, batches):
    """A step as torchrec's prefetch pipeline writes it down: with a backward pass of its own."""
    batch = pipeline._arrive(batches)
    pipeline._optimizer.zero_grad()
    losses, output = pipeline._model(batch)
    pipeline._overlap()
    torch.sum(losses, dim=0).backward()
    pipeline._optimizer.step()
    pipeline._leave()
    return output


PAST = [(name, inlined) for name in PIPELINES] + [("tables", TrainPipelineSparseDist.progress)]


@pytest.mark.parametrize(("pipeline", "progress"), PAST)
def test_a_step_past_the_combiner_is_an_error(pipeline, progress):
    kind, its, behind = PIPELINES[pipeline]
    made_for = twins.recipe(**its)
    past = pytest.raises(RuntimeError, match="a step went past the gradient combiner")
    with mock.patch.object(kind, "progress", progress), ranks.alone(cuda=False), past:
        trained(one.train_sharded, made_for, behind)


def test_a_gradient_that_moves_nothing_is_an_error():
    made_for = twins.recipe()
    unmoved = pytest.raises(RuntimeError, match="the gradient of the step before moved no parameter")
    with ranks.alone(cuda=False), mock.patch.object(Update, "step"), unmoved:
        one.train_sharded(made_for)


@pytest.mark.parametrize(
    "name",
    [
        "fill_pipeline",
        "enqueue_batch",
        "dequeue_batch",
        "start_sparse_data_dist",
        "wait_sparse_data_dist",
        "_init_pipelined_modules",
        "_set_module_context",
        "_wait_for_batch",
    ],
)
def test_a_torchrec_without_what_is_called_is_refused_at_the_start(monkeypatch, name):
    monkeypatch.delattr(TrainPipelineSparseDist, name)
    for kind in (TablePipeline, CachedTablePipeline):
        with pytest.raises(RuntimeError, match=rf"torchrec .* has no TrainPipelineSparseDist\.{name}, which livetrain"):
            kind(torch.nn.Module(), None, CPU)


@pytest.mark.parametrize("name", ["prefetch", "_update_cache_counter_and_locations", "_sync_stream_post_backward"])
@pytest.mark.slow
def test_an_fbgemm_without_what_is_called_is_refused_at_the_start(monkeypatch, name):
    monkeypatch.delattr(SplitTableBatchedEmbeddingBagsCodegen, name)
    with pytest.raises(RuntimeError, match=rf"fbgemm has no \w+\.{name}, which livetrain calls"):
        CachedTablePipeline(torch.nn.Module(), None, CPU)
