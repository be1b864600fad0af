"""One step, from a batch to moved parameters, and the pipelines that bring it batches.

Every pipeline takes its steps in `Pipeline.progress`, and none of torchrec's own `progress` is used: each of those
carries a backward pass of its own, and one that passed the gradient combiner by would train something else in silence.
What torchrec's pipelines still do is to move batches and ids ahead of the step.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
import torchrec
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import nn
from torch.profiler import record_function
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.train_pipeline.pipeline_context import PrefetchTrainPipelineContext
from torchrec.distributed.train_pipeline.runtime_forwards import PrefetchPipelinedForward
from torchrec.distributed.train_pipeline.utils import _prefetch_embeddings, _wait_for_batch
from torchrec.distributed.types import Awaitable
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer

from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Batch
from livetrain.modules.layers import distributed
from livetrain.modules.layers.moving import Moving, written
from livetrain.modules.model import Model
from livetrain.modules.tables.adam import Steps
from livetrain.modules.tables.changes import Changes
from livetrain.trainers.train.gradients.combination import Combination
from livetrain.trainers.train.loss import Loss, Output
from livetrain.trainers.train.mean import Mean
from livetrain.trainers.train.online import Online

# What torchrec makes of tables whose rows it spreads over ranks: looked up as they are, or pooled.
SHARDED = (ShardedEmbeddingCollection, ShardedEmbeddingBagCollection)


class Step(nn.Module):
    """Batch -> (losses (T,), Output): what the pipeline runs."""

    def __init__(self, model: Model, recipe: Recipe) -> None:
        super().__init__()
        loss = Loss(recipe)
        self.weigh = loss.weigh  # a child of this module, or torchrec would trace into it
        self.model = model
        self.loss = loss

    def forward(self, batch: Batch) -> tuple[torch.Tensor, Output]:
        weights = self.weigh(batch)
        logits = self.model(batch.ids, batch.dense, batch.weights, batch.vectors, batch.requests, batch.often)
        return self.loss(logits, batch, weights)


class Update(CombinedOptimizer):
    """A run's optimizers, with the one way from losses to the gradients that they may use.

    Args:
        optimizers: by name; that of the sharded tables is fused into their backward pass.
        combination: combines the tasks' gradients.
        dense: the parameters whose combined gradient is clipped.
        clip_norm: the largest norm of that gradient, or None.
        steps: told of every step.
        mean: of the dense parameters, moved after every step; None where the recipe asks for none.
        moving: layers with buffers that a compiled graph leaves to be written.

    Attributes:
        changes: keeps account of the rows that change, where anybody asks for it; see trainers.train.tracking.
        online: gives ids rows with every batch, where a table asks for it.
    """

    def __init__(
        self,
        optimizers: dict[str, KeyedOptimizer],
        combination: Combination,
        dense: list[nn.Parameter],
        clip_norm: float | None,
        steps: Steps,
        mean: Mean | None,
        moving: Sequence[Moving] = (),
    ) -> None:
        super().__init__(list(optimizers.items()))
        self.combination, self.steps, self.mean = combination, steps, mean
        self._dense, self._clip_norm, self._moving = dense, clip_norm, moving
        self.changes: Changes | None = None
        self.online: Online | None = None

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Begin a step: clear the gradients, and tell fused optimizers their rates and the number of the step."""
        super().zero_grad(set_to_none)
        distributed.forget()
        self.steps.begin()

    def backward(self, losses: torch.Tensor) -> None:
        """Leave the combined and clipped gradient in the parameters, and update the sharded tables."""
        self.combination.backward(losses)
        written(self._moving)
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self._dense, self._clip_norm)

    def step(self, closure: Any = None) -> None:
        """Move the parameters.

        Raises:
            RuntimeError: their gradients come from elsewhere than the combiner.
        """
        self.combination.take()
        super().step(closure)
        self.steps.end()
        if self.changes is not None:
            self.changes.step += 1
        if self.mean is not None:
            self.mean.update()


