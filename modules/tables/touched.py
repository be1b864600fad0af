"""Which rows of a table that every rank holds whole a global batch looks up: a gradient of zero does not tell."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Sum(Protocol):
    """A sum over ranks that is made by when it is asked for: modules.layers.distributed.Later."""

    def total(self) -> Tensor:
        """Return it."""


class Touched:
    """Marks the rows that a table's lookups read in training, until `rows` is asked for them.

    Args:
        embedding: the table.
        later: begins a sum over ranks.

    Example:
        >>> import torch
        >>> from livetrain.modules.layers.distributed import Later
        >>> embedding = torch.nn.Embedding(4, 2)
        >>> touched = Touched(embedding, Later)
        >>> _ = embedding(input=torch.tensor([1, 3, 1]))
        >>> touched.rows()
        tensor([False,  True, False,  True])
        >>> touched.rows().any()
        tensor(False)
    """

    def __init__(self, embedding: nn.Embedding, later: Callable[[Tensor], Sum]) -> None:
        self._later = later
        self._marks = torch.zeros(embedding.num_embeddings, dtype=torch.uint8, device=embedding.weight.device)
        self._sent: Sum | None = None
        self._asked = False  # whether anybody wants to know
        embedding.register_forward_hook(self._mark, with_kwargs=True)

    def _mark(self, embedding: nn.Module, args: tuple, kwargs: dict[str, Any], found: Tensor) -> None:
        if embedding.training and torch.is_grad_enabled():
            (ids,) = (*args, *kwargs.values())
            self._marks[ids] = 1

    def send(self) -> None:
        """Let the marks of a step, in which no further row is looked up, ride on the next sum over ranks, if wanted."""
        if self._asked:
            self._sent = self._later(self._marks.float())

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
