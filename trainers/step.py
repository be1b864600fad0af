"""One step, from a batch to the combined gradient of its losses, and the pipelines that run it."""

from collections.abc import Iterator

import torch
from torch import nn
from torchrec.distributed.train_pipeline import PrefetchTrainPipelineSparseDist, TrainPipelineSparseDist

from configs.schema import Recipe
from modules.batch import Batch
from modules.model import Model
from trainers.combine import Combination
from trainers.loss import Loss, Output


class Step(nn.Module):
    """Batch -> (losses (T,), Output): what the pipeline runs."""

    def __init__(self, model: Model, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self.loss = Loss(recipe)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, Output]:
        return self.loss(self.model(batch.ids, batch.dense, batch.weights), batch)


class _Backward:
    """The backward pass of both pipelines: the tables' update is fused into it."""

    def settle(self, combination: Combination, dense: list[nn.Parameter], clip_norm: float | None) -> None:
        """Set what combines the tasks' gradients, and the largest norm of the combined gradient of `dense`, or None."""
        self.combination, self._dense, self._clip_norm = combination, dense, clip_norm

    def _backward(self, losses: torch.Tensor) -> None:
        self.combination.backward(losses)
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self._dense, self._clip_norm)

    def pipelined(self) -> int:
        """Return how many table collections exchange their ids ahead of the step."""
        return len(getattr(self, "_pipelined_modules", []))


class TablePipeline(_Backward, TrainPipelineSparseDist):
    """TorchRec's pipeline: the next batch's ids travel while this one trains."""


class CachedTablePipeline(_Backward, PrefetchTrainPipelineSparseDist):
    """The same with tables in host memory: the next batch's rows move to the GPU's cache while this one trains."""


class DensePipeline(_Backward):
    """For a model without sharded tables, which TorchRec's pipeline would trace whole: one batch after the other."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._model, self._optimizer, self._device = model, optimizer, device

    def progress(self, batches: Iterator[Batch]) -> Output:
        """Train on the next batch, or only score it when the model is in evaluation mode."""
        batch = next(batches).to(self._device, non_blocking=True)
        self._optimizer.zero_grad()
        losses, output = self._model(batch)
        if self._model.training:
            self._backward(losses)
            self._optimizer.step()
        return output