class Pipeline:
    """Brings batches to a model and takes the steps: on one batch after the other, in the one place there is for it."""

    # Methods that belong to a part of the step besides `Update`'s, by name; see trainers.train.probes.step_times.
    PARTS: ClassVar[dict[str, str]] = {}

    _model: nn.Module
    _optimizer: Update

    @property
    def update(self) -> Update:
        return self._optimizer

    @property
    def combination(self) -> Combination:
        return self._optimizer.combination

    def progress(self, batches: Iterator[Batch]) -> Output:
        """Train on the next batch, or only score it when the model is in evaluation mode.

        Raises:
            StopIteration: there is no batch left.
        """
        batch = self._arrive(batches)
        training = self._model.training
        if training and self._optimizer.online is not None:
            self._optimizer.online.begin()
        again = self._again(batch) if training and self.combination.looks_again else None
        if training:
            self._optimizer.zero_grad()
        with record_function("## forward ##"):
            losses, output = self._model(batch)
        self._overlap()
        if training:
            with record_function("## backward ##"):
                self._optimizer.backward(losses)
            with record_function("## optimizer ##"):
                self._optimizer.step()
        if again is not None:
            with record_function("## second forward ##"):
                self.combination.look_again(again)
        self._leave()
        return output

    def _arrive(self, batches: Iterator[Batch]) -> Batch:
        """Return the next batch, on the device, or raise StopIteration."""
        raise NotImplementedError

    def _again(self, batch: Batch) -> Callable[[], torch.Tensor]:
        """Return what passes a batch through the model a second time, to be called before `_leave`."""
        return lambda: self._model(batch)[0]

    def _overlap(self) -> None:
        """Do what later batches need between this one's forward and backward pass."""

    def _leave(self) -> None:
        """Be done with the batch."""

    def pipelined(self) -> int:
        """Return how many table collections exchange their ids ahead of the step."""
        return 0


def _lean_on(owner: type, package: str, *names: str) -> None:
    """Raise where a class of torchrec or fbgemm lacks what is called of it: at the start, not in some later step."""
    for name in names:
        if not callable(getattr(owner, name, None)):
            raise RuntimeError(
                f"{package} has no {owner.__name__}.{name}, which livetrain calls; install the versions of "
                "cluster/setup.sh"
            )


class _Kept(Awaitable[Any]):
    """Ids that have arrived, or will: for both passes of a batch, of which the first waits."""

    def __init__(self, request: Awaitable[Any]) -> None:
        super().__init__()
        self._request: Awaitable[Any] | None = request
        self._arrived: Any = None

    def _wait_impl(self) -> Any:
        if self._request is not None:
            self._arrived, self._request = self._request.wait(), None
        return self._arrived


class TablePipeline(Pipeline, TrainPipelineSparseDist):
    """The next batch's ids travel while this one trains.

    Args:
        model: a `Step` with sharded tables.
        update: its optimizers.
        device: this rank's.

    Raises:
        RuntimeError: the installed torchrec lacks what this is built on.
    """

    PARTS: ClassVar = {"start_sparse_data_dist": "id_exchange", "wait_sparse_data_dist": "id_exchange"}

    def __init__(self, model: nn.Module, update: Update, device: torch.device, **torchrecs: Any) -> None:
        _lean_on(
            TrainPipelineSparseDist,
            f"torchrec {torchrec.__version__}",
            *("fill_pipeline", "enqueue_batch", "dequeue_batch", "start_sparse_data_dist", "wait_sparse_data_dist"),
            *("_init_pipelined_modules", "_set_module_context", "_wait_for_batch"),
        )
        super().__init__(model, update, device, pipeline_postproc=True, **torchrecs)

    def pipelined(self) -> int:
        return len(self._pipelined_modules)

    def _arrive(self, batches: Iterator[Batch]) -> Batch:
        self.fill_pipeline(batches)
        if not self.batches:
            raise StopIteration
        self._set_module_context(self.contexts[0])
        self._wait_for_batch()
        if len(self.batches) > 1:
            self.start_sparse_data_dist(self.batches[1], self.contexts[1])
        self.enqueue_batch(batches)
        return self.batches[0]

    def _again(self, batch: Batch) -> Callable[[], torch.Tensor]:
        context, losses = self.contexts[0], super()._again(batch)
        requests = {name: _Kept(one) for name, one in context.input_dist_tensors_requests.items()}
        contexts = dict(context.module_contexts)
        context.input_dist_tensors_requests.update(requests)

        def with_ids() -> torch.Tensor:
            context.input_dist_tensors_requests.update(requests)
            context.module_contexts.update(contexts)
            return losses()

        return with_ids

    def _overlap(self) -> None:
        if len(self.batches) > 1:
            self.wait_sparse_data_dist(self.contexts[1])

    def _leave(self) -> None:
        self.dequeue_batch()


