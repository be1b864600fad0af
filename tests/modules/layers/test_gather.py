import torch

from livetrain.modules.inputs import Inputs
from livetrain.modules.layers.gather import Gather

INPUTS = Inputs({"user": 2, "movie": 1}, {"seen": 1, "genres": 2}, ["age"])


def test_concatenates_ids_means_and_dense():
    gather = Gather(INPUTS, ["genres"])
    values = {
        "user": torch.tensor([[1.0, 2.0]]),
        "movie": torch.tensor([[3.0], [4.0]]),
        "seen": torch.tensor([[9.0]]),
        "genres": torch.tensor([[5.0, 6.0], [7.0, 10.0]]),
    }
    lengths = {
        name: torch.tensor(cells)
        for name, cells in {"user": [0, 1], "movie": [1, 1], "seen": [1, 0], "genres": [2, 0]}.items()
    }
    expected = torch.tensor([[0.0, 0.0, 3.0, 6.0, 8.0, 0.5], [1.0, 2.0, 4.0, 0.0, 0.0, -0.5]])
    assert torch.equal(gather(values, lengths, torch.tensor([[0.5], [-0.5]])), expected)
    assert gather.width == expected.size(1)
