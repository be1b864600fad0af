"""Batches of rows that share features, and the same rows with every feature of their own."""

from dataclasses import replace

import torch

from livetrain.modules.batch import Batch, Requests
from tests import twins

USER = ("user", "history", "rating")


def shared(batch: Batch, names: tuple[str, ...] = USER, most: int = 4, width: int = 0) -> tuple[Batch, Batch]:
    """Let neighbouring rows of a flat batch share some of their features.

    Args:
        batch: B rows, by whose first one's number the requests' sizes are drawn.
        names: features of which each request has the list of its first row.
        most: rows of a request.
        width: of the vectors that the events of `history` carry.

    Returns:
        The rows with each its own lists, and the same as requests. The last two rows are padding.
    """
    size, generator = len(batch.rows), torch.Generator().manual_seed(int(batch.rows.max()))
    of: list[int] = []
    while len(of) < size - 2:
        of += [of[-1] + 1 if of else 0] * int(torch.randint(1, most + 1, (), generator=generator))
    of = of[: size - 2]
    requests = of[-1] + 2  # the last one has nothing, and the padding at the end
    first = [of.index(number) for number in range(requests - 1)]
    of += [requests - 1] * 2
    flat: list[list[list[torch.Tensor]]] = []  # by key, the parts of its lists: ids, weights, vectors
    once: list[list[list[torch.Tensor]]] = []
    totals, keys = {}, list(batch.ids.keys())
    for name in keys:
        part = batch.ids[name]
        lengths = part.lengths().tolist()
        parts = [part.values()] if part.weights_or_none() is None else [part.values(), part.weights()]
        if batch.vectors is not None and name == "history":
            parts.append(batch.vectors.view(-1, width))
        lists = [[*each.split(lengths)[:-2], each[:0], each[:0]] for each in parts]
        mine = lists
        if name in names:
            lists = [[each[first[number]] if number < len(first) else each[-1] for number in of] for each in lists]
            mine = [[each[first[n]] if n < len(first) else each[-1] for n in range(size)] for each in mine]
            totals[name] = sum(map(len, lists[0]))
        flat.append(lists)
        once.append(mine)
    weights, rows = batch.weights.clone(), batch.rows.clone()
    weights[-2:], rows[-2:] = 0, -1
    made = []
    for every in (flat, once):
        values = [torch.cat(lists[0]) for lists in every]
        lengths = [torch.tensor([len(row) for row in lists[0]]) for lists in every]
        shares = [torch.cat(lists[1]) for lists in every] if batch.ids.weights_or_none() is not None else None
        vectors = None if batch.vectors is None else torch.cat(every[keys.index("history")][-1]).flatten()
        ids = twins._keyed(keys, values, lengths, shares)
        made.append(replace(batch, ids=ids, vectors=vectors, weights=weights, rows=rows))
    return made[0], replace(made[1], requests=Requests(torch.tensor(of), requests, totals))
