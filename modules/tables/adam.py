"""Adam on the rows that a batch touches: as fbgemm's fused kernel computes it, where that kernel is not (see
modules.tables.host).

For every row r that the global batch looks up, with its summed gradient g and t the number of steps trained:

    m_r <- b1 m_r + (1 - b1) g,   v_r <- b2 v_r + (1 - b2) g^2
    w_r <- w_r - lr (m_r / (1 - b1^t)) / (sqrt(v_r / (1 - b2^t)) + eps)

t counts the steps of the whole table, those that left a row alone included. A row that is not looked up keeps its
weights and its moments: it neither moves on by momentum nor forgets, which is where this differs from torch.optim.Adam.

Source: Adam, 1412.6980; on touched rows as in fbgemm's ADAM and in tf.contrib's LazyAdam.
"""

from collections.abc import Sequence
from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn

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
