"""Which rows of a table that every rank holds whole a global batch looks up: a gradient of zero does not tell."""

from typing import Any

import torch
from torch import Tensor, nn

from livetrain.modules.layers.distributed import Later


class Touched:
    """Marks the rows that a table's lookups read in training, until `rows` is asked for them.

    Args:
        embedding: the table.

    Example:
        >>> import torch
        >>> embedding = torch.nn.Embedding(4, 2)
        >>> touched = Touched(embedding)
        >>> _ = embedding(input=torch.tensor([1, 3, 1]))
        >>> touched.rows()
        tensor([False,  True, False,  True])
        >>> touched.rows().any()
        tensor(False)
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        self._marks = torch.zeros(embedding.num_embeddings, dtype=torch.uint8, device=embedding.weight.device)
        self._sent: Later | None = None
        self._asked = False  # whether anybody wants to know
        embedding.register_forward_hook(self._mark, with_kwargs=True)

    def _mark(self, embedding: nn.Module, args: tuple, kwargs: dict[str, Any], found: Tensor) -> None:
        if embedding.training and torch.is_grad_enabled():
            (ids,) = (*args, *kwargs.values())
            self._marks[ids] = 1

    def send(self) -> None:
        """Let the marks of a step, in which no further row is looked up, ride on the next sum over ranks, if wanted."""
        if self._asked:
            self._sent = Later(self._marks.float())

    def rows(self) -> Tensor:
        """Return the rows that any rank has looked up since the last call, bool (rows,), and begin anew. Collective."""
        self._asked = True
        if self._sent is None:
            self.send()
        assert self._sent is not None
        rows = self._sent.total() > 0
        self._marks.zero_()
        self._sent = None
        return rows
