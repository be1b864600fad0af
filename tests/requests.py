"""Batches of rows that share features, and the same rows with every feature of their own."""

from dataclasses import replace

import torch

from livetrain.modules.batch import Batch, Requests
from tests import twins


def shared(batch: Batch, names: list[str], most: int = 4, seed: int = 0, width: int = 0) -> tuple[Batch, Batch]:
    """Let neighbouring rows of a flat batch share some of their features.

    Args:
        batch: B rows.
        names: features of which each request has the list of its first row.
        most: rows of a request.
        seed: of the requests' sizes.
        width: of the vectors that the events of `history` carry.

    Returns:
        The rows with each its own lists, and the same as requests; the last rows are padding.
    """
    size, generator = len(batch.rows), torch.Generator().manual_seed(seed)
    weights, rows = batch.weights.clone(), batch.rows.clone()
    of: list[int] = []
    while len(of) < size - 2:
        of += [of[-1] + 1 if of else 0] * int(torch.randint(1, most + 1, (1,), generator=generator))
    of = of[: size - 2]
    requests = of[-1] + 2  # the last one has nothing, and the padding at the end
    of += [requests - 1] * 2
    weights[-2:], rows[-2:] = 0, -1
    first = [of.index(number) for number in range(requests)]
    flat: dict[str, tuple] = {}
    once: dict[str, tuple] = {}
    totals = {}
    for name in list(batch.ids.keys()):
        part = batch.ids[name]
        lengths, weighed = part.lengths().tolist(), part.weights_or_none()
        lists = list(part.values().split(lengths))
        beside = None if weighed is None else list(weighed.split(lengths))
        vectors = None
        if batch.vectors is not None and name == "history":
            vectors = list(batch.vectors.view(-1, width).split(lengths))
        each = [lists, beside, vectors]
        own = [None if part is None else [*part[:-2], part[0][:0], part[0][:0]] for part in each]
        if name in names:
            own = [None if part is None else [part[first[number]] for number in of] for part in own]
            none = [[], [], []]
            mine = [None if p is None else [p[at] for at in first] + [p[0][:0]] * (size - requests) for p in own]
            del none
            totals[name] = sum(len(row) for row in own[0])
        else:
            mine = own
        flat[name], once[name] = tuple(own), tuple(mine)
    groups = batch.task_groups
    common = {"weights": weights, "rows": rows, "task_groups": groups}
    made = []
    for lists in (flat, once):
        names_of = list(lists)
        values = [torch.cat(lists[n][0]) for n in names_of]
        lengths = [torch.tensor([len(row) for row in lists[n][0]]) for n in names_of]
        shares = None if lists[names_of[0]][1] is None else [torch.cat(lists[n][1]) for n in names_of]
        vectors = None if batch.vectors is None else torch.cat(lists["history"][2]).flatten()
        ids = twins._keyed(names_of, values, lengths, shares)
        made.append(replace(batch, ids=ids, vectors=vectors, **common))
    of_rows = torch.tensor(of)
    return made[0], replace(made[1], requests=Requests(of_rows, requests, totals))
