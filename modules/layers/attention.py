"""DIN's activation unit on jagged values."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from livetrain.modules.layers import compiled, fused, jagged
from livetrain.modules.layers.dice import Dice
from livetrain.modules.layers.exporting import exporting
from livetrain.modules.layers.mlp import MLP, Activation, activate
from livetrain.modules.layers.precision import widen
from livetrain.modules.layers.stack import Plain, Stack, side_by_side


class Looking(NamedTuple):
    """A unit that weighs its events: its layers, and what it makes of the weights (M, 1) that they end with."""

    stack: Stack
    pool: Callable[[Tensor], Tensor]


def looked(units: Sequence[Looking]) -> list[Tensor]:
    """Return what units made of their events, in training, with few sums over ranks for all of them. Collective."""
    found = side_by_side([unit.stack for unit in units])
    return [unit.pool(relevance) for unit, relevance in zip(units, found, strict=True)]


class ActivationUnit(nn.Module):
    """Weigh every past event by its relevance to the candidate and sum.

    w_k = MLP([q, e_k, q - e_k, q * e_k, s_k]),  out = [sum_k w_k e_k, sum_k w_k s_k]

    over the events of each row, without a softmax by default, so that the strength of an interest stays in the sum.
    s_k are optional embeddings that an event has and a candidate has not, such as the rating that was given.

    Args:
        dim: d, size of query and event.
        side: size of s; 0 without.
        units: sizes of the hidden layers, at least one.
        activation: of the hidden layers.
        softmax: normalise w over the events of each row.

    Source: Zhou et al., "Deep interest network", 1706.06978, equation 2 and figure 2.
    """

    blocks: list[int]

    def __init__(
        self, dim: int, side: int, units: list[int], activation: Activation = "dice", softmax: bool = False
    ) -> None:
        super().__init__()
        self.blocks = [dim, dim, dim, dim, side]
        self.softmax = softmax
        self.dice = activation != "relu"
        self.first = nn.Linear(4 * dim + side, units[0])
        self.activation = activate(activation, units[0])
        self.rest = MLP(units[0], units[1:], activation, outputs=1)

    def forward(
        self,
        query: Tensor,
        events: Tensor,
        side: Tensor | None,
        lengths: Tensor,
        weights: Tensor | None,
        request: Tensor | None = None,
        total: int = 0,
    ) -> Tensor:
        """Pool the events of each row.

        Args:
            query: (B, d), the candidate.
            events: (N, d), N = sum of lengths.
            side: (N, s), or None when the unit has no side.
            lengths: (B,) integer; (R,) where rows of one request share its events.
            weights: (B,), events of rows of weight 0 stay out of Dice's statistics.
            request: (B,) int64, the request of each row; None where each row has its own events.
            total: with `request` M, the number of pairs of a row and an event of its request.

        Returns:
            (B, d + s); zeros for a row without events.
        """
        if self.training and not torch.jit.is_scripting():
            return looked([self.look(query, events, side, lengths, weights, request, total)])[0]
        size = query.size(0)
        of_events, events, side, segment = self._paired(events, side, lengths, request, total)
        valid = weights
        if weights is not None:
            valid = jagged.spread(weights, segment)
        hidden = self.activation(self._first(query, events, of_events, segment), valid)  # (N, H)
        relevance = self.rest(hidden, valid)  # (N, 1)
        return self._pool(relevance, events, side, segment, size)

    def _paired(
        self, events: Tensor, side: Tensor | None, lengths: Tensor, request: Tensor | None, total: int
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Return each event's part of the first layer (N, H), the events, their side, and the row of each (N,)."""
        of_events = self._of_events(events, side)
        if request is not None:  # from here on there are M events, those of each row
            place, lengths = jagged.repeated(lengths, request, total)
            of_events, events = of_events.index_select(0, place), events.index_select(0, place)
            side = side if side is None else side.index_select(0, place)
        return of_events, events, side, jagged.segments(lengths, events.size(0))

    def shared(self, query: Tensor, events: Tensor, side: Tensor | None, tile: int = 4096) -> Tensor:
        """Pool one history for many candidates, as a server ranks them; for evaluation mode.

        W [q, e, q-e, q*e, s] + b is linear in q, so each event is folded into a layer of its own, once:
        W_k q + c_k  with  W_k = Wq + Wd + Wp * e_k  (by column),  c_k = (We - Wd) e_k + Ws s_k + b,
        and one matrix product takes candidates through the layers of all events. No event is repeated.

        Args:
            query: (B, d), the candidates.
            events: (T, d), the one history of all of them.
            side: (T, s), or None when the unit has no side.
            tile: pairs of a candidate and an event that a CPU's cache holds through the whole unit.

        Returns:
            (B, d + s): what `forward` gives for B rows that each repeat the history.
        """
        of_query, of_event, of_difference, of_product, of_side = self.first.weight.split(self.blocks, 1)
        constant = F.linear(events, of_event - of_difference, self.first.bias)  # (T, H)
        if side is not None:
            constant = torch.addmm(constant, side, of_side.t())
            events = torch.cat([events, side], 1)  # (T, d + s)
        layers = of_query + of_difference + of_product * events[:, : query.size(1)].unsqueeze(1)  # (T, H, d)
        length, units = constant.shape
        rows = query.size(0) if query.is_cuda else tile // max(length, 1)
        parts = [query] if exporting() else query.split(max(rows, 1))
        pooled: list[Tensor] = []
        for part in parts:  # (n, d)
            hidden = torch.addmm(constant.flatten(), part, layers.flatten(0, 1).t())  # (n, T * H)
            hidden = self.activation(hidden.reshape(part.size(0) * length, units), None)
            relevance = self.rest(hidden, None).reshape(part.size(0), length)
            if self.softmax:
                relevance = relevance.softmax(1)
            pooled.append(relevance @ events)
        return torch.cat(pooled)

    @torch.jit.unused
    def look(
        self,
        query: Tensor,
        events: Tensor,
        side: Tensor | None,
        lengths: Tensor,
        weights: Tensor | None,
        request: Tensor | None = None,
        total: int = 0,
    ) -> Looking:
        """Begin what `forward` does, in training: as far as the first layer."""
        library = compiled.library_for(events)
        if library is not None and self.dice:
            return self._look_compiled(library, query, events, side, lengths, weights, request, total)
        of_events, events, side, segment = self._paired(events, side, lengths, request, total)
        valid = None if weights is None else jagged.spread(weights, segment)
        hidden = self._first(query, events, of_events, segment)  # (N, H)
        rest = self.rest
        stack = Plain(hidden, valid, [self.activation, *rest.activations], [*rest.linears, rest.last], rest.dropout)

        def pool(relevance: Tensor) -> Tensor:
            return self._pool(relevance, events, side, segment, query.size(0))

        return Looking(stack, pool)

    @torch.jit.unused
    def _look_compiled(
        self,
        library: compiled.Library,
        query: Tensor,
        events: Tensor,
        side: Tensor | None,
        lengths: Tensor,
        weights: Tensor | None,
        request: Tensor | None,
        total: int,
    ) -> Looking:
        """Do what `look` does by compiled passes, which read a request's events where they are."""
        where = fused.Events.of(lengths, weights, events, request, total)
        e = (events if side is None else torch.cat([events, side], 1)).contiguous()  # (N, d + s)
        if torch.is_autocast_enabled(e.device.type):  # what is computed of each event is as narrow as it is
            e = e.to(torch.get_autocast_dtype(e.device.type))
        blocks, bias = self.first.weight.split(self.blocks, 1), self.first.bias
        dices = cast(list[Dice], [self.activation, *self.rest.activations])
        linears = cast(list[nn.Linear], [*self.rest.linears, self.rest.last])

        def pool(relevance: Tensor) -> Tensor:  # of (M, 1)
            if self.softmax:
                segment = jagged.segments(where.offsets.diff(), len(relevance))
                relevance = jagged.segment_softmax(widen(relevance), segment, query.size(0))
            return fused.WeightedSums.apply(library, where, relevance, e)

        return Looking(fused.Compiled.of_events(library, where, query, e, blocks, bias, dices, linears), pool)

    def _pool(self, relevance: Tensor, events: Tensor, side: Tensor | None, segment: Tensor, size: int) -> Tensor:
        """Return the sums (size, d + s) of events (N, d) and side (N, s) by their weights (N, 1)."""
        if self.softmax:
            relevance = jagged.segment_softmax(widen(relevance), segment, size)
        pooled = jagged.segment_sum(relevance * events, segment, size)  # (size, d)
        if side is None:
            return pooled
        return torch.cat([pooled, jagged.segment_sum(relevance * side, segment, size)], 1)

    def _of_events(self, events: Tensor, side: Tensor | None) -> Tensor:
        """Return what of `self.first` sees an event alone, (N, H)."""
        _, of_event, of_difference, _, of_side = self.first.weight.split(self.blocks, 1)
        found = F.linear(events, of_event - of_difference)
        return found if side is None else torch.addmm(found, side, of_side.t())

    def _first(self, query: Tensor, events: Tensor, of_events: Tensor, segment: Tensor) -> Tensor:
        """Apply `self.first` to [q, e, q - e, q * e, s] without building it: (N, H).

        The blocks that only see the candidate are computed once a row and spread over its events, and those that only
        see the event are `_of_events`:
        W [q, e, q-e, q*e, s] + b = [(Wq + Wd) q + b] + (We - Wd) e + Wp (q * e) + Ws s.
        """
        of_query, _, of_difference, of_product, _ = self.first.weight.split(self.blocks, 1)
        of_rows = F.linear(query, of_query + of_difference, self.first.bias)  # (B, H)
        hidden = jagged.spread(widen(of_rows), segment)  # (N, H); its gradient sums a whole history, in float32
        return torch.addmm(hidden + of_events, jagged.spread(query, segment) * events, of_product.t())
