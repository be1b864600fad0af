"""How well a model with two towers finds items: every positive row's item among all of the split or a catalogue."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from livetrain.configs.schema import Recipe
from livetrain.modules.batch import Batch
from livetrain.modules.layers import jagged, products
from livetrain.modules.network import Network
from livetrain.modules.tables.hashing import mix
from livetrain.modules.tasks.kind import Redrawn
from livetrain.modules.tasks.retrieval import AT
from livetrain.trainers.evaluate.evaluation import NO_BOOTSTRAP
from livetrain.trainers.evaluate.intervals import Bootstrap, intervals
from livetrain.trainers.runtime import ranks

QUERIES = 2**16  # positive rows that are ranked at most; which ones is a hash of their numbers
_CELLS = 2**26  # scores in memory at once: 256 MB
_NAMES = [f"{metric}_{k}" for k in AT for metric in ("recall", "ndcg")]
_PENDING = 2**16  # rows whose vectors wait to be merged


class Retrieval:
    """Collects the vectors of an evaluation's rows and ranks each positive row's item among all items.

    An item is a value of the feature `key` of the network; its vector is that of its newest row, the one with the
    largest number, whoever was shown it. The items are those of evaluate.catalogue, if the recipe has one, and
    otherwise those of the split. Items with equal scores stand before the one that is looked for, so a model that tells
    nothing apart finds nothing, and an item that the catalogue lacks is not found.

    With evaluate.seen the items in that feature of a row, its history, are taken out of the row's list, but not the one
    that is looked for. What a user had is thus what the row knows of it, cut to the feature's max_length.

    Args:
        network: any; of one without towers nothing is collected.
        recipe: the run.
        bootstrap: how intervals are drawn; by default none are.

    Attributes:
        draws: what `compute` has drawn for its intervals, by the figures' names; whole on every rank.
    """

    def __init__(self, network: Network, recipe: Recipe, bootstrap: Bootstrap = NO_BOOTSTRAP) -> None:
        self._bootstrap = bootstrap
        self.draws: dict[str, np.ndarray] = {}
        self._towers, self._key = network.towers, network.key
        self._task = next(iter(recipe.tasks))
        self._history, self._listed = recipe.evaluate.seen, recipe.evaluate.catalogue is not None
        self._limit = recipe.features[self._history].limit if self._history else 0
        self._slices = ["", *(f"{name}." for name in recipe.evaluate.slices)]
        self._seen: tuple[torch.Tensor, torch.Tensor] | None = None
        # Row number, key, has an item, is a positive, slices, group, keys of the history; vectors of user and item.
        self._pending: list[tuple[torch.Tensor, ...]] = []
        self._rows = 0  # of them
        self._items: tuple[torch.Tensor, ...] = ()  # row number, key and vector of the items so far
        self._queries: tuple[torch.Tensor, ...] = ()  # row number, key, vector, slices, group, history of positive rows

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

    def add(self, batch: Batch, listed: bool = False) -> None:
        """Take in the batch that was just scored; `listed`: its rows are the catalogue's items, and not the split's."""
        if self._towers is None:
            return
        assert self._seen is not None  # the batch was scored inside `watching`
        user, item = (vectors.detach().float() for vectors in self._seen)
        assert self._key is not None
        part = batch.lists(self._key)
        keys = jagged.rows(part.values().unsqueeze(1), part.lengths()).squeeze(1)
        real = (batch.weights > 0) & (part.lengths() > 0)
        is_item = real & (listed or not self._listed)
        positive = real & (batch.labels[:, 0] == 1) & (not listed)
        slices = torch.zeros_like(keys) if batch.slices is None else batch.slices
        group = batch.rows if batch.groups is None else batch.groups  # what intervals are drawn of
        self._pending.append((batch.rows, keys, is_item, positive, slices, group, self._had(batch, keys), user, item))
        self._rows += len(keys)
        if self._rows > max(_PENDING, len(self._items[0]) if self._items else 0):  # so merging costs little per row
            self._merge()

    def _had(self, batch: Batch, keys: torch.Tensor) -> torch.Tensor:
        """Return (B, L) keys of the items that each row's history holds; its own key where there are fewer."""
        had = keys.unsqueeze(1).repeat(1, self._limit)
        if self._history:
            had_before = batch.lists(self._history)
            values, lengths = had_before.values(), had_before.lengths()
            row = jagged.segments(lengths, len(values))
            first = lengths.cumsum(0) - lengths
            had[row, torch.arange(len(values), device=row.device) - first[row]] = values
        return had

    def _merge(self) -> None:
        """Take the pending rows into items and queries, of which no more is kept than will be needed."""
        if not self._pending:
            return
        columns = (torch.cat(column) for column in zip(*self._pending, strict=True))
        rows, keys, is_item, positive, slices, group, had, user, item = columns
        self._pending, self._rows = [], 0
        items = (rows[is_item], keys[is_item], item[is_item])
        queries = tuple(column[positive] for column in (rows, keys, user, slices, group, had))
        self._items = _newest(*_after(self._items, items))
        self._queries = least(*_after(self._queries, queries))

    def compute(self) -> dict[str, float]:
        """Return the figures over all ranks' rows; empty without towers. Collective.

        Returns:
            By task ``.recall_K``, the share of positive rows whose item is among the K best items, and ``.ndcg_K``, the
            same with 1 / log2(1 + rank) in the place of 1, for K of `AT`; ``.items``, how many items there are,
            ``.queries``, how many rows were ranked, and ``.unlisted``, of how many the item is not among the items.
            With a bootstrap ``.recall_K_low`` and ``_high``, the ends of intervals, and likewise of NDCG. Undefined
            ones are nan. Of a slice the same as ``<slice>.<task>.recall_K``.
        """
        if self._towers is None:
            return {}
        self._merge()
        _, keys, items = _newest(*(_everyone(part) for part in self._items))
        rows, wanted, users, slices, group, had = self._queries
        chosen = torch.isin(rows, least(_everyone(rows))[0])
        places = _ranks(wanted[chosen], users[chosen], had[chosen], keys, items)
        # Of all ranks' queries in the order of their rows, so that figures do not depend on the number of ranks.
        own = (rows[chosen], places, slices[chosen], group[chosen])
        rows, places, slices, group = (_everyone(part).cpu() for part in own)
        order = rows.argsort()
        places, slices, group = (part[order] for part in (places, slices, group))
        found, self.draws = figures(self._task, self._slices, places, slices, group, len(keys), self._bootstrap)
        return found


