"""The layer of HSTU, on jagged events."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from livetrain.modules.layers import jagged
from livetrain.modules.layers.pointwise import GAPS, Bias, pointwise


def placed(vectors: Tensor, lengths: Tensor, total: int) -> Tensor:
    """Return the vector of each event's place in its row, 0 for the oldest.

    Args:
        vectors: (P, d); all events from the P-th on have the last.
        lengths: (B,) integer.
        total: N, their sum.

    Returns:
        (N, d).

    Example:
        >>> placed(torch.eye(2), torch.tensor([3, 0, 1]), 4).argmax(1)
        tensor([0, 1, 1, 0])
    """
    begins = jagged.spread(lengths.cumsum(0) - lengths, jagged.segments(lengths, total))
    place = torch.arange(total, device=lengths.device) - begins
    return vectors.index_select(0, place.clamp(max=vectors.size(0) - 1))


class Places(nn.Module):
    """sqrt(d) x + a learned vector for an event's place in its row: 0 is the oldest.

    Args:
        count: vectors; all events from the `count`-th on share the last.
        width: d.
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.scale = width**0.5
        self.vectors = nn.Parameter(torch.empty(count, width))
        nn.init.trunc_normal_(self.vectors, std=width**-0.5)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Args: values (N, d), lengths (B,), N = their sum. Returns: (N, d)."""
        return values * self.scale + placed(self.vectors, lengths, values.size(0))


class HSTULayer(nn.Module):
    """x <- x + W_o Dropout(u * LN(a)) + b_o,  [u, v, q, k] = silu(LN(x) W),  a = `pointwise` attention of q, k and v

    with LN without scale and shift. The scores' bias, of all heads alike, is learned for how many events two are apart
    and, where there are times, for the class of the time between them.

    Args:
        width: d.
        heads: h, divides d; q, k, v and u have d / h numbers per head.
        most: what attention's sums are divided by: the longest row that is foreseen.
        dropout: share dropped in training.
        timed: whether events have times.

    Source: Zhai et al., "Actions speak louder than words", 2402.17152, section 3.2; initial values, and that the LNs
    have no parameters, as in the authors' code.

    Example:
        >>> layer = HSTULayer(8, 2, most=50, dropout=0.0, timed=False)
        >>> layer(torch.randn(3, 8), torch.tensor([2, 0, 1]), None).shape
        torch.Size([3, 8])
    """

    def __init__(self, width: int, heads: int, most: int, dropout: float, timed: bool) -> None:
        super().__init__()
        self.width, self.heads, self.most = width, heads, most
        self.project = nn.Parameter(torch.randn(width, 4 * width) * 0.02)
        self.by_place = nn.Parameter(torch.randn(most) * 0.02)
        self.by_gap = nn.Parameter(torch.randn(GAPS if timed else 0) * 0.02)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.out.weight)

    def forward(self, values: Tensor, lengths: Tensor, clock: Tensor | None) -> Tensor:
        """Let events see those before them.

        Args:
            values: (N, d), N = sum of lengths.
            lengths: (B,) integer.
            clock: (N, 2) of `pointwise.clocks`; None without times.

        Returns:
            (N, d).
        """
        mixed = F.silu(F.layer_norm(values, [self.width], eps=1e-6) @ self.project)
        u, v, q, k = mixed.chunk(4, 1)
        if clock is None:
            clock = torch.zeros([0, 2], dtype=torch.int32, device=values.device)
        seen = pointwise(q, k, v, lengths, Bias(self.by_place, self.by_gap, clock), self.heads, self.most)
        return values + self.out(self.dropout(u * F.layer_norm(seen, [self.width], eps=1e-6)))
