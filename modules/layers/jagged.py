"""Jagged tensors: the events of all rows one after another, (N, d) with N = sum of lengths, and no padding.

Nothing here waits for a GPU: sizes come from shapes, never from values.
"""

import torch
from torch import Tensor

from livetrain.modules.layers.exporting import exporting


def of_requests(lengths: dict[str, Tensor], request: Tensor, totals: dict[str, int]) -> dict[str, Tensor]:
    """Add to a network's `lengths` what rows share features by: `request_of` and `events_of` read it.

    Args:
        lengths: feature -> (B,), or (R,) of a shared one.
        request: (B,) int64, the request of each row.
        totals: shared feature -> the sum of its lengths if each row had its own.
    """
    out = {**lengths, "(request)": request}  # no feature can have these names
    for name, total in totals.items():
        out["(events of) " + name] = request.new_empty(total, 0)  # its shape is known without asking a GPU
    return out


def request_of(lengths: dict[str, Tensor]) -> Tensor | None:
    """Return the request of each row, (B,) int64; None where rows share no features, or all rows share them."""
    return lengths.get("(request)")


def events_of(lengths: dict[str, Tensor], name: str) -> int:
    """Return how many ids a shared feature would have if each row had its own."""
    return lengths["(events of) " + name].size(0)


def gaps_of(values: dict[str, Tensor], name: str) -> Tensor:
    """Return the seconds from each event of a sequence to its row's next one, of the newest to the row's own time.

    Args:
        values: a network's.
        name: of a sequence feature with times, one of `Inputs.timed`.

    Returns:
        (N,) float32; NaN where a time is not known.
    """
    return values["(gaps of) " + name].flatten()


def of_rows(x: Tensor, lengths: dict[str, Tensor], size: int) -> Tensor:
    """Give each row what it shares with others.

    Args:
        x: (B, ...) of the rows, (R, ...) of the requests (see `request_of`), or (1, d) of all rows.
        lengths: a network's.
        size: B, above R.

    Returns:
        (B, ...).
    """
    if x.size(0) == size:
        return x
    request = request_of(lengths)
    return x.expand(size, -1) if request is None else x.index_select(0, request)


