"""Which rows are said to have changed: those that a training step looks up, of whichever feature and table."""

import torch
from torch import nn

from livetrain.modules.tables.changes import Changes


class Kernel(nn.Module):
    """Called as fbgemm's kernels are."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.zeros(1))

    def forward(self, indices: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return indices


def test_rows_of_tables_that_share_a_kernel_are_told_apart():
    changes, kernel = Changes("f00d"), Kernel()
    # Features 0 and 2 are of table 0, feature 1 of table 1, whose rows begin at 100; table 2 counts elsewhere.
    changes.watch_fused(kernel, [4, 5, 6], [0, 1, 0, 2], [("user", 0, 0), ("movie", 1, 100)])
    indices, offsets = torch.tensor([3, 1, 4, 4, 0, 5, 2]), torch.tensor([0, 1, 1, 3, 4, 4, 5, 6, 7])
    kernel(indices=indices, offsets=offsets)
    assert changes.pieces["user"].last.tolist() == [1, 0, 0, 1]  # 3 of the first feature, 0 of the third
    assert changes.pieces["movie"].last.tolist() == [0, 1, 0, 0, 1]
    changes.step = 7
    kernel(indices, offsets)
    assert changes.pieces["user"].last.tolist() == [8, 0, 0, 8]
    changes.mark("movie", torch.tensor([102, 99, 105, 104]))
    assert changes.pieces["movie"].last.tolist() == [0, 8, 8, 0, 8]
    changes.mark("none", torch.tensor([1]))


def test_lookups_of_an_evaluation_change_nothing():
    changes, kernel, table = Changes("f00d"), Kernel(), nn.Embedding(3, 2)
    changes.watch_fused(kernel, [3], [0], [("user", 0, 0)])
    changes.watch("rating", table)
    indices, offsets = torch.tensor([1]), torch.tensor([0, 1])
    with torch.no_grad():
        kernel(indices, offsets)
        table(indices)
    kernel.eval()(indices, offsets)
    table.eval()(indices)
    kernel.train()(torch.zeros(0, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    assert not any(piece.last.any() for piece in changes.pieces.values())


def test_where_an_optimizer_moves_all_rows_all_change():
    changes, table = Changes("f00d"), nn.Embedding(3, 2)
    changes.watch("rating", table, whole=True)
    table(torch.tensor([1]))
    assert changes.pieces["rating"].last.tolist() == [1, 1, 1]
