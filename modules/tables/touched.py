"""Which rows of a table that every rank holds whole a global batch looks up: a gradient of zero does not tell."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


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
        embedding.register_forward_hook(self._mark, with_kwargs=True)

    def _mark(self, embedding: nn.Module, args: tuple, kwargs: dict[str, Any], found: Tensor) -> None:
        if embedding.training and torch.is_grad_enabled():
            (ids,) = (*args, *kwargs.values())
            self._marks[ids] = 1

    def rows(self) -> Tensor:
        """Return the rows that any rank has looked up since the last call, bool (rows,), and begin anew. Collective."""
        marks = self._marks.clone()
        self._marks.zero_()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(marks, op=dist.ReduceOp.MAX)
        return marks.bool()
