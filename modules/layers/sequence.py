"""Attention among the events of one row, on jagged values."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from livetrain.modules.layers import events, jagged
from livetrain.modules.layers.attend import attend, reads_rows
from livetrain.modules.layers.buckets import Buckets, buckets, pad, paired, present, unpad


def laid_out(lengths: Tensor, total: int) -> Buckets:
    """Return how the rows of a sequence that looks at itself lie; see `buckets`.

    Where attention reads the rows as they lie, only their lengths are in it, and a GPU is not waited for.
    """
    return Buckets(lengths, lengths, lengths, [], []) if reads_rows(lengths) else buckets(lengths, total)


def laid_out_in_pairs(lengths: Tensor, total: int, others: Tensor, total_others: int) -> tuple[Buckets, Buckets]:
    """Return the same for two sequences that look at each other; see `paired`."""
    if reads_rows(lengths):
        return laid_out(lengths, total), laid_out(others, total_others)
    return paired(lengths, total, others, total_others)


class Positions(nn.Module):
    """Add a learned vector for an event's age in events: 0 is the newest, all from the `count`-th on share the last.

    Counted from the newest, so a list that was cut, or that grew, keeps the positions of its recent events.

    Args:
        count: vectors.
        width: d.
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(count, width) * 0.02)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Args: values (N, d), lengths (B,), N = their sum. Returns: (N, d)."""
        ends = jagged.spread(lengths.cumsum(0), jagged.segments(lengths, values.size(0)))
        age = ends - 1 - torch.arange(values.size(0), device=values.device)
        return values + self.vectors.index_select(0, age.clamp(max=self.vectors.size(0) - 1))


class Attention(nn.Module):
    """Multi-head attention of each event of one sequence to the events of another, row by row.

    out = concat_h softmax(q_h k_h' / sqrt(d / h)) v_h W_o

    Where nothing reads rows as they lie (see modules.layers.attend), they are padded in groups of like lengths and each
    group is one `scaled_dot_product_attention`. Either way no matrix of scores is kept on the usual kernels: memory is
    linear in the events, time is the sum of the rows' squares.

    Args:
        width: d.
        heads: h, divides d.
        bias: of W_o; without it nothing seen adds nothing.
    """

    def __init__(self, width: int, heads: int, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.keys = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, queries: Tensor, asks: Buckets, keys: Tensor, answers: Buckets, causal: bool) -> Tensor:
        """Attend.

        Args:
            queries: (M, d) events that look.
            asks: how their rows lie: `laid_out`.
            keys: (N, d) events that are looked at.
            answers: how theirs do; the same rows in the same groups.
            causal: an event sees itself and what came before it, as in a sequence that looks at itself.

        Returns:
            (M, d); zeros where the row is left out of the buckets.
        """
        q = self.query(queries)
        pairs = self.keys(keys)
        if reads_rows(asks.lengths):
            return self.out(self._attend(q, pairs, asks, answers, causal))
        masks = present(answers)
        out: list[Tensor] = []
        for block, pair, mask in zip(pad(q, asks), pad(pairs, answers), masks):  # noqa: B905  TorchScript knows no strict=
            k, v = pair.chunk(2, 2)
            if causal:  # padding lies behind all events, where no event looks
                mixed = F.scaled_dot_product_attention(self._part(block), self._part(k), self._part(v), is_causal=True)
            else:
                mixed = F.scaled_dot_product_attention(
                    self._part(block), self._part(k), self._part(v), attn_mask=mask.unsqueeze(1).unsqueeze(1)
                )
            out.append(mixed.transpose(1, 2).flatten(2))
        return self.out(unpad(out, asks, q[:0] + pairs[:0].chunk(2, 1)[0]))

    @torch.jit.unused
    def _attend(self, q: Tensor, pairs: Tensor, asks: Buckets, answers: Buckets, causal: bool) -> Tensor:
        k, v = pairs.chunk(2, 1)
        return attend(q, k, v, asks.lengths, answers.lengths, self.heads, causal)

    def _part(self, x: Tensor) -> Tensor:
        """Part (n, T, d) among heads: (n, h, T, d / h)."""
        return x.unflatten(2, [self.heads, -1]).transpose(1, 2)


class Block(nn.Module):
    """Self-attention, then a feed-forward layer, each on normalised input and added to it.

    x <- x + Dropout(Attention(LayerNorm(x)));  x <- x + Dropout(W_2 relu(W_1 LayerNorm(x)))

    Args:
        width: d.
        heads: of the attention.
        dropout: share dropped in training.
        causal: an event sees only itself and what came before it.

    Source: SASRec, 1808.09781, section III.B and C.
    """

    def __init__(self, width: int, heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.forward_norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, layout: Buckets) -> Tensor:
        """Args: values (N, d) and how their rows lie. Returns: (N, d)."""
        if self.training and not torch.jit.is_scripting():  # a scripted file only scores
            return self._train(values, layout)
        return self._as_written(values, layout)

    def _as_written(self, values: Tensor, layout: Buckets) -> Tensor:
        x = self.norm(values)
        values = values + self.dropout(self.attention(x, layout, x, layout, self.causal))
        return values + self.dropout(self.out(self.hidden(self.forward_norm(values)).relu()))

    @torch.jit.unused
    def _train(self, values: Tensor, layout: Buckets) -> Tensor:
        library = events.passes_for(values, values.size(1))
        if library is None or self.dropout.p > 0:
            return self._as_written(values, layout)
        attention = self.attention
        seen = events.layer(library, values, self.norm, [attention.query, attention.keys])
        q, k, v = seen.chunk(3, 1)
        mixed = attend(q, k, v, layout.lengths, layout.lengths, attention.heads, self.causal)
        values = events.layer(library, mixed, None, [attention.out], beside=values)
        hidden = events.layer(library, values, self.forward_norm, [self.hidden], relu=True)
        return events.layer(library, hidden, None, [self.out], beside=values)


class Cross(nn.Module):
    """Let the events of one sequence look at those of another: x <- x + Dropout(Attention(LN(x), LN'(y))).

    Args:
        width: d of both.
        heads: of the attention.
        dropout: share dropped in training.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.other_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, asks: Buckets, others: Tensor, answers: Buckets) -> Tensor:
        """Look across.

        Args:
            values: (M, d) events that look.
            asks: how their rows lie.
            others: (N, d) events that are looked at.
            answers: how theirs do: both from `laid_out_in_pairs`.

        Returns:
            (M, d); `values` where a row has no others.
        """
        if self.training and not torch.jit.is_scripting():  # a scripted file only scores
            return self._train(values, asks, others, answers)
        return self._as_written(values, asks, others, answers)

    def _as_written(self, values: Tensor, asks: Buckets, others: Tensor, answers: Buckets) -> Tensor:
        seen = self.attention(self.norm(values), asks, self.other_norm(others), answers, False)
        return values + self.dropout(seen)

    @torch.jit.unused
    def _train(self, values: Tensor, asks: Buckets, others: Tensor, answers: Buckets) -> Tensor:
        library = events.passes_for(values, values.size(1))
        if library is None or self.dropout.p > 0:
            return self._as_written(values, asks, others, answers)
        attention = self.attention
        # Rows without events on either side see nothing, and W_o has no bias: only what sees or is seen is computed.
        both = (asks.lengths > 0) & (answers.lengths > 0)
        seeing = both.repeat_interleave(asks.lengths).nonzero()[:, 0]
        seen = both.repeat_interleave(answers.lengths).nonzero()[:, 0]
        q = events.layer(library, values.index_select(0, seeing), self.norm, [attention.query])
        k, v = events.layer(library, others.index_select(0, seen), self.other_norm, [attention.keys]).chunk(2, 1)
        mixed = attend(q, k, v, asks.lengths[both], answers.lengths[both], attention.heads, False)
        return values.index_add(0, seeing, events.layer(library, mixed, None, [attention.out]))


def newest(values: Tensor, lengths: Tensor) -> Tensor:
    """Return the last event of each row, zeros where there is none: (N, ...), (B,) -> (B, ...)."""
    last = torch.where(lengths > 0, lengths.cumsum(0) - 1, values.size(0))
    return torch.cat([values, values.new_zeros([1] + list(values.size())[1:])]).index_select(0, last)
