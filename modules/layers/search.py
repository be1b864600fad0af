"""Attention of a candidate to the events of a long history that suit it most."""

import torch
from torch import Tensor, nn

from livetrain.modules.layers.exporting import exporting, longest
from livetrain.modules.layers.precision import widen

NUMBERS = 2**22  # of events in memory at once: 16 MB


def best(query: Tensor, events: Tensor, lengths: Tensor, request: Tensor, count: int) -> Tensor:
    """Find, for each row and head, the events whose inner product with a query is largest; of equal ones the newest.

    Args:
        query: (B, h, d).
        events: (N, d), N = sum of lengths.
        lengths: (R,) integer.
        request: (B,) int64, whose events a row sees.
        count: k.

    Returns:
        (B, h, k) int64, which of the N events, oldest first; N behind the last of a row with fewer. No gradient.

    Example:
        >>> events = torch.tensor([[1.0], [3.0], [2.0], [3.0], [5.0]])
        >>> best(torch.ones(2, 1, 1), events, torch.tensor([4, 1]), torch.tensor([0, 1]), 2).tolist()
        [[[1, 3]], [[4, 5]]]
    """
    query, events = query.detach(), events.detach()
    if exporting():
        return _found_whole(query, events, lengths, request, count)
    if torch.jit.is_scripting():
        return _found(query, events, lengths, request, count)
    else:  # noqa: RET505  TorchScript compiles the branch otherwise
        return _best(query, events, lengths, request, count)


@torch.library.custom_op("livetrain::best", mutates_args=())
def _best(query: Tensor, events: Tensor, lengths: Tensor, request: Tensor, count: int) -> Tensor:
    """Do what `best` does: one operator to a compiled graph, whose shape follows from shapes."""
    with torch.autocast(query.device.type, enabled=False):
        return _found(query, events, lengths, request, count)


@_best.register_fake
def _shape(query: Tensor, events: Tensor, lengths: Tensor, request: Tensor, count: int) -> Tensor:
    return query.new_empty([query.size(0), query.size(1), count], dtype=torch.long)


def _found(
    query: Tensor, events: Tensor, lengths: Tensor, request: Tensor, count: int, numbers: int = NUMBERS
) -> Tensor:
    total, heads = events.size(0), query.size(1)
    own = lengths.index_select(0, request)  # (B,)
    begin = (lengths.cumsum(0) - lengths).index_select(0, request)
    out = torch.full([query.size(0), heads, count], total, dtype=torch.long, device=query.device)
    order = torch.argsort(own, stable=True)  # rows of like lengths together: little is padded
    sizes: list[int] = own.index_select(0, order).tolist()
    start = 0
    while start < len(sizes):
        stop = start + 1
        while (
            stop < len(sizes)
            and 4 * sizes[stop] <= 5 * sizes[start] + 16
            and (stop + 1 - start) * sizes[stop] * events.size(1) <= numbers
        ):
            stop += 1
        if sizes[stop - 1] > 0:
            rows = order[start:stop]
            place = torch.arange(sizes[stop - 1], device=own.device)
            there = (place < own.index_select(0, rows).unsqueeze(1)).unsqueeze(1).expand(-1, heads, -1)
            place = begin.index_select(0, rows).unsqueeze(1) + place  # (n, T)
            taken = there  # (n, h, T)
            if sizes[stop - 1] > count:
                taken = _largest(_scores(query.index_select(0, rows), events, place, lengths), there, count)
            slot = torch.where(taken, taken.cumsum(2) - 1, count)
            chosen = torch.full([rows.size(0), heads, count + 1], total, dtype=torch.long, device=own.device)
            chosen = chosen.scatter(2, slot, place.unsqueeze(1).expand(-1, heads, -1))
            out = out.index_copy(0, rows, chosen[:, :, :count])
        start = stop
    return out


@torch.jit.unused
def _found_whole(query: Tensor, events: Tensor, lengths: Tensor, request: Tensor, count: int) -> Tensor:
    """Do what `_found` does with all rows padded to the longest and `count` more, as torch.export can record it."""
    own, size = lengths.index_select(0, request), longest(lengths, events.size(0))  # (B,)
    begin = (lengths.cumsum(0) - lengths).index_select(0, request)
    place = torch.arange(size + count, device=own.device)
    there = (place < own.unsqueeze(1)).unsqueeze(1).expand(-1, query.size(1), -1)  # (B, h, T)
    place = (begin.unsqueeze(1) + place).clamp(max=events.size(0))  # (B, T)
    padded = torch.cat([events, events.new_zeros(1, events.size(1))])
    seen = padded.index_select(0, place.flatten()).unflatten(0, [query.size(0), -1])
    taken = _largest(torch.bmm(query, seen.transpose(1, 2)), there, count)
    slot = torch.where(taken, taken.cumsum(2) - 1, count)
    chosen = torch.full([query.size(0), query.size(1), count + 1], events.size(0), dtype=torch.long, device=own.device)
    return chosen.scatter(2, slot, place.unsqueeze(1).expand(-1, query.size(1), -1))[:, :, :count]


