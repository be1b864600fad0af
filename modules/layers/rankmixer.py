"""RankMixer: tokens of a row's features that exchange their parts, each with a perceptron of its own."""

from torch import Tensor, nn
from torch.nn import functional as F

from livetrain.modules.layers.experts import Batched


def mixed(tokens: Tensor) -> Tensor:
    """Give the h-th token the h-th part of every token: (B, T, D) -> (B, T, D), T divides D.

    It is its own inverse, and has no parameters.

    Source: Zhu et al., "RankMixer", 2507.15551, section 3.3.1, with as many parts as tokens.

    Example:
        >>> import torch
        >>> mixed(torch.tensor([[[1, 2, 3, 4], [5, 6, 7, 8]]]))
        tensor([[[1, 2, 5, 6],
                 [3, 4, 7, 8]]])
    """
    return tokens.unflatten(2, [tokens.size(1), -1]).transpose(1, 2).flatten(2)


class Tokens(nn.Module):
    """x_t = W_t e_t + b_t for the T slices e_t of a vector; zeros behind it fill the last ones.

    Args:
        width: of the vector.
        count: T.
        size: D, of a token.
    """

    def __init__(self, width: int, count: int, size: int) -> None:
        super().__init__()
        self.slice = -(-width // count)
        self.more = self.slice * count - width
        self.project = Batched(count, self.slice, size)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (B, width). Returns: (B, T, D)."""
        return self.project(F.pad(x, [0, self.more]).unflatten(1, [-1, self.slice]))


class MixerBlock(nn.Module):
    """s = LN(mixed(x) + x);  x' = LN(W2_t gelu(W1_t s_t + b1_t) + b2_t + s_t) for each token t

    Args:
        count: T, divides D.
        size: D.
        expansion: hidden units of a token's perceptron for each of its D numbers.

    Source: Zhu et al., "RankMixer", 2507.15551, section 3.3.

    Example:
        >>> import torch
        >>> MixerBlock(4, 8, 2)(torch.randn(3, 4, 8)).shape
        torch.Size([3, 4, 8])
    """

    def __init__(self, count: int, size: int, expansion: int) -> None:
        super().__init__()
        self.mixed_norm = nn.LayerNorm(size)
        self.hidden = Batched(count, size, expansion * size)
        self.out = Batched(count, expansion * size, size)
        self.norm = nn.LayerNorm(size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Args: tokens (B, T, D). Returns: (B, T, D)."""
        tokens = self.mixed_norm(mixed(tokens) + tokens)
        return self.norm(self.out(F.gelu(self.hidden(tokens))) + tokens)
