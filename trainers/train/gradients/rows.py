"""The tasks' gradients of each row of a table, compared and combined in that row.

At the embeddings of a batch two tasks that pull the same row apart through different samples do not meet. In the row
they do, once each task's gradient is summed over the global batch. That takes the rows of tables that every rank holds
whole, whose optimizers step after the backward pass; those of sharded tables move within it, by the tasks' sum. So a
recipe that asks for this says of every table that it is such a one (see configs.schema.fit): where a table lies must
not change what is learned.

Of a row that no rank looks up nothing is sent but a mark, by which all ranks find the rows that any of them did. A row
that one task alone moves keeps that task's gradient.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from livetrain.modules.gradients.combiner import Combiner
from livetrain.modules.layers.distributed import Later
from livetrain.modules.model import Model

Weigh = Callable[[Tensor], Tensor]  # (n, T, T) float64 -> (n, T)


class Rows:
    """Leaves the tasks' gradients in tables, combined row by row.

    Args:
        combiner: compares `by_rows`.
        model: hooks on its tables keep what is looked up.
        tables: (rows, dim) each, whole on every rank.
    """

    def __init__(self, combiner: Combiner, model: Model, tables: list[nn.Parameter]) -> None:
        self._combiner = combiner
        known = {id(table) for table in tables}
        found = [m for m in model.modules() if isinstance(m, nn.Embedding) and id(m.weight) in known]
        self._tables = [embedding.weight for embedding in found]
        self._coming: list[list[tuple[Tensor, Tensor]]] = [[] for _ in found]  # by table: ids (N,) and rows (N, dim)
        self._looked = self._coming
        for place, embedding in enumerate(found):
            embedding.register_forward_hook(partial(self._keep, place), with_kwargs=True)

    def _keep(self, place: int, embedding: nn.Module, args: tuple, kwargs: dict[str, Any], found: Tensor) -> None:
        if embedding.training and torch.is_grad_enabled():
            (ids,) = (*args, *kwargs.values())
            self._coming[place].append((ids, found))

    def begin(self) -> None:
        """Take what was looked up since the last call for that of a step."""
        self._looked, self._coming = self._coming, [[] for _ in self._tables]

    def forget(self) -> None:
        """Let go of what a step looked up."""
        self._looked = [[] for _ in self._tables]

    def combine(
        self,
        ends: list[Tensor],
        starts: list[list[Tensor]],
        average: Callable[[list[Tensor]], list[Tensor]],
        step: int,
    ) -> Tensor:
        """Set the gradient of every table. Collective. A GPU's step waits once per table, for the number of its rows.

        Args:
            ends: the embeddings of features that come from the tables.
            starts: for each of those, its gradient by task and, if that lies there, of the regulariser.
            average: over ranks.
            step: steps before this one.

        Returns:
            (2,): the rows in which any two tasks' gradients pointed against each other, and all that several moved.
        """
        inputs = [found for looked in self._looked for _, found in looked]
        ways = [
            torch.autograd.grad(ends, inputs, list(way), retain_graph=True, materialize_grads=True)
            for way in zip(*starts, strict=True)
        ]
        of_inputs = iter([torch.stack(each) for each in zip(*ways, strict=True)])  # (ways, N, dim) each
        rows = self._rows()
        summed = []
        for table, looked, own in zip(self._tables, self._looked, rows, strict=True):
            total = table.new_zeros(len(ways), len(own), table.shape[1])
            for (ids, _), each in zip(looked, of_inputs, strict=False):
                total.index_add_(1, torch.searchsorted(own, ids), each)
            summed.append(total)
        tasks, seen = self._combiner.tasks, summed[0].new_zeros(2)
        for table, own, each in zip(self._tables, rows, average(summed), strict=True):
            found, counts = combined(each[:tasks], lambda grams: self._combiner.of_rows(grams, step))
            table.grad = torch.zeros_like(table)
            table.grad[own] = found + each[tasks:].sum(0)  # the regulariser's, which no combiner weighs
            seen += counts
        return seen

    def _rows(self) -> list[Tensor]:
        """Return, by table, the rows (m,) that any rank looked up, in ascending order. Collective."""
        sums = []
        for table, looked in zip(self._tables, self._looked, strict=True):
            marks = torch.zeros(len(table), device=table.device)
            for ids, _ in looked:
                marks[ids] = 1
            sums.append(Later(marks))
        return [each.total().nonzero().squeeze(1) for each in sums]


def combined(gradients: Tensor, weigh: Weigh) -> tuple[Tensor, Tensor]:
    """Combine the tasks' gradients of a table's rows, row by row.

    Args:
        gradients: (T, n, d), summed over the global batch.
        weigh: the tasks' weights in each row, from the Gram matrix of the tasks' gradients there.

    Returns:
        (n, d), and (2,): the rows in which any two gradients pointed against each other, and all that several moved.

    Example: two tasks pull the first row apart; the second row is the second task's own.
        >>> from livetrain.modules.gradients.pcgrad import project
        >>> rows = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[-1.0, 1.0], [0.0, 3.0]]])
        >>> total, counts = combined(rows, lambda grams: project(grams, torch.tensor([[0, 1], [1, 0]])))
        >>> total.tolist(), counts.tolist()
        ([[0.5, 1.5], [0.0, 3.0]], [1.0, 1.0])
    """
    each = gradients.transpose(0, 1).double()  # (n, T, d)
    grams = each @ each.mT
    several = (grams.diagonal(dim1=1, dim2=2) > 0).sum(1) > 1
    total = (weigh(grams).unsqueeze(1) @ each).squeeze(1).to(gradients)
    conflicts = (grams < 0).flatten(1).any(1)
    return total, torch.stack([conflicts.sum(), several.sum()]).to(gradients)