def _scores(query: Tensor, events: Tensor, place: Tensor, lengths: Tensor) -> Tensor:
    """Return the products (n, h, T) of queries (n, h, d) and the events at (n, T)."""
    if lengths.size(0) == 1:  # one history for all rows
        return (query.flatten(0, 1) @ events.t()).unflatten(0, [-1, query.size(1)])
    seen = events.index_select(0, place.clamp(max=events.size(0) - 1).flatten())
    return torch.bmm(query, seen.unflatten(0, [place.size(0), -1]).transpose(1, 2))


def _largest(scores: Tensor, there: Tensor, count: int) -> Tensor:
    """Mark the `count` largest of each (n, h) among those that are there, of equal ones the newest: (n, h, T) bool."""
    scores = scores.masked_fill(~there, -float("inf"))
    least = scores.topk(count, 2)[0][:, :, -1:]
    above, tied = scores > least, (scores == least) & there
    newest = tied.flip(2).cumsum(2).flip(2)
    return above | (tied & (newest <= count - above.sum(2, keepdim=True)))


class Search(nn.Module):
    """Multi-head target attention that is cut to the k events of the largest scores, by head.

        a_t = (W_q q) . (W_k e_t) / sqrt(m) + sum_c beta_c (w_c . s_tc)
        out = W_o concat_h sum_{t of the k largest a} softmax(a)_t W_v [e_t, s_t]

    One score finds the events and weighs them, so where there are at most k events this is attention to all of them.
    Events are neither projected nor kept for the backward pass, but for those found: W_k goes to the candidate's side
    of the product, and W_v behind the sum. s_c are what an event has and the candidate has not, such as what was done
    and the time since: each becomes one number, which beta_c weighs by head.

    Only what is found can teach the scores, so they must tell something before they have learned. Each head begins with
    W_q = W_k of orthonormal rows (columns where m > d) and with beta = 0: its score is the inner product of candidate
    and event, as far as m numbers hold it. Where both read the same tables in the same order, the events that equal the
    candidate are then among the nearest, the newest of them first.

    Args:
        size: d, of the candidate and of an event.
        side: sizes of s_c.
        heads: h.
        width: m, of a head's queries, keys and values.
        count: k.

    Attributes:
        width: of the output, h * m.

    Source: TWIN, Chang et al., 2302.02352, section 4.2; values of what an event has beside, too, as there.

    Example:
        >>> search = Search(4, [2], heads=2, width=3, count=5)
        >>> events, side, lengths = torch.randn(9, 4), torch.randn(9, 2), torch.tensor([7, 2])
        >>> search(torch.randn(3, 4), events, side, lengths, torch.tensor([0, 0, 1])).shape
        torch.Size([3, 6])
    """

    side: list[int]

    def __init__(self, size: int, side: list[int], heads: int, width: int, count: int) -> None:
        super().__init__()
        self.side, self.heads, self.head_width, self.count = list(side), heads, width, count
        alike = torch.stack([nn.init.orthogonal_(torch.empty(width, size)) for _ in range(heads)])
        self.query = nn.Linear(size, heads * width, bias=False)
        self.query.weight = nn.Parameter(alike.flatten(0, 1).clone())
        self.key = nn.Parameter(alike)
        self.beside = nn.ParameterList([torch.randn(each) * each**-0.5 for each in side])
        self.beta = nn.Parameter(torch.zeros(len(side), heads))
        self.value = nn.Parameter(torch.empty(heads, size + sum(side), width).uniform_(-(size**-0.5), size**-0.5))
        self.width = heads * width
        self.out = nn.Linear(self.width, self.width, bias=False)

    def forward(self, query: Tensor, events: Tensor, side: Tensor, lengths: Tensor, request: Tensor) -> Tensor:
        """Look at the events.

        Args:
            query: (B, d), the candidates.
            events: (N, d), N = sum of lengths.
            side: (N, s), s the sum of the sizes; (N, 0) without.
            lengths: (R,) integer.
            request: (B,) int64, whose events a row sees.

        Returns:
            (B, h * m); zeros for a row without events.
        """
        both = widen(torch.cat([events, side], 1))  # (N, d + s)
        look = self._looks(query)  # (B, h, d + s)
        chosen = best(look, both, lengths, request, self.count)  # (B, h, k)
        there = chosen < both.size(0)
        padded = torch.cat([both, both.new_zeros(1, both.size(1))])
        found = padded.index_select(0, chosen.flatten()).view(-1, self.heads, self.count, both.size(1))
        scores = (found * look.unsqueeze(2)).sum(3).masked_fill(~there, -1e30)
        shares = scores.softmax(2) * there  # a row without events shares among padding, and gets nothing of it
        pooled = (shares.unsqueeze(3) * found).sum(2)  # (B, h, d + s)
        return self.out(torch.einsum("bhd,hdm->bhm", pooled, self.value).flatten(1))

    def _looks(self, query: Tensor) -> Tensor:
        """Return what a candidate's score of an event is the product with, (B, h, d + s)."""
        q = self.query(query).unflatten(1, [self.heads, -1]) * self.head_width**-0.5
        parts = [widen(torch.einsum("bhm,hmd->bhd", q, self.key))]
        for i, beside in enumerate(self.beside):
            weight = self.beta[i].unsqueeze(1) * beside  # (h, s_c)
            parts.append(weight.expand(query.size(0), -1, -1))
        return torch.cat(parts, 2)
