"""The layer of HSTU, on jagged events and on candidates that look at them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from livetrain.modules.layers import jagged
from livetrain.modules.layers.pointwise import GAPS, Bias, gap_class, pointwise


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

    def behind(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Place one more behind the events of each row: values (B, d), lengths (B,). Returns: (B, d)."""
        return values * self.scale + self.vectors.index_select(0, lengths.clamp(max=self.vectors.size(0) - 1))


class Pairs(NamedTuple):
    """Candidates with the events that they look at, M of them.

    Args:
        event: (M,) int64, which of the N events.
        row: (M,) int64, which of the B candidates.
        apart: (M,) int64, how many events before the candidate: 1 for the newest.
        gap: (M,) int32, the class of the time before the candidate; (0,) without times.
    """

    event: Tensor
    row: Tensor
    apart: Tensor
    gap: Tensor


def paired(event: Tensor, count: Tensor, seconds: Tensor | None) -> Pairs:
    """Return what candidates look at.

    Args:
        event: (M,) int64 of `jagged.seen_by`.
        count: (B,) integer of the same.
        seconds: (N,) from each event to its row's own time; None without times.

    Example:
        >>> paired(torch.tensor([0, 1, 0, 1]), torch.tensor([2, 2]), None).apart.tolist()
        [2, 1, 2, 1]
    """
    row = jagged.segments(count, event.size(0))
    apart = jagged.spread(count.cumsum(0), row) - torch.arange(event.size(0), device=event.device)
    gap = torch.zeros(0, dtype=torch.int32, device=event.device)
    if seconds is not None:
        gap = gap_class(seconds.index_select(0, event))
    return Pairs(event, row, apart, gap)


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
        return self._after(self._parts(values), values, lengths, clock)

    def beside(
        self, values: Tensor, lengths: Tensor, clock: Tensor | None, candidates: Tensor, pairs: Pairs, last: bool
    ) -> tuple[Tensor, Tensor]:
        """Do what `forward` does, and let candidates look, each at its row's events and at itself, as though it stood
        alone behind them.

        Args:
            values, lengths, clock: as of `forward`.
            candidates: (B, d).
            pairs: what each of them sees.
            last: nothing reads the events behind this layer, and they are left as they are.

        Returns:
            (N, d) events, which see no candidate, and (B, d) candidates.
        """
        parts, own = self._parts(values), self._parts(candidates)
        _, v, _, k = parts
        u, own_v, q, own_k = own
        score = self._scores(pairs.row, q, pairs.event, k) + self.by_place.index_select(
            0, pairs.apart.clamp(max=self.most - 1)
        ).unsqueeze(1)
        itself = (q * own_k).unflatten(1, [self.heads, -1]).sum(2) + self.by_place[0]
        if self.by_gap.size(0) > 0:
            score = score + self.by_gap.index_select(0, pairs.gap).unsqueeze(1)
            itself = itself + self.by_gap[0]
        seen = jagged.segment_sum(self._weighed(F.silu(score), v.index_select(0, pairs.event)), pairs.row, q.size(0))
        seen = (seen + self._weighed(F.silu(itself), own_v)) / self.most
        if not last:
            values = self._after(parts, values, lengths, clock)
        return values, self._added(candidates, u, seen)

    def _parts(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return u, v, q and k, (N, d) each."""
        u, v, q, k = F.silu(F.layer_norm(values, [self.width], eps=1e-6) @ self.project).chunk(4, 1)
        return u, v, q, k

    def _after(
        self, parts: tuple[Tensor, Tensor, Tensor, Tensor], values: Tensor, lengths: Tensor, clock: Tensor | None
    ) -> Tensor:
        """Let events see those before them."""
        u, v, q, k = parts
        if clock is None:
            clock = torch.zeros([0, 2], dtype=torch.int32, device=values.device)
        seen = pointwise(q, k, v, lengths, Bias(self.by_place, self.by_gap, clock), self.heads, self.most)
        return self._added(values, u, seen)

    def _added(self, values: Tensor, u: Tensor, seen: Tensor) -> Tensor:
        """Add to (N, d) what each saw."""
        return values + self.out(self.dropout(u * F.layer_norm(seen, [self.width], eps=1e-6)))

    def _scores(self, row: Tensor, q: Tensor, event: Tensor, k: Tensor) -> Tensor:
        """Return (M, h) products of queries and keys."""
        products = q.index_select(0, row) * k.index_select(0, event)
        return products.unflatten(1, [self.heads, -1]).sum(2)

    def _weighed(self, weights: Tensor, v: Tensor) -> Tensor:
        """Return values (M, d) times the weights (M, h) of their heads."""
        return (weights.unsqueeze(2) * v.unflatten(1, [self.heads, -1])).flatten(1)
