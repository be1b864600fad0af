"""One step: the loss, its gradients averaged over ranks, and the pipeline that runs it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.train_pipeline import PrefetchTrainPipelineSparseDist, TrainPipelineSparseDist

from configs.schema import Recipe
from modules.batch import Batch
from modules.model import Model
from trainers import ranks


class Loss(nn.Module):
    """Weighted sum over tasks of the mean binary cross-entropy over the *global* batch.

        L = R * sum_t w_t * sum_i s_i BCE(z_it, y_it) / sum_ranks sum_i s_i

    R is the number of ranks: averaging the ranks' gradients then gives those of one rank on the global batch.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.tasks = list(recipe.tasks)
        weights = torch.tensor([task.weight for task in recipe.tasks.values()])
        self.register_buffer("task_weights", weights, persistent=False)

    def forward(self, logits: dict[str, torch.Tensor], batch: Batch) -> tuple[torch.Tensor, "Output"]:
        stacked = torch.stack([logits[task] for task in self.tasks], dim=1)  # (B, T)
        each = nn.functional.binary_cross_entropy_with_logits(stacked, batch.labels, reduction="none")  # (B, T)
        sums = (each * batch.weights.unsqueeze(1)).sum(dim=0)  # (T,)
        count = batch.weights.sum()
        total = count.clone()
        if ranks.world() > 1:
            dist.all_reduce(total)
        loss = ranks.world() * (sums * self.task_weights).sum() / total.clamp(min=1.0)
        return loss, Output(batch, stacked.detach(), sums.detach(), count)


@dataclass
class Output:
    """What a step leaves for metrics: the batch, logits (B, T), loss sums (T,) and the summed weight, all local."""

    batch: Batch
    logits: torch.Tensor
    loss_sums: torch.Tensor
    count: torch.Tensor


class Step(nn.Module):
    """Batch -> (loss, Output): what the pipeline runs."""

    def __init__(self, model: Model, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self.loss = Loss(recipe)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, Output]:
        return self.loss(self.model(batch.ids, batch.dense, batch.weights), batch)


class _Backward:
    """The backward pass of both pipelines: the tables' update is fused into it, dense gradients are averaged after."""

    def averaging(self, dense: list[nn.Parameter], clip_norm: float | None) -> "_Backward":
        """Set the dense parameters, and the largest norm of their averaged gradient, or None."""
        self._dense, self._clip_norm = dense, clip_norm
        return self

    def _backward(self, losses: torch.Tensor) -> None:
        losses.backward()
        self._average()
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self._dense, self._clip_norm)

    def _average(self) -> None:
        average_gradients(self._dense)

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
        loss, output = self._model(batch)
        if self._model.training:
            self._backward(loss)
            self._optimizer.step()
        return output


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Average the gradients over ranks in one flat all-reduce; a parameter that got none takes part with zeros."""
    if ranks.world() == 1:
        return
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([g.reshape(-1).float() for g in grads])
    dist.all_reduce(flat)
    flat /= ranks.world()
    for parameter, grad, part in zip(parameters, grads, flat.split([g.numel() for g in grads]), strict=True):
        parameter.grad = grad.copy_(part.view_as(grad))
