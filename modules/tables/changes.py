"""Which rows of a rank's tables changed when: what a delta holds is asked for by a step, and nothing is ever forgotten.

Of every row the step is kept in which it was last looked up in training, as fused optimizers move those rows and no
others (see modules.optimizers). A row whose gradient was zero counts as changed. Four bytes per row, written in the
forward pass.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Piece:
    """The rows of one table that a rank keeps account of.

    Attributes:
        last: (rows,) int32, the step in which each changed last; 0 where none is known.
        first: the first of them in the whole table.
    """

    last: Tensor
    first: int = 0


class Changes:
    """The steps in which rows changed last, by table; on one rank.

    Args:
        lineage: names this training: drawn where it begins, and kept by those that go on with its newest checkpoint. A
            table is known by it and by its own name, in checkpoints, exports and deltas.

    Attributes:
        step: steps done.
        since: no change after this step is missed.
        pieces: by table, of those that are trained and have rows here.

    Example:
        >>> import torch
        >>> changes, table = Changes("f00d"), torch.nn.Embedding(4, 2)
        >>> changes.watch("movie", table)
        >>> _ = table(torch.tensor([1, 3]))
        >>> changes.step += 1
        >>> _ = table(torch.tensor([3]))
        >>> changes.pieces["movie"].last
        tensor([0, 1, 0, 2], dtype=torch.int32)
        >>> changes.mark("movie", torch.tensor([0, 7]))  # 7 is on another rank
        >>> changes.pieces["movie"].last
        tensor([2, 1, 0, 2], dtype=torch.int32)
    """

    def __init__(self, lineage: str) -> None:
        self.lineage, self.step, self.since = lineage, 0, 0
        self.pieces: dict[str, Piece] = {}

    def mark(self, table: str, rows: Tensor) -> None:
        """Say that rows change in the present step by other means than the optimizer's.

        Args:
            table: that is trained.
            rows: (n,) int64, numbered in the whole table; those that are not here are left out.
        """
        if (piece := self.pieces.get(table)) is None:
            return
        rows = rows.to(piece.last.device) - piece.first
        piece.last[rows[(rows >= 0) & (rows < len(piece.last))]] = self.step + 1

    def watch(self, table: str, embedding: nn.Embedding, whole: bool = False) -> None:
        """Keep account of a table that every rank holds whole.

        Args:
            table: its name.
            embedding: which is trained.
            whole: whether every step moves all its rows.
        """
        last = torch.zeros(embedding.num_embeddings, dtype=torch.int32, device=embedding.weight.device)
        self.pieces[table] = Piece(last)

        def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            if _trains(module):
                (rows,) = (*args, *kwargs.values())
                last.fill_(self.step + 1) if whole else last.index_fill_(0, rows.flatten(), self.step + 1)

        embedding.register_forward_pre_hook(note, with_kwargs=True)

    def watch_fused(
        self, kernel: nn.Module, rows: Sequence[int], features: Sequence[int], kept: Iterable[tuple[str, int, int]]
    ) -> None:
        """Keep account of the tables of one of fbgemm's kernels.

        Args:
            kernel: called with ``indices`` (N,), feature after feature, and ``offsets`` (features x batch + 1,).
            rows: of its tables.
            features: the table of each of its features.
            kept: of its tables that count: their name, their place in the kernel, and their first row in the whole
                table.
        """
        weight = next(kernel.buffers())
        ends = torch.tensor([0, *rows]).cumsum(0)
        last = torch.zeros(int(ends[-1]), dtype=torch.int32, device=weight.device)
        for table, place, first in kept:
            self.pieces[table] = Piece(last[ends[place] : ends[place + 1]], first)
        starts = ends[list(features)].to(weight.device)  # (features,)

        def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            if not _trains(module):
                return
            indices, offsets = (*args, *kwargs.values())[:2]
            batch = (len(offsets) - 1) // len(features)
            if not len(indices) or not batch:
                return
            places = indices.long()
            if len(rows) > 1:
                counts = offsets[::batch].diff()
                places = places + starts.repeat_interleave(counts, output_size=len(indices))
            last.index_fill_(0, places, self.step + 1)

        kernel.register_forward_pre_hook(note, with_kwargs=True)


def _trains(module: nn.Module) -> bool:
    return module.training and torch.is_grad_enabled()
