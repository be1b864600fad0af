"""Adam on the rows that a batch touches: as fbgemm's fused kernel computes it, where that kernel is not.

For every row r that the global batch looks up, with its summed gradient g and t the number of steps trained:

    m_r <- b1 m_r + (1 - b1) g,   v_r <- b2 v_r + (1 - b2) g^2
    w_r <- w_r - lr (m_r / (1 - b1^t)) / (sqrt(v_r / (1 - b2^t)) + eps)

t counts the steps of the whole table, those that left a row alone included. A row that is not looked up keeps its
weights and its moments: it neither moves on by momentum nor forgets, which is where this differs from torch.optim.Adam.

Source: Adam, 1412.6980; on touched rows as in fbgemm's ADAM and in tf.contrib's LazyAdam.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchrec.distributed import batched_embedding_kernel

from livetrain.modules.tables.touched import Touched

BETAS = (0.9, 0.999)  # fbgemm's and torch's


def moved(rows: Sequence[Tensor], gradient: Tensor, step: int, lr: float, eps: float) -> list[Tensor]:
    """Return rows and their moments after a step.

    Args:
        rows: the weights (n, dim) of any float type, and their moments m and v, (n, dim) float32.
        gradient: (n, dim).
        step: t, from 1.
        lr: learning rate.
        eps: added to the root.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1, 2)
        >>> moved([zero, zero, zero], torch.tensor([[3.0, -0.1]]), step=1, lr=0.5, eps=0.0)[0]
        tensor([[-0.5000,  0.5000]])
    """
    weight, m, v = rows
    gradient = gradient.float()
    m = m * BETAS[0] + gradient * (1 - BETAS[0])
    v = v * BETAS[1] + gradient.square() * (1 - BETAS[1])
    change = m / (1 - BETAS[0] ** step) / ((v / (1 - BETAS[1] ** step)).sqrt() + eps)
    return [(weight.float() - lr * change).to(weight.dtype), m, v]


class Steps:
    """How many steps a model's tables have trained. In the checkpoint, for Adam's t goes on in a run that goes on.

    fbgemm's own count lives in the process and takes evaluations for steps; it is set from this one.

    Args:
        counted: whether an optimizer asks for the number.
    """

    def __init__(self, counted: bool) -> None:
        self.counted = counted
        self.done = torch.zeros((), dtype=torch.int64)  # on the host, where kernels are told
        self.kernels: list[SplitTableBatchedEmbeddingBagsCodegen] = []

    def begin(self) -> None:
        """Tell the kernels how many steps are done, ahead of a step's forward pass, which adds one."""
        for kernel in self.kernels:
            kernel.iter_cpu.fill_(self.done)

    def end(self) -> None:
        """Count a step."""
        self.done += 1


class RowAdam(torch.optim.Optimizer):
    """Adam on the touched rows of one table that every rank holds whole.

    Args:
        parameter: (rows, dim), with the gradient of the global batch.
        touched: knows the rows that the global batch looked up.
        steps: t.
        lr: learning rate.
        eps: added to the root.
    """

    def __init__(self, parameter: nn.Parameter, touched: Touched, steps: Steps, lr: float, eps: float) -> None:
        super().__init__([parameter], {"lr": lr, "eps": eps})
        self._touched, self._steps = touched, steps
        self.state[parameter] = {
            name: torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)
            for name in ("exp_avg", "exp_avg_sq")
        }

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move the rows. Collective."""
        (group,) = self.param_groups
        (parameter,) = group["params"]
        if parameter.grad is None:
            return
        kept = [parameter, *self.state[parameter].values()]
        step = int(self._steps.done) + 1
        found = moved(kept, parameter.grad, step, group["lr"], group["eps"])
        rows = self._touched.rows().unsqueeze(1)
        for value, new in zip(kept, found, strict=True):
            value.copy_(torch.where(rows, new, value))


class HostTables(SplitTableBatchedEmbeddingBagsCodegen):
    """fbgemm's tables on a CPU, with Adam too: the lookup is fbgemm's, the update is `moved` on the rows looked up."""

    def __init__(self, *args: Any, optimizer: EmbOptimType = EmbOptimType.EXACT_SGD, **kwargs: Any) -> None:
        adam = optimizer == EmbOptimType.ADAM
        super().__init__(*args, optimizer=EmbOptimType.EXACT_SGD if adam else optimizer, **kwargs)
        self._eps = float(kwargs.get("eps", 1e-8))
        shapes = [(rows, dim) for rows, dim, *_ in self.embedding_specs] if adam else []
        self._moments = [(torch.zeros(shape), torch.zeros(shape)) for shape in shapes]

    def get_optimizer_state(self) -> list[dict[str, Tensor]]:
        """Return the moments by table, under the names that fbgemm gives them on a GPU."""
        if not self._moments:
            return super().get_optimizer_state()
        return [{"exp_avg": m, "exp_avg_sq": v} for m, v in self._moments]

    def forward(
        self, indices: Tensor, offsets: Tensor, per_sample_weights: Tensor | None = None, **more: Any
    ) -> Tensor:
        """Return what fbgemm's lookup does; its backward pass moves the rows."""
        if not self._moments:
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
        stored, step = self.split_embedding_weights(), int(self.iter_cpu) + 1
        for table, parts in tables.items():
            rows, place = torch.cat([rows for rows, _ in parts]).unique(return_inverse=True)
            each = torch.cat([each for _, each in parts]).float()
            total = each.new_zeros(len(rows), each.size(1)).index_add_(0, place, each)
            kept = [stored[table], *self._moments[table]]
            held = [value[rows] for value in kept]
            found = moved(held, total, step, self.get_learning_rate(), self._eps)
            for value, new in zip(kept, found, strict=True):
                value[rows] = new


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
def on_host() -> Iterator[None]:
    """Let torchrec build its fused kernels of `HostTables`: it knows no other way to another kernel."""
    theirs = batched_embedding_kernel.SplitTableBatchedEmbeddingBagsCodegen
    batched_embedding_kernel.SplitTableBatchedEmbeddingBagsCodegen = HostTables
    try:
        yield
    finally:
        batched_embedding_kernel.SplitTableBatchedEmbeddingBagsCodegen = theirs
