"""Jagged rows in padded groups of nearly equal length, for the operations that want rectangles.

    (N, d) events -> (P, d) places, P = sum over groups of rows * size -> one (rows, size, d) block per group

A row's group follows from its own length alone: what a row is computed with depends on no other row, and a long row
costs its own padding, not the batch's. On a GPU the number of rows of each group is the one thing waited for.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Buckets(NamedTuple):
    """Where the events of B rows lie when rows are padded in groups; rows that lack events are left out.

    Args:
        place: (N,) int64, the place of each event, in 0..P; the events of left-out rows share place P.
        rows: (R,) int64, the rows taken in, group after group; the blocks follow in this order.
        counts: rows of each group.
        sizes: events to which the rows of each group are padded.
    """

    place: Tensor
    rows: Tensor
    counts: list[int]
    sizes: list[int]


def ladder(steps: int, least: int = 8, octaves: int = 20) -> list[int]:
    """Return the sizes to which rows are padded: `steps` even steps per octave, up from `least`.

    With 4 steps 8, 10, 12, 14, 16, 20, ...: padding is less than a quarter of a row that has 8 events or more.
    """
    sizes = [least]
    for octave in range(octaves):
        for step in range(steps):
            sizes.append((least << octave) * (steps + step + 1) // steps)
    return sizes


def buckets(lengths: Tensor, total: int) -> Buckets:
    """Group rows by their length, four groups per octave.

    Args:
        lengths: (B,) integer.
        total: N = sum of lengths, known from the shape of the values.
    """
    sizes = ladder(4)
    level = torch.bucketize(lengths, torch.tensor(sizes, device=lengths.device))  # (B,)
    key = torch.where(lengths > 0, level, len(sizes))
    kept, counts = _occupied(key, len(sizes))
    return _layout(lengths, total, key, counts, [sizes[i] for i in kept])


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
    sizes = ladder(1)
    tops = torch.tensor(sizes, device=lengths.device)
    pair = torch.bucketize(lengths, tops) * len(sizes) + torch.bucketize(others, tops)  # (B,)
    groups = len(sizes) * len(sizes)
    key = torch.where((lengths > 0) & (others > 0), pair, groups)
    kept, counts = _occupied(key, groups)
    one = _layout(lengths, total, key, counts, [sizes[i // len(sizes)] for i in kept])
    return one, _layout(others, total_others, key, counts, [sizes[i % len(sizes)] for i in kept])


def _occupied(key: Tensor, groups: int) -> tuple[list[int], list[int]]:
    """Return the groups that have rows and how many; rows of key `groups` are in none."""
    found: list[int] = torch.bincount(key, minlength=groups + 1).tolist()
    kept: list[int] = []
    counts: list[int] = []
    for number, count in enumerate(found[:groups]):
        if count > 0:
            kept.append(number)
            counts.append(count)
    return kept, counts


def _layout(lengths: Tensor, total: int, key: Tensor, counts: list[int], sizes: list[int]) -> Buckets:
    """Lay the rows out in the order of `key`; `counts` and `sizes` are those of the groups that have rows."""
    device = lengths.device
    taken = sum(counts)
    rows = torch.argsort(key, stable=True)[:taken]
    size = torch.repeat_interleave(
        torch.tensor(sizes, dtype=torch.long, device=device),
        torch.tensor(counts, dtype=torch.long, device=device),
        output_size=taken,
    )
    ends = size.cumsum(0)
    end = sum([count * top for count, top in zip(counts, sizes)])  # noqa: B905  TorchScript knows no strict=
    first = torch.full_like(lengths, end, dtype=torch.long).index_copy(0, rows, ends - size)  # (B,)
    segment = torch.repeat_interleave(lengths, output_size=total).long()  # (N,)
    begin = (lengths.cumsum(0) - lengths).index_select(0, segment)
    place = first.index_select(0, segment) + torch.arange(total, device=device) - begin
    return Buckets(place.clamp(max=end), rows, counts, sizes)


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


def present(layout: Buckets, lengths: Tensor) -> list[Tensor]:
    """Return a (rows, size) mask per group, true where there is an event."""
    held = lengths.index_select(0, layout.rows).split(layout.counts)
    return [
        torch.arange(size, device=lengths.device) < length.unsqueeze(1)
        for length, size in zip(held, layout.sizes)  # noqa: B905
    ]
