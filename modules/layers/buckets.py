"""Jagged rows in padded groups of nearly equal length, for the operations that want rectangles.

    (N, d) events -> (P, d) places, P = sum over groups of rows * size -> one (rows, size, d) block per group

A row's group follows from its own length alone: what a row is computed with depends on no other row, and a long row
costs its own padding, not the batch's. On a GPU a layout waits for one thing: how many rows each group has.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from livetrain.modules.layers import jagged
from livetrain.modules.layers.exporting import exporting, longest


class Buckets(NamedTuple):
    """Where the events of B rows lie when rows are padded in groups; rows that lack events are left out.

    Args:
        lengths: (B,) integer, events of every row.
        place: (N,) int64, the place of each event, in 0..P; the events of left-out rows share place P.
        rows: (R,) int64, the rows taken in, group after group; the blocks follow in this order.
        counts: rows of each group.
        sizes: events to which the rows of each group are padded.
    """

    lengths: Tensor
    place: Tensor
    rows: Tensor
    counts: list[int]
    sizes: list[int]


def ladder(steps: int, like: Tensor) -> Tensor:
    """Return the sizes to which rows are padded: `steps` even steps per octave from 8 to 2^23, where `like` lies.

    With 4 steps 8, 10, 12, 14, 16, 20, ...: padding is less than a quarter of a row that has 8 events or more. They are
    computed, for a list of them would have to be copied to a GPU, which is waited for.
    """
    step = torch.arange(20 * steps, device=like.device)
    octave = torch.full_like(step, 8).bitwise_left_shift(torch.div(step, steps, rounding_mode="floor"))
    above = torch.div(octave * (steps + 1 + step.remainder(steps)), steps, rounding_mode="floor")
    return torch.cat([torch.full_like(step[:1], 8), above])


def buckets(lengths: Tensor, total: int) -> Buckets:
    """Group rows by their length, four groups per octave.

    Args:
        lengths: (B,) integer.
        total: N = sum of lengths, known from the shape of the values.
    """
    if exporting():
        return _whole(lengths, total, lengths > 0)
    sizes = ladder(4, lengths)
    key = torch.where(lengths > 0, torch.bucketize(lengths, sizes), sizes.size(0))  # (B,)
    counts, tops, _ = _occupied(key, sizes, sizes)
    return _layout(lengths, total, key, sizes, counts, tops)


def paired(lengths: Tensor, total: int, others: Tensor, total_others: int) -> tuple[Buckets, Buckets]:
    """Group rows by the lengths of two domains at once, one group an octave; a row that lacks either is left out.

    Args:
        lengths: (B,) integer.
        total: its sum.
        others: (B,) integer.
        total_others: its sum.

    Returns:
        The buckets of both, with the same rows in the same groups.
    """
    if exporting():
        both = (lengths > 0) & (others > 0)
        return _whole(lengths, total, both), _whole(others, total_others, both)
    sizes = ladder(1, lengths)
    steps = sizes.size(0)
    pair = torch.bucketize(lengths, sizes) * steps + torch.bucketize(others, sizes)  # (B,)
    key = torch.where((lengths > 0) & (others > 0), pair, steps * steps)
    ones, twos = sizes.repeat_interleave(steps), sizes.repeat(steps)  # sizes of each pair
    counts, tops, other_tops = _occupied(key, ones, twos)
    one = _layout(lengths, total, key, ones, counts, tops)
    return one, _layout(others, total_others, key, twos, counts, other_tops)


@torch.jit.unused
def _whole(lengths: Tensor, total: int, there: Tensor) -> Buckets:
    """Lay all rows out as one group, padded to the longest: torch.export records no number of groups that depends on
    lengths. The events of rows that are not `there`, (B,) bool, are left out."""
    count = lengths.size(0)
    size = longest(lengths, total)
    segment = jagged.segments(lengths, total)
    begin = (lengths.cumsum(0) - lengths).index_select(0, segment)
    place = segment * size + torch.arange(total, device=lengths.device) - begin
    place = torch.where(there.index_select(0, segment), place, count * size)
    return Buckets(lengths, place, torch.arange(count, device=lengths.device), [count], [size])


def _occupied(key: Tensor, ones: Tensor, twos: Tensor) -> tuple[list[int], list[int], list[int]]:
    """Return how many rows each group has that has any, and its entries of `ones` and `twos`: one copy to the host.

    Args:
        key: (B,) the group of each row, G of a row in none.
        ones: (G,) integer.
        twos: (G,) integer.
    """
    groups = ones.size(0)
    held = torch.zeros(groups + 1, dtype=ones.dtype, device=ones.device).index_add(0, key, torch.ones_like(key))
    found: list[list[int]] = torch.stack([held[:groups], ones, twos]).tolist()
    counts: list[int] = []
    tops: list[int] = []
    others: list[int] = []
    for count, one, two in zip(found[0], found[1], found[2]):  # noqa: B905  TorchScript knows no strict=
        if count > 0:
            counts.append(count)
            tops.append(one)
            others.append(two)
    return counts, tops, others


def _layout(lengths: Tensor, total: int, key: Tensor, padded: Tensor, counts: list[int], sizes: list[int]) -> Buckets:
    """Lay the rows out in the order of `key`.

    Args:
        lengths: (B,) integer.
        total: its sum.
        key: (B,) the group of each row, G of a row in none.
        padded: (G,) the sizes of all groups.
        counts: rows of each group that has any.
        sizes: events to which they are padded.
    """
    rows = torch.argsort(key, stable=True)[: sum(counts)]
    size = padded.index_select(0, key.index_select(0, rows))  # (R,)
    ends = size.cumsum(0)
    end = sum([count * top for count, top in zip(counts, sizes)])  # noqa: B905
    first = torch.full_like(lengths, end, dtype=torch.long).index_copy(0, rows, ends - size)  # (B,)
    segment = torch.repeat_interleave(lengths, output_size=total).long()  # (N,)
    begin = (lengths.cumsum(0) - lengths).index_select(0, segment)
    place = first.index_select(0, segment) + torch.arange(total, device=lengths.device) - begin
    return Buckets(lengths, place.clamp(max=end), rows, counts, sizes)


def pad(values: Tensor, layout: Buckets) -> list[Tensor]:
    """Put events into their groups, zeros elsewhere.

    Args:
        values: (N, d).
        layout: N events' places.

    Returns:
        A (rows, size, d) block per group.
    """
    spans = [count * size for count, size in zip(layout.counts, layout.sizes)]  # noqa: B905
    flat = values.new_zeros(sum(spans) + 1, values.size(1)).index_copy(0, layout.place, values)
    blocks = flat.split(spans + [1])
    return [block.unflatten(0, [count, size]) for block, count, size in zip(blocks, layout.counts, layout.sizes)]  # noqa: B905


def unpad(blocks: list[Tensor], layout: Buckets, nothing: Tensor) -> Tensor:
    """Take events out of their groups: what `pad` put in, in the order it had.

    Args:
        blocks: a (rows, size, d) block per group.
        layout: N events' places.
        nothing: (0, d), events of none, computed from what the blocks were: it keeps the graph of a batch without any
            group the same as that of every other batch, and of other ranks.

    Returns:
        (N, d); zeros for the events of rows left out.
    """
    flat = [block.flatten(0, 1) for block in blocks]
    return torch.cat(flat + [nothing.sum(0, keepdim=True)]).index_select(0, layout.place)


def present(layout: Buckets) -> list[Tensor]:
    """Return a (rows, size) mask per group, true where there is an event."""
    held = layout.lengths.index_select(0, layout.rows).split(layout.counts)
    return [
        torch.arange(size, device=length.device) < length.unsqueeze(1)
        for length, size in zip(held, layout.sizes)  # noqa: B905
    ]