class CachedTablePipeline(TablePipeline):
    """The same with tables in host memory: the next batch's rows move to the GPU's cache while this one trains.

    A batch's rows are locked in the cache from when they are fetched until its backward pass. A batch that is only
    scored has none, so they are let go as the backward pass would.
    """

    PARTS: ClassVar = TablePipeline.PARTS | {"_prefetch": "embedding_forward"}
    _pipelined_forward_type = PrefetchPipelinedForward

    def __init__(self, model: nn.Module, update: Update, device: torch.device) -> None:
        _lean_on(
            SplitTableBatchedEmbeddingBagsCodegen,
            "fbgemm",
            *("prefetch", "_update_cache_counter_and_locations", "_sync_stream_post_backward"),
        )
        super().__init__(model, update, device, context_type=PrefetchTrainPipelineContext)
        self._prefetch_stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def fill_pipeline(self, batches: Iterator[Batch]) -> None:
        """Bring the first two batches; the first one's rows are fetched, the second one's ids are on their way."""
        if self.batches or not self.enqueue_batch(batches):
            return
        self._init_pipelined_modules(self.batches[0], self.contexts[0], self._pipelined_forward_type)
        self.wait_sparse_data_dist(self.contexts[0])
        if self._prefetch_stream is not None:  # tables or caches may have been written since the last batch
            self._prefetch_stream.wait_stream(torch.cuda.current_stream(self._device))
        self._prefetch(self.batches[0], self.contexts[0])
        if self.enqueue_batch(batches):
            self.start_sparse_data_dist(self.batches[1], self.contexts[1])

    def _arrive(self, batches: Iterator[Batch]) -> Batch:
        self.fill_pipeline(batches)
        if not self.batches:
            raise StopIteration
        self._set_module_context(self.contexts[0])
        _wait_for_batch(self.batches[0], self._prefetch_stream)
        self.enqueue_batch(batches)
        if len(self.batches) > 1:
            self.wait_sparse_data_dist(self.contexts[1])
        return self.batches[0]

    def _overlap(self) -> None:
        if len(self.batches) > 1:
            self._prefetch(self.batches[1], self.contexts[1])

    def _leave(self) -> None:
        if not self._model.training:
            for lookup in cached_lookups(self._model):
                lookup._update_cache_counter_and_locations(lookup, ())
                lookup._sync_stream_post_backward(None)
        if len(self.batches) > 2:
            self.start_sparse_data_dist(self.batches[2], self.contexts[2])
        self.dequeue_batch()

    def _prefetch(self, batch: Batch, context: PrefetchTrainPipelineContext) -> None:
        """Fetch the rows of a batch whose ids have arrived into the cache, beside what the GPU is at."""
        stream = None if self._prefetch_stream is None else torch.cuda.current_stream(self._device)
        with self._stream_context(self._prefetch_stream):
            if self._prefetch_stream is not None:
                batch.record_stream(self._prefetch_stream)
            fetched = _prefetch_embeddings(
                batch,
                context,
                self._pipelined_modules,
                self._device,
                self._stream_context,
                self._data_dist_stream,
                stream,
            )
        for name, ids in fetched.items():
            context.module_input_post_prefetch[name] = ids
            context.module_contexts_post_prefetch[name] = context.module_contexts.pop(name)


def cached_lookups(model: nn.Module) -> Iterator[SplitTableBatchedEmbeddingBagsCodegen]:
    """Yield fbgemm's part of each group of tables that lies in host memory behind a GPU cache."""
    for module in model.modules():
        if isinstance(module, SHARDED):
            for lookup in module._lookups:
                for kernel in lookup._emb_modules:
                    if kernel.emb_module.lxu_cache_weights.numel():
                        yield kernel.emb_module


class DensePipeline(Pipeline):
    """For a model without sharded tables, which torchrec's pipeline would trace whole: one batch after the other."""

    def __init__(self, model: nn.Module, update: Update, device: torch.device) -> None:
        self._model, self._optimizer, self._device = model, update, device

    def _arrive(self, batches: Iterator[Batch]) -> Batch:
        return next(batches).to(self._device, non_blocking=True)
