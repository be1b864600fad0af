"""The first rows of a table: drawn where they lie, the same however the table is cut."""

import pytest
import torch

from livetrain.modules.tables.initial import Initial

INITIAL = Initial(seed=3, table="movie", dim=8, std=0.5)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def filled(rows: int, columns: int, row: int, column: int, device: str) -> torch.Tensor:
    shard = torch.empty(rows, columns, device=device)
    INITIAL.fill(shard, row, column)
    return shard


@pytest.mark.parametrize("device", DEVICES)
def test_a_row_is_the_same_in_every_cut(device):
    whole = filled(9000, 8, 0, 0, device)
    for row, rows, column, columns in ((0, 1, 0, 8), (4095, 2, 0, 8), (5000, 4000, 2, 4), (8999, 1, 7, 1)):
        part = filled(rows, columns, row, column, device)
        assert torch.equal(part, whole[row : row + rows, column : column + columns])
    assert abs(float(whole.mean())) < 0.01
    assert abs(float(whole.std()) - 0.5) < 0.01
    assert len(whole.unique(dim=0)) == 9000


def test_on_a_cpu_rows_are_what_they_have_always_been():
    wanted = [[-0.0814186, 0.3585093, -0.4590585], [-0.3237606, -0.4633937, 0.5645474]]
    torch.testing.assert_close(filled(2, 3, 4095, 0, "cpu"), torch.tensor(wanted))


@pytest.mark.parametrize("device", DEVICES)
def test_rows_that_were_moved_are_counted(device):
    shard = filled(6000, 4, 3000, 2, device)
    assert INITIAL.moved(shard, 3000, 2) == 0
    shard[[0, 1095, 1096, 5999], [0, 1, 2, 3]] += 1e-3
    assert INITIAL.moved(shard, 3000, 2) == 4
    shard[[7, 5999]] = 0  # as ALS leaves rows without events
    assert INITIAL.moved(shard, 3000, 2) == 3
    assert INITIAL.moved(filled(6000, 4, 3000, 2, device).half(), 3000, 2) == 0  # rounded as the table is


def test_a_gpus_rows_are_drawn_there(monkeypatch):
    """Where there is none, a stand-in says what it was asked for."""
    asked = []

    class Generator:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def manual_seed(self, seed: int) -> "Generator":
            return self

    def randn(*size: int, generator: Generator, device: torch.device) -> torch.Tensor:
        asked.append((size, generator.device, device))
        return torch.zeros(size)

    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch, "randn", randn)
    gpu = torch.device("cuda", 1)
    assert len(list(INITIAL.blocks(range(5000), range(8), gpu))) == 2
    assert asked == [((4096, 8), gpu, gpu)] * 2