def figures(
    task: str,
    parts: Sequence[str],
    places: torch.Tensor,
    slices: torch.Tensor,
    group: torch.Tensor,
    size: int,
    bootstrap: Bootstrap = NO_BOOTSTRAP,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return the figures of queries whose ranks are known, as `Retrieval.compute` does, and what was drawn for them.

    Args:
        task: its name.
        parts: how the names of the split's parts begin: "" of the whole, ``<slice>.`` of each slice.
        places: (Q,) ranks from 1, in the order of the queries' rows; beyond `size` of items that are not listed.
        slices: (Q,) int64, bit i: the query is in the i-th slice.
        group: (Q,) int64, what intervals are drawn of.
        size: number of items.
        bootstrap: how intervals are drawn; by default none are.
    """
    found: dict[str, float] = {}
    draws: dict[str, np.ndarray] = {}
    for part, name in enumerate(parts):
        inside = (slices >> (part - 1) & 1).bool() if part else torch.ones_like(slices, dtype=torch.bool)
        listed, gains = places[inside] <= size, _gains(places[inside], size)
        own = dict(zip(_NAMES, (gains.sum(0) / len(gains)).tolist(), strict=True))
        drawn = bootstrap.drawn(own, group[inside].numpy(), partial(_redrawn, gains.numpy()))
        own |= intervals(drawn)
        draws |= {f"{name}{task}.{metric}": values for metric, values in drawn.items()}
        own |= {"items": float(size), "queries": float(len(gains)), "unlisted": float((~listed).sum())}
        found |= {f"{name}{task}.{metric}": value for metric, value in own.items()}
    return found, draws


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


def least(rows: torch.Tensor, *columns: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the QUERIES entries whose row numbers have the least hash: the same rows, however many ranks there are."""
    chosen = mix(rows + 1).argsort()[:QUERIES]
    return tuple(column[chosen] for column in (rows, *columns))


def _ranks(
    keys: torch.Tensor, users: torch.Tensor, had: torch.Tensor, known: torch.Tensor, items: torch.Tensor
) -> torch.Tensor:
    """Return the rank, from 1, of each query's item; one more than there are items where it is none of them.

    Args:
        keys: (Q,) of the items looked for.
        users: (Q, d), or (Q, K, d) of users with several vectors.
        had: (Q, L) keys of items that do not count; those looked for do.
        known: (N,) keys of all items, rising.
        items: (N, d).

    Returns:
        (Q,) int64.
    """
    if not len(known):
        return torch.ones_like(keys)
    step = max(_CELLS // (len(known) * users.shape[1:-1].numel()), 1)
    found = [torch.zeros_like(keys[:0])]
    for key, user, own in zip(keys.split(step), users.split(step), had.split(step), strict=True):
        found.append(places(products.of_all(user, items), key, own, known))
    return torch.cat(found)


def places(scores: torch.Tensor, keys: torch.Tensor, had: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Return the rank, from 1, of each query's item among items with scores, whatever gave them.

    Args:
        scores: (Q, N), one of each item for each query.
        keys: (Q,) of the items looked for.
        had: (Q, L) keys of items that do not count; those looked for do.
        known: (N,) keys of the items, rising; N > 0.

    Returns:
        (Q,) int64; N + 1 where an item is none of them.
    """
    place = torch.searchsorted(known, keys).clamp(max=len(known) - 1)
    behind = scores < scores.gather(1, place.unsqueeze(1))  # a nan is not behind
    rank = len(known) - behind.sum(1)
    if had.size(1):
        had = had.sort(1).values
        at = torch.searchsorted(known, had).clamp(max=len(known) - 1)
        counts = (known[at] == had) & (had != keys.unsqueeze(1)) & ~behind.gather(1, at)
        counts[:, 1:] &= had[:, 1:] != had[:, :-1]
        rank = rank - counts.sum(1)
    return torch.where(known[place] == keys, rank, len(known) + 1)


def _gains(places: torch.Tensor, size: int) -> torch.Tensor:
    """Return what each query adds to the figures `_NAMES`.

    Args:
        places: (Q,) ranks, beyond `size` of items that are none.
        size: number of items.

    Returns:
        (Q, 2 K) float64.
    """
    gains = (places <= size) / torch.log2(1 + places.double())
    found = [(places <= min(k, size)).double() for k in AT]
    return torch.stack([part for hit in found for part in (hit, gains * hit)], 1)


def _redrawn(gains: np.ndarray, units: np.ndarray) -> Redrawn:
    """Return, of how often each unit is drawn, the figures of the queries, (Q, 2 K) gains, of these units."""
    count = np.bincount(units)
    sums = np.stack([np.bincount(units, column) for column in gains.T], axis=1)  # (U, 2 K)

    def figures(times: np.ndarray) -> dict[str, float]:
        drawn = times @ count
        means = times @ sums / drawn if drawn else np.full(sums.shape[1], np.nan)
        return dict(zip(_NAMES, means.tolist(), strict=True))

    return figures