def repeated(lengths: Tensor, request: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Repeat each request's list for every row of it.

    Args:
        lengths: (R,) integer.
        request: (B,) int64, the request of each row.
        total: M = sum of the rows' lengths.

    Returns:
        (M,) int64, which of the requests' N events each of the rows' events is, and the rows' lengths, (B,).

    Example:
        >>> repeated(torch.tensor([2, 1]), torch.tensor([0, 0, 1]), 5)
        (tensor([0, 1, 0, 1, 2]), tensor([2, 2, 1]))
    """
    own = lengths.index_select(0, request)  # (B,)
    begins = (lengths.cumsum(0) - lengths).index_select(0, request) - (own.cumsum(0) - own)
    segment = segments(own, total)
    return begins.index_select(0, segment) + torch.arange(total, device=lengths.device), own


def seen_by(lengths: dict[str, Tensor], name: str, size: int, total: int) -> tuple[Tensor, Tensor]:
    """Pair each row with every event that it sees of a sequence, its own one or one that rows share.

    Args:
        lengths: a network's.
        name: of the sequence.
        size: B, the number of rows.
        total: N, the sum of the sequence's lengths.

    Returns:
        (M,) int64, which of the N events each pair has, one row's pairs after the other's; and (B,), how many pairs
        each row has.

    Example:
        >>> seen_by({"seen": torch.tensor([2])}, "seen", 3, 2)  # one history of all rows
        (tensor([0, 1, 0, 1, 0, 1]), tensor([2, 2, 2]))
    """
    count = lengths[name]
    if count.size(0) == size:
        return torch.arange(total, device=count.device), count
    request = request_of(lengths)
    if request is None:
        return repeated(count, torch.zeros(size, dtype=torch.long, device=count.device), size * total)
    return repeated(count, request, events_of(lengths, name))


def each_its_own(
    values: dict[str, Tensor], lengths: dict[str, Tensor], vectors: dict[str, Tensor] | None
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor] | None]:
    """Give each row its own of all that rows share, for a network that knows no requests.

    Args:
        values: feature -> (N, dim).
        lengths: a network's.
        vectors: feature -> (N, w), of some.

    Returns:
        The same for B rows without requests.
    """
    request = request_of(lengths)
    if request is None:
        return values, lengths, vectors
    own = {name: length for name, length in lengths.items() if not name.startswith("(")}
    carried = vectors
    for name in values:
        if "(events of) " + name not in lengths:
            continue
        place, own[name] = repeated(lengths[name], request, events_of(lengths, name))
        beside = [each for each in (name, "(gaps of) " + name) if each in values]
        values = {**values, **{each: values[each].index_select(0, place) for each in beside}}
        if carried is not None and name in carried:
            carried = {**carried, name: carried[name].index_select(0, place)}
    return values, own, carried


def rows(values: Tensor, lengths: Tensor) -> Tensor:
    """Return one vector per row of a feature that has at most one id per row; zeros where it has none.

    Args:
        values: (N, d) embeddings, N = sum of lengths.
        lengths: (B,) integer, each 0 or 1.

    Returns:
        (B, d).
    """
    # A compiled graph is for batches with missing ids too.
    if torch.jit.is_scripting() or not torch.compiler.is_compiling():  # noqa: SIM102 (as in frequency.low_pass)
        if values.size(0) == lengths.size(0):  # lengths of 0 or 1 that sum to B are all 1
            return values
    missing = values.new_zeros(1, values.size(1))
    index = torch.where(lengths > 0, lengths.cumsum(0) - 1, values.size(0))  # (B,)
    return torch.cat([values, missing]).index_select(0, index)


def segments(lengths: Tensor, total: int) -> Tensor:
    """Return the row of every event: lengths [2, 0, 1] give [0, 0, 2].

    Args:
        lengths: (B,) integer.
        total: N = sum of lengths, known from the shape of the values.

    Returns:
        (N,) int64.
    """
    if exporting():  # ONNX cannot say how long the result is: an event's row is the number of rows that end before it
        ends = lengths.new_zeros(total + 1).scatter_add(0, lengths.cumsum(0), torch.ones_like(lengths))
        return ends.cumsum(0)[:total]
    return torch.repeat_interleave(lengths, output_size=total).long()


def spread(x: Tensor, segment: Tensor) -> Tensor:
    """Repeat each row once for every event of it.

    Args:
        x: (B, ...).
        segment: (N,) from `segments`.

    Returns:
        (N, ...).
    """
    return x.index_select(0, segment)


def segment_sum(values: Tensor, segment: Tensor, size: int) -> Tensor:
    """Sum the events of each row; 0 for a row without events.

    Args:
        values: (N, d).
        segment: (N,) from `segments`.
        size: B, the number of rows.

    Returns:
        (B, d).
    """
    return values.new_zeros(size, values.size(1)).index_add(0, segment, values)


def segment_softmax(scores: Tensor, segment: Tensor, size: int) -> Tensor:
    """Softmax over the events of each row, stable for scores of any size.

    Args:
        scores: (N, h).
        segment: (N,) from `segments`.
        size: B, the number of rows.

    Returns:
        (N, h), summing to 1 over each row that has events.
    """
    index = segment.unsqueeze(1).expand_as(scores)  # (N, h)
    lowest = torch.full([size, scores.size(1)], -float("inf"), dtype=scores.dtype, device=scores.device)
    # The largest score only keeps exp in range; its derivative cancels, so autograd need not see it.
    largest = lowest.scatter_reduce(0, index, scores.detach(), reduce="amax", include_self=True)
    weights = torch.exp(scores - spread(largest, segment))
    return weights / spread(segment_sum(weights, segment, size), segment)


def pool(values: Tensor, lengths: Tensor, mean: bool) -> Tensor:
    """Sum or average the events of each row; zeros for a row without events.

    Args:
        values: (N, d), N = sum of lengths.
        lengths: (B,) integer.
        mean: average instead of sum.

    Returns:
        (B, d).
    """
    size = lengths.size(0)
    total = segment_sum(values, segments(lengths, values.size(0)), size)
    return total / lengths.clamp(min=1).unsqueeze(1) if mean else total


def recent(values: Tensor, lengths: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Put the newest events of each row side by side, the newest last.

    Args:
        values: (N, d), N = sum of lengths.
        lengths: (R,) integer.
        count: T.

    Returns:
        (R, T, d), zeros before the first event of a row with fewer; (R, T) bool, whether there is an event.

    Example:
        >>> recent(torch.tensor([[1], [2], [3], [4]]), torch.tensor([3, 1]), 2)[0].squeeze(2)
        tensor([[2, 3],
                [0, 4]])
    """
    end = lengths.cumsum(0).unsqueeze(1)  # (R, 1)
    place = end - count + torch.arange(count, device=lengths.device)
    there = place >= end - lengths.unsqueeze(1)
    index = torch.where(there, place, values.size(0))
    padded = torch.cat([values, values.new_zeros(1, values.size(1))])
    return padded.index_select(0, index.flatten()).view(lengths.size(0), count, values.size(1)), there


def largest(values: Tensor, lengths: Tensor) -> Tensor:
    """Take the largest of each column over the events of each row; zeros for a row without events.

    Events that share a row's largest share its gradient.

    Args:
        values: (N, d), N = sum of lengths.
        lengths: (B,) integer.

    Returns:
        (B, d).
    """
    index = segments(lengths, values.size(0)).unsqueeze(1).expand_as(values)  # (N, d)
    none = values.new_zeros(lengths.size(0), values.size(1))
    return none.scatter_reduce(0, index, values, reduce="amax", include_self=False)
