"""The tasks' gradients of each row of a table, compared and combined in that row.

At the embeddings of a batch two tasks that pull the same row apart through different samples do not meet. In the row
they do, once each task's gradient is summed over the global batch. That takes the rows of tables that every rank holds
whole, whose optimizers step after the backward pass; those of sharded tables move within it, by the tasks' sum. So a
recipe that asks for this says of every table that it is such a one (see configs.schema.fit): where a table lies must
not change what is learned.

With T tasks a table's gradient is computed, held and sent T times. A row that one task alone moves keeps that task's
gradient.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from livetrain.modules.gradients.combiner import Combiner

Weigh = Callable[[Tensor], Tensor]  # (n, T, T) float64 -> (n, T)


class Rows:
    """Leaves the tasks' gradients in tables, combined row by row.

    Args:
        combiner: compares `by_rows`.
        tables: (rows, dim) each, whole on every rank.
    """

    def __init__(self, combiner: Combiner, tables: list[nn.Parameter]) -> None:
        self._combiner, self._tables = combiner, tables

    def combine(
        self,
        ends: list[Tensor],
        starts: list[list[Tensor]],
        average: Callable[[list[Tensor]], list[Tensor]],
        step: int,
    ) -> Tensor:
        """Set the gradient of every table. Collective. A GPU's step waits once per table, for the number of its rows.

        Args:
            ends: what was looked up in the tables.
            starts: for each of those, its gradient by task and, if that lies there, of the regulariser.
            average: over ranks.
            step: steps before this one.

        Returns:
            (2,): the rows in which any two tasks' gradients pointed against each other, and all that several moved.
        """
        tasks, ways = self._combiner.tasks, list(zip(*starts, strict=True))
        found: list[Tensor] = []
        for way, given in enumerate(ways):
            keep = way + 1 < len(ways)
            found += torch.autograd.grad(ends, self._tables, given, retain_graph=keep, materialize_grads=True)
        found = average(found)
        seen = torch.zeros(2, device=found[0].device)
        for place, table in enumerate(self._tables):
            each = found[place :: len(self._tables)]
            table.grad, counts = combined(each[:tasks], lambda grams: self._combiner.of_rows(grams, step))
            for more in each[tasks:]:  # of the regulariser, which no combiner weighs
                table.grad += more
            seen += counts
        return seen


def combined(gradients: Sequence[Tensor], weigh: Weigh) -> tuple[Tensor, Tensor]:
    """Combine the tasks' gradients of a table, row by row.

    Args:
        gradients: (n, d) by task, summed over the global batch.
        weigh: the tasks' weights in each row, from the Gram matrix of the tasks' gradients there.

    Returns:
        (n, d), and (2,): the rows in which any two gradients pointed against each other, and all that several moved.

    Example: two tasks pull the first row apart; the second row is the second task's own.
        >>> from livetrain.modules.gradients.pcgrad import project
        >>> first, second = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[-1.0, 1.0], [0.0, 3.0]])
        >>> total, counts = combined([first, second], lambda grams: project(grams, torch.tensor([[0, 1], [1, 0]])))
        >>> total.tolist(), counts.tolist()
        ([[0.5, 1.5], [0.0, 3.0]], [1.0, 1.0])
    """
    total = gradients[0].clone()
    for more in gradients[1:]:
        total += more
    moved = torch.stack([gradient.any(1) for gradient in gradients]).sum(0)
    rows = (moved > 1).nonzero().squeeze(1)
    each = torch.stack([gradient[rows] for gradient in gradients], 1).double()  # (m, T, d)
    grams = each @ each.mT
    total[rows] = (weigh(grams).unsqueeze(1) @ each).squeeze(1).to(total)
    conflicts = (grams < 0).flatten(1).any(1)
    return total, torch.stack([conflicts.sum(), torch.full_like(conflicts.sum(), len(rows))]).to(total)
