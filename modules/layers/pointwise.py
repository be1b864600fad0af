"""HSTU's attention among the events of one row as one operator: every score counts by itself, without a softmax.

Rows are padded in groups of like lengths, and scores are made tile by tile, SCORES at a time: keys that no query of a
tile sees are left out, and the backward pass makes each tile once more. So memory is linear in the events, and time is
the sum of the rows' squares, whatever the longest row.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from livetrain.modules.layers import jagged
from livetrain.modules.layers.buckets import Buckets, buckets, pad, unpad
from livetrain.modules.layers.exporting import exporting
from livetrain.modules.layers.precision import widen

SCORES = 2**18  # of a tile: 1 MB, which a CPU's cache holds
QUERIES = 128  # of a row in a tile
GAPS = 72  # classes of times apart: e^(.301 * 72) is beyond what int32 holds


class Bias(NamedTuple):
    """What is added to the scores of a query i and a key j <= i of one row: by_place[i - j] + by_gap[class of a time].

    Args:
        by_place: (P,), the last for all that are P - 1 or more events apart.
        by_gap: (GAPS,), or (0,) without times; see `gap_class`.
        clock: (N, 2) int32 from `clocks`, or (0, 2) without times.
    """

    by_place: Tensor
    by_gap: Tensor
    clock: Tensor


def gap_class(seconds: Tensor) -> Tensor:
    """Return the class of times apart, int32: floor(ln(max(t, 1)) / .301).

    >>> gap_class(torch.tensor([0, 1, 60, 86400], dtype=torch.int32)).tolist()  # up to a second, a minute, a day
    [0, 0, 13, 37]
    """
    return seconds.clamp(min=1).log().div_(0.301).to(torch.int32)


def clocks(gaps: Tensor, lengths: Tensor, ahead: bool) -> Tensor:
    """Return when each event of a row asks, and when it happened, in whole seconds since the row's first.

    Args:
        gaps: (N,) seconds from each event to the next one of its row, of the newest to the row's own time; NaN, and
            what is below 0, count as 0.
        lengths: (B,) integer, N = their sum.
        ahead: an event asks at the time of the next one, which is to be predicted; otherwise at its own.

    Returns:
        (N, 2) int32; 68 years are the most.

    Example:
        >>> clocks(torch.tensor([10.0, 5.0, 7.0]), torch.tensor([2, 1]), True).tolist()
        [[10, 0], [15, 10], [7, 0]]
    """
    seconds = _whole_seconds(gaps)
    before = seconds.cumsum(0) - seconds
    first = torch.cat([before, before.new_zeros(1)]).index_select(0, (lengths.cumsum(0) - lengths).long())  # (B,)
    happened = before - jagged.spread(first, jagged.segments(lengths, gaps.size(0)))
    asked = happened + seconds if ahead else happened
    # Not 2**31 - 1, which is a float to TorchScript: clamped by one the seconds would be float32.
    return torch.stack([asked, happened], 1).clamp(max=0x7FFFFFFF).to(torch.int32)


def ago(gaps: Tensor, lengths: Tensor) -> Tensor:
    """Return the whole seconds from each event to its row's own time, (N,) int64, 68 years at most.

    Args:
        gaps, lengths: as of `clocks`.

    Example:
        >>> ago(torch.tensor([10.0, 5.0, 7.0]), torch.tensor([2, 1])).tolist()
        [15, 5, 7]
    """
    seconds = _whole_seconds(gaps)
    until = seconds.cumsum(0)
    last = torch.cat([until.new_zeros(1), until]).index_select(0, lengths.cumsum(0).long())  # (B,)
    found = jagged.spread(last, jagged.segments(lengths, gaps.size(0))) - until + seconds
    return found.clamp(max=0x7FFFFFFF)  # as in `clocks`


def _whole_seconds(gaps: Tensor) -> Tensor:
    """Return gaps as int64, so that sums are exact."""
    return torch.nan_to_num(gaps, nan=0.0).clamp(0, 2**31 - 1).round().long()


def pointwise(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, bias: Bias, heads: int, most: int) -> Tensor:
    """Let each event look at itself and at what came before it in its row.

        out_i = 1 / most * concat_h sum_{j <= i} silu(q_hi . k_hj + b_ij) v_hj

    Args:
        q: (N, h * d), N = sum of lengths.
        k: (N, h * d).
        v: (N, h * e).
        lengths: (B,) integer.
        bias: of all heads.
        heads: h.
        most: what sums are divided by, of any row: so what a row gives does not depend on the others.

    Returns:
        (N, h * e).

    Source: Zhai et al., "Actions speak louder than words", 2402.17152, equation 2.

    Example:
        >>> x, none = torch.ones(3, 1), torch.zeros(0)
        >>> bias = Bias(torch.zeros(1), none, none.int().view(0, 2))
        >>> pointwise(x, x, x, torch.tensor([2, 0, 1]), bias, 1, 2)  # silu(1) = .7311
        tensor([[0.3655],
                [0.7311],
                [0.3655]])
    """
    if exporting():
        return _forward_whole(q, k, v, lengths, bias, heads, most)
    if torch.jit.is_scripting():
        return _forward(q, k, v, lengths, bias, heads, most)
    else:  # noqa: RET505  TorchScript compiles the branch otherwise
        return _pointwise(q, k, v, lengths, *bias, heads, most)


def _whole(block: Tensor, heads: int) -> Tensor:
    """(n * h, T, d) -> (n, T, h * d)"""
    return block.unflatten(0, [-1, heads]).transpose(1, 2).flatten(2)


class _Tile(NamedTuple):
    """Queries [start, stop) of the rows [first, last) of a block, and the keys [0, stop)."""

    first: int
    last: int
    start: int
    stop: int


def _longest(layout: Buckets) -> list[int]:
    """Return how many events the longest row of each group has: often fewer than its rows are padded to."""
    held = layout.lengths.index_select(0, layout.rows).split(layout.counts)
    found: list[int] = torch.stack([length.max() for length in held]).tolist() if len(held) > 0 else []
    return found


def _tiles(rows: int, size: int, heads: int, queries: int = QUERIES, scores: int = SCORES) -> list[_Tile]:
    """Return the tiles of a block of rows of `size` events: of so many queries of a row, and so many scores."""
    found: list[_Tile] = []
    for start in range(0, size, queries):
        stop = min(start + queries, size)
        step = max(scores // (heads * (stop - start) * stop), 1)
        for first in range(0, rows, step):
            found.append(_Tile(first, min(first + step, rows), start, stop))
    return found


def _classes(clock: Tensor, tile: _Tile) -> Tensor:
    """Return the class of the time between each query and key, (r, t, b) int32; clock is (n, T, 2)."""
    rows = clock[tile.first : tile.last]
    return gap_class(rows[:, tile.start : tile.stop, :1] - rows[:, : tile.stop, 1].unsqueeze(1))


def _scores(q: Tensor, k: Tensor, clock: Tensor | None, bias: Bias, tile: _Tile, heads: int) -> Tensor:
    """Return (r * h, t, b) scores before silu, of q and k (n * h, T, d)."""
    first, last, start, stop = tile.first * heads, tile.last * heads, tile.start, tile.stop
    # Row i of b consecutive entries of w, which begin one entry earlier than those of row i - 1.
    apart = (stop - 1 - torch.arange(2 * stop - start - 1, device=q.device)).clamp(0, bias.by_place.size(0) - 1)
    added = bias.by_place.index_select(0, apart).unfold(0, stop, 1).flip(0).unsqueeze(0)  # (1, t, b)
    if clock is not None:
        classes = _classes(clock, tile)
        added = bias.by_gap.index_select(0, classes.flatten()).view(classes.size()).add_(added)  # (r, t, b)
    a, b = q[first:last, start:stop], k[first:last, :stop].transpose(1, 2)
    if heads > 1 or added.dtype != q.dtype:
        s = widen(torch.bmm(a, b))
        s.unflatten(0, [-1, heads]).add_(added.unsqueeze(1))  # (r, h, t, b), a view
        return s
    return torch.baddbmm(added, a, b)


def _causal(x: Tensor, tile: _Tile) -> Tensor:
    """Clear (r * h, t, b) where the key is later than the query, in place."""
    x[:, :, tile.start :].tril_()
    return x


def _blocks(x: Tensor, layout: Buckets, heads: int) -> list[Tensor]:
    """Pad (N, h * d) in groups: a (n * h, T, d) block per group.

    It does what `buckets.pad` does, and reads rows in the place of writing them, which on a CPU is faster.
    """
    spans = [count * size for count, size in zip(layout.counts, layout.sizes)]  # noqa: B905  TorchScript knows no strict=
    event = torch.full([sum(spans) + 1], x.size(0), device=x.device, dtype=torch.long)  # that lies in each place
    event = event.index_copy_(0, layout.place, torch.arange(x.size(0), device=x.device))[: sum(spans)]
    flat = torch.cat([x, x.new_zeros(1, x.size(1))]).index_select(0, event).split(spans)
    blocks: list[Tensor] = []
    for block, count, size in zip(flat, layout.counts, layout.sizes):  # noqa: B905
        blocks.append(block.view(count, size, heads, -1).transpose(1, 2).flatten(0, 1))
    return blocks


def _forward(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, bias: Bias, heads: int, most: int) -> Tensor:
    layout = buckets(lengths, q.size(0))
    clock, sizes = _clock(bias, layout), _longest(layout)
    out: list[Tensor] = []
    blocks = zip(_blocks(q, layout, heads), _blocks(k, layout, heads), _blocks(v, layout, heads))  # noqa: B905
    for place, (a, b, c) in enumerate(blocks):
        mixed = torch.zeros_like(c)
        for tile in _tiles(layout.counts[place], sizes[place], heads):
            at = None if clock is None else clock[place]
            weights = _causal(F.silu(_scores(a, b, at, bias, tile, heads), inplace=True), tile).to(c.dtype)
            first, last = tile.first * heads, tile.last * heads
            mixed[first:last, tile.start : tile.stop] = torch.bmm(weights, c[first:last, : tile.stop])
        out.append(_whole(mixed, heads).div_(most))
    return unpad(out, layout, v[:0])


@torch.jit.unused
def _forward_whole(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, bias: Bias, heads: int, most: int) -> Tensor:
    """Do what `_forward` does in one tile for all rows, as torch.export can record it."""
    layout = buckets(lengths, q.size(0))
    a, b, c = _blocks(q, layout, heads)[0], _blocks(k, layout, heads)[0], _blocks(v, layout, heads)[0]  # (B * h, T, d)
    time = torch.arange(layout.sizes[0], device=q.device)
    apart = time.unsqueeze(1) - time  # (T, T)
    added = bias.by_place.index_select(0, apart.clamp(0, bias.by_place.size(0) - 1).flatten()).view(apart.size())
    clock = _clock(bias, layout)
    if clock is not None:
        classes = gap_class(clock[0][:, :, :1] - clock[0][:, :, 1].unsqueeze(1))  # (B, T, T)
        added = added + bias.by_gap.index_select(0, classes.flatten()).view(classes.size())
        added = added.unsqueeze(1).expand(-1, heads, -1, -1).flatten(0, 1)
    weights = F.silu(torch.bmm(a, b.transpose(1, 2)) + added).masked_fill(apart < 0, 0.0)
    return unpad([_whole(torch.bmm(weights, c), heads) / most], layout, v[:0])


def _clock(bias: Bias, layout: Buckets) -> list[Tensor] | None:
    """Return the clock's blocks, (n, T, 2) per group."""
    return pad(bias.clock, layout) if bias.by_gap.size(0) > 0 else None


