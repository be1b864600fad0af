"""How well a model with two towers finds items: every positive row's item among all items of the split."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn

from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Batch
from livetrain.modules.features.hashing import mix
from livetrain.modules.layers import jagged
from livetrain.modules.network import Network
from livetrain.modules.tasks.retrieval import AT
from livetrain.trainers.runtime import ranks

QUERIES = 2**16  # positive rows that are ranked at most; which ones is a hash of their numbers
_CELLS = 2**26  # scores in memory at once: 256 MB
_PENDING = 2**16  # rows whose vectors wait to be merged


class Retrieval:
    """Collects the vectors of an evaluation's rows and ranks each positive row's item among the split's items.

    An item is a value of the feature `key` of the network; its vector is that of its newest row, the one with the
    largest number, whoever was shown it. Items with equal scores stand before the one that is looked for, so a model
    that tells nothing apart finds nothing. What users had already is not taken out.

    Args:
        network: any; of one without towers nothing is collected.
        recipe: the run.
    """

    def __init__(self, network: Network, recipe: Recipe) -> None:
        self._towers, self._key = network.towers, network.key
        self._task = next(iter(recipe.tasks))
        self._seen: tuple[torch.Tensor, torch.Tensor] | None = None
        self._pending: list[tuple[torch.Tensor, ...]] = []  # row number, key, has an item, positive, user, item
        self._rows = 0  # of them
        self._items: tuple[torch.Tensor, ...] = ()  # row number, key and vector of the items so far
        self._queries: tuple[torch.Tensor, ...] = ()  # the same of the positive rows' users

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See the vectors of the batches inside."""
        hook = self._towers.register_forward_hook(self._see) if self._towers is not None else None
        try:
            yield
        finally:
            if hook is not None:
                hook.remove()

    def _see(self, towers: nn.Module, inputs: tuple, vectors: tuple[torch.Tensor, torch.Tensor]) -> None:
        self._seen = vectors

    def add(self, batch: Batch) -> None:
        """Take in the batch that was just scored."""
        if self._towers is None:
            return
        assert self._seen is not None  # the batch was scored inside `watching`
        user, item = (vectors.detach().float() for vectors in self._seen)
        part = batch.ids[self._key]
        keys = jagged.rows(part.values().unsqueeze(1), part.lengths()).squeeze(1)
        real = (batch.weights > 0) & (part.lengths() > 0)
        self._pending.append((batch.rows, keys, real, real & (batch.labels[:, 0] == 1), user, item))
        self._rows += len(keys)
        if self._rows > max(_PENDING, len(self._items[0]) if self._items else 0):  # so merging costs little per row
            self._merge()

    def _merge(self) -> None:
        """Take the pending rows into items and queries, of which no more is kept than will be needed."""
        if not self._pending:
            return
        rows, keys, real, positive, user, item = (torch.cat(column) for column in zip(*self._pending, strict=True))
        self._pending, self._rows = [], 0
        items, queries = (rows[real], keys[real], item[real]), (rows[positive], keys[positive], user[positive])
        self._items = _newest(*_after(self._items, items))
        self._queries = _least(*_after(self._queries, queries))

    def compute(self) -> dict[str, float]:
        """Return the figures over all ranks' rows; empty without towers. Collective.

        Returns:
            By task ``.recall_K``, the share of positive rows whose item is among the K best of the split's items, and
            ``.ndcg_K``, the same with 1 / log2(1 + rank) in the place of 1, for K of `AT`; ``.items``, how many items
            there are, and ``.queries``, how many rows were ranked. Undefined ones are nan.
        """
        if self._towers is None:
            return {}
        self._merge()
        _, keys, items = _newest(*(_everyone(part) for part in self._items))
        rows, wanted, users = self._queries
        chosen = torch.isin(rows, _least(_everyone(rows))[0])
        sums = ranks.summed(_sums(_ranks(wanted[chosen], users[chosen], keys, items)))
        count = float(sums[-1])
        names = [f"{metric}_{k}" for k in AT for metric in ("recall", "ndcg")]
        means = (sums[:-1] / count if count else sums[:-1] * float("nan")).tolist()
        figures = dict(zip(names, means, strict=True))
        figures |= {"items": float(len(keys)), "queries": count}
        return {f"{self._task}.{name}": value for name, value in figures.items()}


def _after(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Return the columns of both, one below the other."""
    return tuple(torch.cat(pair) for pair in zip(one, other, strict=True)) if one else other


def _newest(rows: torch.Tensor, keys: torch.Tensor, vectors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return of each key the entry with the largest row number, by rising key."""
    order = rows.argsort()
    order = order[keys[order].argsort(stable=True)]
    last = torch.ones_like(order, dtype=torch.bool)
    last[:-1] = keys[order][1:] != keys[order][:-1]
    return tuple(part[order[last]] for part in (rows, keys, vectors))


def _everyone(own: torch.Tensor) -> torch.Tensor:
    """Return every rank's (n_r, ...) rows one after another, on every rank."""
    if ranks.world() == 1:
        return own
    sizes = ranks.gather(len(own))
    sent = own.new_zeros(max(sizes), *own.shape[1:])
    sent[: len(own)] = own
    received = [torch.empty_like(sent) for _ in sizes]
    dist.all_gather(received, sent)
    return torch.cat([part[:size] for part, size in zip(received, sizes, strict=True)])


def _least(rows: torch.Tensor, *columns: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the QUERIES entries whose row numbers have the least hash: the same rows, however many ranks there are."""
    chosen = mix(rows + 1).argsort()[:QUERIES]
    return tuple(column[chosen] for column in (rows, *columns))


def _ranks(keys: torch.Tensor, users: torch.Tensor, known: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """Return the rank, from 1, of each query's item.

    Args:
        keys: (Q,) of the items looked for; each is in `known`.
        users: (Q, d).
        known: (N,) keys of all items, rising.
        items: (N, d).

    Returns:
        (Q,) int64.
    """
    places = torch.searchsorted(known, keys)
    step = max(_CELLS // max(len(known), 1), 1)
    found = [torch.zeros_like(places[:0])]
    for place, user in zip(places.split(step), users.split(step), strict=True):
        scores = user @ items.t()  # (q, N)
        behind = scores < scores.gather(1, place.unsqueeze(1))
        found.append(len(known) - behind.sum(1))  # a nan is not behind
    return torch.cat(found)


def _sums(places: torch.Tensor) -> torch.Tensor:
    """Return the sums over queries of the figures at each of AT, and last the number of queries, float64."""
    gains = 1 / torch.log2(1 + places.double())
    parts = [part for k in AT for part in ((places <= k).double().sum(), (gains * (places <= k)).sum())]
    return torch.stack([*parts, torch.tensor(float(len(places)), dtype=torch.float64, device=places.device)])
