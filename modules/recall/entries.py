"""How an inverted table is read: the keys of requests find entries, and these add up to scores of items.

A table of K keys and N items has `keys` (K,) int64, rising; `offsets` (K + 1,) int64: the entries of key k are those
from offsets[k] to offsets[k + 1]; `places` (E,) int32 of items, rising within a key; `scores` (E,); and `rest` (K,)
float32, or empty: what a key leaves of the weights of a request's later keys. torch.jit.script accepts all functions.
"""

import torch
from torch import Tensor


def find(known: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the place of each of (n,) wanted numbers in known ones, which rise, and whether it is there.

    Example:
        >>> find(torch.tensor([3, 8]), torch.tensor([8, 5]))
        (tensor([1, 1]), tensor([ True, False]))
    """
    if known.numel() == 0:
        return torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.bool)
    place = torch.searchsorted(known, wanted).clamp(max=known.numel() - 1)
    return place, known[place] == wanted


def weighed(
    table_keys: Tensor, rest: Tensor, keys: Tensor, counts: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return which keys of B requests the table has: (M,) request, (M,) place in `table_keys`, (M,) float32 weight.

    Args:
        table_keys, rest: of the table.
        keys: (n,) int64, of one request after the other.
        counts: (B,) int64: how many each has.
        weights: (n,) float32.
    """
    row = torch.repeat_interleave(torch.arange(counts.numel()), counts)
    place, known = find(table_keys, keys)
    row, place, weights = row[known], place[known], weights[known]
    if rest.numel() > 0 and row.numel() > 0:
        taken = torch.log(rest[place].to(torch.float64))
        before = torch.cumsum(taken, 0) - taken  # of all keys before, those of other requests too
        counted = torch.bincount(row, minlength=counts.numel())
        start = (torch.cumsum(counted, 0) - counted)[row]
        weights = weights * torch.exp(before - before[start]).float()
    return row, place, weights


def entries(offsets: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Return all entries of (M,) keys by their places, and of each entry which of the M it is of, both (E,) int64.

    Example:
        >>> entries(torch.tensor([0, 2, 3]), torch.tensor([1, 0]))
        (tensor([2, 0, 1]), tensor([0, 1, 1]))
    """
    begin = offsets[key]
    counts = offsets[key + 1] - begin
    of = torch.repeat_interleave(torch.arange(key.numel()), counts)
    return torch.arange(of.numel()) + (begin - torch.cumsum(counts, 0) + counts)[of], of


def summed(row: Tensor, item: Tensor, value: Tensor, items: int) -> tuple[Tensor, Tensor]:
    """Add up what entries bring: the pairs row x items + item that have any, (P,) int64, rising, and their sums.

    Args:
        row, item: (E,) int64.
        value: (E,) float32.
        items: how many there are, at least 1.
    """
    pairs, place = torch.unique(row * items + item, return_inverse=True)
    return pairs, torch.zeros(pairs.numel()).index_add_(0, place, value)


def best(pairs: Tensor, sums: Tensor, items: int, rows: int, k: int) -> tuple[Tensor, Tensor]:
    """Return each row's k largest sums, the largest first; of equal ones the first item comes first.

    Args:
        pairs, sums, items: of `summed`.
        rows: how many there are.
        k: length of the lists.

    Returns:
        (rows, k) int64 items, -1 where there are no more, and (rows, k) float32 sums, there -inf.

    Example:
        >>> best(torch.tensor([0, 2, 5]), torch.tensor([1.0, 4.0, 2.0]), 3, 2, 2)
        (tensor([[ 2,  0],
                [ 2, -1]]), tensor([[4., 1.],
                [2., -inf]]))
    """
    order = torch.argsort(sums, descending=True, stable=True)
    owner = torch.div(pairs, items, rounding_mode="floor")
    order = order[torch.argsort(owner[order], stable=True)]
    owner, sums, pairs = owner[order], sums[order], pairs[order]
    own = torch.bincount(owner, minlength=rows)
    rank = torch.arange(owner.numel()) - torch.repeat_interleave(torch.cumsum(own, 0) - own, own)
    kept = rank < k
    found = torch.full((rows, k), -1, dtype=torch.int64)
    scores = torch.full((rows, k), -float("inf"))
    found[owner[kept], rank[kept]] = torch.remainder(pairs[kept], items)
    scores[owner[kept], rank[kept]] = sums[kept]
    return found, scores