@torch.library.custom_op("livetrain::pointwise", mutates_args=())
def _pointwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    by_place: Tensor,
    by_gap: Tensor,
    clock: Tensor,
    heads: int,
    most: int,
) -> Tensor:
    """Do what `pointwise` does."""
    return _forward(q, k, v, lengths, Bias(by_place, by_gap, clock), heads, most)


@torch.library.custom_op("livetrain::pointwise_backward", mutates_args=())
def _backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    by_place: Tensor,
    by_gap: Tensor,
    clock: Tensor,
    heads: int,
    most: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, by_place and by_gap."""
    layout, bias = buckets(lengths, q.size(0)), Bias(by_place, by_gap, clock)
    clock_blocks, sizes = _clock(bias, layout), _longest(layout)
    d_place, d_gap = torch.zeros_like(by_place), torch.zeros_like(by_gap)
    gradients: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for place, parts in enumerate(zip(*(_blocks(x, layout, heads) for x in (q, k, v, d_out)), strict=True)):
        found = [torch.zeros_like(part) for part in parts[:3]]
        parts[3].div_(most)
        at = None if clock_blocks is None else clock_blocks[place]
        for tile in _tiles(layout.counts[place], sizes[place], heads):
            d_bias = _tile_gradients(parts, found, at, bias, tile, heads)  # (r, t, b)
            _add_by_place(d_place, d_bias.sum(0), tile)
            if at is not None:
                d_gap.index_add_(0, _classes(at, tile).flatten(), d_bias.flatten())
        for kept, x in zip(gradients, found, strict=True):
            kept.append(_whole(x, heads))
    d_q, d_k, d_v = (
        unpad(blocks, layout, x[:0]) if blocks else torch.zeros_like(x, memory_format=torch.contiguous_format)
        for blocks, x in zip(gradients, (q, k, v), strict=True)
    )
    return d_q, d_k, d_v, d_place, d_gap


def _tile_gradients(
    parts: Sequence[Tensor], found: list[Tensor], clock: Tensor | None, bias: Bias, tile: _Tile, heads: int
) -> Tensor:
    """Add a tile's part of the gradients of q, k and v (n * h, T, d) to `found`, and return that of its scores' bias.

    Args:
        parts: q, k, v and the gradient of the output, (n * h, T, d) each.
        found: gradients of the first three so far.
        clock: (n, T, 2) or None.
        bias: of the scores.
        tile: which.
        heads: h.
    """
    queries = (slice(tile.first * heads, tile.last * heads), slice(tile.start, tile.stop))
    keys = (queries[0], slice(tile.stop))
    q, k, v, g = parts[0][queries], parts[1][keys], parts[2][keys], parts[3][queries]
    s = _scores(parts[0], parts[1], clock, bias, tile, heads)
    share = s.sigmoid()
    weights = s.mul_(share)
    slope = torch.addcmul(weights + share, weights, share, value=-1)  # of silu: share + weights * (1 - share)
    d_s = _causal(slope.mul_(torch.bmm(g, v.transpose(1, 2))), tile)
    narrow, weights = d_s.to(q.dtype), _causal(weights, tile).to(v.dtype)
    found[0][queries] = torch.bmm(narrow, k)
    found[1][keys].baddbmm_(narrow.transpose(1, 2), q)
    found[2][keys].baddbmm_(weights.transpose(1, 2), g)
    return d_s.unflatten(0, [-1, heads]).sum(1) if heads > 1 else d_s


def _add_by_place(total: Tensor, d_bias: Tensor, tile: _Tile) -> None:
    """Add the sums of (t, b) along its diagonals to those of `Bias.by_place`."""
    count, width = d_bias.shape
    # Each row one place further to the right than the one below it: what was a diagonal is a column.
    skewed = F.pad(d_bias.flip(0), (0, count)).flatten()[: count * (count + width - 1)].view(count, -1)
    apart = (tile.stop - 1 - torch.arange(skewed.size(1), device=total.device)).clamp(0, len(total) - 1)
    total.index_add_(0, apart, skewed.sum(0).to(total.dtype))


@_pointwise.register_fake
def _shapes(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> Tensor:
    return v.new_empty(v.shape)


@_backward.register_fake
def _backward_shapes(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, by_place: Tensor, by_gap: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (q, k, v, by_place, by_gap))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.heads, ctx.most = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    d_q, d_k, d_v, d_place, d_gap = _backward(d_out, *ctx.saved_tensors, ctx.heads, ctx.most)
    return d_q, d_k, d_v, None, d_place, d_gap, None, None, None


_pointwise.register_autograd(_gradients, setup_context=_setup)


@_backward.register_vmap
def _backward_each(info: Any, in_dims: tuple[int | None, ...], d_out: Tensor, *others: Any) -> tuple[Any, Any]:
    """One gradient after the other: those of several tasks by one backward pass."""
    task, *rest = in_dims
    assert task is not None  # what the forward pass kept is of all tasks
    assert all(dim is None for dim in rest)
    found = [_backward(each, *others) for each in d_out.unbind(task)]
    return tuple(torch.stack(parts) for parts in zip(*found, strict=True)), (0,) * len(found[0])
