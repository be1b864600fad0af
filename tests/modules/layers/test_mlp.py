import pytest
import torch
from torch import nn

from livetrain.modules.layers.mlp import MLP


def test_relu_is_a_plain_stack():
    mlp = MLP(5, [7, 4], "relu", outputs=2)
    plain = nn.Sequential(mlp.linears[0], nn.ReLU(), mlp.linears[1], nn.ReLU(), mlp.last)
    x = torch.randn(3, 5)
    assert torch.equal(mlp(x), plain(x))


def test_without_layers():
    assert MLP(5, [], outputs=2)(torch.randn(3, 5)).shape == (3, 2)
    assert MLP(5, [4])(torch.randn(3, 5)).shape == (3, 4)


def test_dropout_only_in_training():
    mlp = MLP(5, [400], dropout=0.5)
    x = torch.randn(3, 5)
    zeros = (mlp(x) == 0).float().mean()
    kept = (mlp.eval()(x) == 0).float().mean()
    assert zeros > kept + 0.1
    assert torch.equal(mlp(x), mlp(x))


@pytest.mark.parametrize("activation", ["relu", "dice"])
def test_padding_rows_change_nothing(activation):
    torch.manual_seed(0)
    mlp = MLP(5, [7, 4], activation, outputs=1)
    x, padding = torch.randn(6, 5), torch.randn(3, 5)
    weights = torch.tensor([1.0] * 6 + [0.0] * 3)
    state = {name: value.clone() for name, value in mlp.state_dict().items()}
    alone = mlp(x, weights[:6])
    after = {name: value.clone() for name, value in mlp.state_dict().items()}
    mlp.load_state_dict(state)
    torch.testing.assert_close(mlp(torch.cat([x, padding]), weights)[:6], alone)
    for name, value in mlp.state_dict().items():
        torch.testing.assert_close(value, after[name])


@pytest.mark.parametrize("activation", ["relu", "dice"])
def test_scripted(activation):
    mlp = MLP(5, [7, 4], activation, dropout=0.3, outputs=2).eval()
    x = torch.randn(3, 5)
    assert torch.equal(torch.jit.script(mlp)(x, None), mlp(x))
