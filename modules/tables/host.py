"""fbgemm's tables on a CPU, with the updates that its kernels have on a GPU alone.

Those are Adam (see modules.tables.adam), and row-wise Adagrad with weight decay where rows are added up: of a pooled
table fbgemm's kernel for CPUs leaves the decay out. For every row r that the global batch looks up, with its summed
gradient g:

    g <- g + decay w_r,   s_r <- s_r + mean(g^2),   w_r <- w_r - lr g / (sqrt(s_r) + eps)
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor
from torch.autograd.function import once_differentiable
from torchrec.distributed import batched_embedding_kernel

from livetrain.modules.tables import adam


class HostTables(SplitTableBatchedEmbeddingBagsCodegen):
    """The lookup is fbgemm's; so is the update, where fbgemm has it."""

    def __init__(self, *args: Any, optimizer: EmbOptimType = EmbOptimType.EXACT_SGD, **kwargs: Any) -> None:
        self._adam = optimizer == EmbOptimType.ADAM
        super().__init__(*args, optimizer=EmbOptimType.EXACT_SGD if self._adam else optimizer, **kwargs)
        self._eps, self._decay = float(kwargs.get("eps", 1e-8)), float(kwargs.get("weight_decay", 0.0))
        decayed = self._decay > 0 and self.pooling_mode != PoolingMode.NONE
        self._decayed = decayed and optimizer == EmbOptimType.EXACT_ROWWISE_ADAGRAD
        shapes = [(rows, dim) for rows, dim, *_ in self.embedding_specs] if self._adam else []
        self._moments = [(torch.zeros(shape), torch.zeros(shape)) for shape in shapes]

    def get_optimizer_state(self) -> list[dict[str, Tensor]]:
        """Return the state by table, under the names that fbgemm gives it on a GPU."""
        if not self._adam:
            return super().get_optimizer_state()
        return [{"exp_avg": m, "exp_avg_sq": v} for m, v in self._moments]

    def forward(
        self, indices: Tensor, offsets: Tensor, per_sample_weights: Tensor | None = None, **more: Any
    ) -> Tensor:
        """Return what fbgemm's lookup does; its backward pass moves the rows."""
        if not (self._adam or self._decayed):
            return super().forward(indices, offsets, per_sample_weights, **more)
        with torch.no_grad():
            found = super().forward(indices, offsets, per_sample_weights, **more)
        return _Update.apply(self.placeholder_autograd_tensor, self, found, indices, offsets, per_sample_weights)

    def update(self, gradient: Tensor, indices: Tensor, offsets: Tensor, weights: Tensor | None) -> None:
        """Move the rows that were looked up.

        Args:
            gradient: of what `forward` returned: (N, dim) of single rows, (B, sum of the features' dims) of pooled.
            indices: (N,) rows, feature after feature.
            offsets: (F B + 1,), where each bag of a feature begins.
            weights: (N,) of the rows in their bags, or None.
        """
        tables: dict[int, list[tuple[Tensor, Tensor]]] = {}
        batch = (len(offsets) - 1) // len(self.feature_table_map)
        ends = self.D_offsets.tolist()
        for feature, table in enumerate(self.feature_table_map):
            of_feature = offsets[feature * batch : (feature + 1) * batch + 1]
            ids = slice(int(of_feature[0]), int(of_feature[-1])) if len(of_feature) else slice(0, 0)
            if self.pooling_mode == PoolingMode.NONE:
                each = gradient[ids]
            else:
                lengths = of_feature.diff()
                bags = gradient[:, ends[feature] : ends[feature + 1]]
                if self.pooling_mode == PoolingMode.MEAN:
                    bags = bags / lengths.clamp(min=1).unsqueeze(1)
                each = bags.repeat_interleave(lengths, dim=0)
                each = each if weights is None else each * weights[ids].unsqueeze(1)
            tables.setdefault(table, []).append((indices[ids], each))
        stored, states = self.split_embedding_weights(), self.get_optimizer_state()
        for table, parts in tables.items():
            rows, place = torch.cat([rows for rows, _ in parts]).unique(return_inverse=True)
            each = torch.cat([each for _, each in parts]).float()
            total = each.new_zeros(len(rows), each.size(1)).index_add_(0, place, each)
            kept = [stored[table], *states[table].values()]
            for value, new in zip(kept, self._moved([value[rows] for value in kept], total), strict=True):
                value[rows] = new

    def _moved(self, rows: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
        """Return rows and their state after a step."""
        lr = self.get_learning_rate()
        if self._adam:
            return adam.moved(rows, gradient, int(self.iter_cpu) + 1, lr, self._eps)
        weight, total = rows
        gradient = gradient + self._decay * weight.float()
        total = total + gradient.square().mean(1)
        change = lr * gradient / (total.sqrt() + self._eps).unsqueeze(1)
        return [(weight.float() - change).to(weight.dtype), total]


class _Update(torch.autograd.Function):
    """What fbgemm's lookups are to autograd: nothing before them, and an update in the place of a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        placeholder: Tensor,
        tables: HostTables,
        found: Tensor,
        indices: Tensor,
        offsets: Tensor,
        weights: Tensor | None,
    ) -> Tensor:
        ctx.tables, ctx.looked_up = tables, (indices, offsets, weights)
        return found.view_as(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        ctx.tables.update(gradient, *ctx.looked_up)
        return (None,) * 6


@contextlib.contextmanager
def tables() -> Iterator[None]:
    """Let torchrec build its fused kernels of `HostTables`: it knows no other way to another kernel."""
    theirs = batched_embedding_kernel.SplitTableBatchedEmbeddingBagsCodegen
    batched_embedding_kernel.SplitTableBatchedEmbeddingBagsCodegen = HostTables
    try:
        yield
    finally:
        batched_embedding_kernel.SplitTableBatchedEmbeddingBagsCodegen = theirs
