"""How well a model with two towers finds items: every positive row's item among all of the split or a catalogue."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torchrec.sparse.jagged_tensor import JaggedTensor

from livetrain.configs.schema import CANDIDATES, SEEN, Recipe
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


@dataclass(frozen=True)
class Lists:
    """Keys of items, a list per row.

    Args:
        values: (M,) those of one row after the other.
        lengths: (R,) how many each row has, M in all.

    Example:
        >>> lists = Lists(torch.tensor([1, 2, 3]), torch.tensor([2, 0, 1]))
        >>> lists[torch.tensor([2, 0])].padded(torch.tensor([9, 8]))
        tensor([[3, 9],
                [1, 2]])
    """

    values: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def joined(cls, parts: Sequence["Lists"]) -> "Lists":
        """Return the rows of all parts, one below the other."""
        return cls(torch.cat([part.values for part in parts]), torch.cat([part.lengths for part in parts]))

    def __getitem__(self, rows: torch.Tensor) -> "Lists":
        lengths = self.lengths[rows]
        first = (self.lengths.cumsum(0) - self.lengths)[rows]
        within = jagged.segments(lengths, int(lengths.sum()))
        places = torch.arange(len(within), device=within.device) - (lengths.cumsum(0) - lengths)[within]
        return Lists(self.values[first[within] + places], lengths)

    def padded(self, filler: torch.Tensor) -> torch.Tensor:
        """Return (R, L) keys, L those of the longest list; behind shorter ones each row's filler, (R,)."""
        out = filler.unsqueeze(1).repeat(1, int(self.lengths.max()) if len(self.lengths) else 0)
        row = jagged.segments(self.lengths, len(self.values))
        first = self.lengths.cumsum(0) - self.lengths
        out[row, torch.arange(len(row), device=row.device) - first[row]] = self.values
        return out


class Retrieval:
    """Collects the vectors of an evaluation's rows and ranks each positive row's item among all items.

    An item is a value of the feature `key` of the network; its vector is that of its newest row, the one with the
    largest number, whoever was shown it. The items are those of evaluate.catalogue, if the recipe has one, and
    otherwise those of the split. Of items with equal scores half stand before the one that is looked for, so a model
    that tells nothing apart finds nothing in a long list, and an item that the catalogue lacks is not found.

    With evaluate.seen the items in that column of a row are taken out of the row's list, but not the one that is looked
    for; the column counts whole, whatever max_length cuts it to for the network. With evaluate.candidates a row's list
    is that column's items and the one that is looked for. Of the rows that are ranked both are held in memory.

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
        self._listed = recipe.evaluate.catalogue is not None
        self._asides = list(recipe.asides())
        self._slices = ["", *(f"{name}." for name in recipe.evaluate.slices)]
        self._seen: tuple[torch.Tensor, torch.Tensor] | None = None
        # Row number, key, has an item, is a positive, slices, group; vectors of user and item; and the asides.
        self._pending: list[tuple[tuple[torch.Tensor, ...], list[Lists]]] = []
        self._rows = 0  # of them
        self._items: tuple[torch.Tensor, ...] = ()  # row number, key and vector of the items so far
        self._queries: tuple[torch.Tensor, ...] = ()  # row number, key, vector, slices, group of positive rows
        self._lists: list[Lists] = []  # their asides

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
        lists = [Lists(*_jagged(batch.lists(name))) for name in self._asides]
        self._pending.append(((batch.rows, keys, is_item, positive, slices, group, user, item), lists))
        self._rows += len(keys)
        if self._rows > max(_PENDING, len(self._items[0]) if self._items else 0):  # so merging costs little per row
            self._merge()

    def _merge(self) -> None:
        """Take the pending rows into items and queries, of which no more is kept than will be needed."""
        if not self._pending:
            return
        tensors, asides = zip(*self._pending, strict=True)
        rows, keys, is_item, positive, slices, group, user, item = map(torch.cat, zip(*tensors, strict=True))
        lists = [Lists.joined(parts)[positive] for parts in zip(*asides, strict=True)]
        self._pending, self._rows = [], 0
        self._items = _newest(*_after(self._items, (rows[is_item], keys[is_item], item[is_item])))
        queries = tuple(column[positive] for column in (rows, keys, user, slices, group))
        queries = _after(self._queries, queries)
        if self._queries:
            lists = [Lists.joined(pair) for pair in zip(self._lists, lists, strict=True)]
        chosen = least(queries[0])
        self._queries, self._lists = tuple(column[chosen] for column in queries), [own[chosen] for own in lists]

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
        rows, wanted, users, slices, group = self._queries
        every = _everyone(rows)
        chosen = torch.isin(rows, every[least(every)])
        lists = {name: own[chosen] for name, own in zip(self._asides, self._lists, strict=True)}
        places = _ranks(wanted[chosen], users[chosen], lists, keys, items)
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
        places: (Q,) float64 ranks from 1, in the order of the queries' rows; beyond `size` of items not listed.
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


def _jagged(part: JaggedTensor) -> tuple[torch.Tensor, torch.Tensor]:
    return part.values(), part.lengths().long()


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


def least(rows: torch.Tensor) -> torch.Tensor:
    """Return the places of the QUERIES row numbers with the least hash: the same rows, however many ranks there are."""
    return mix(rows + 1).argsort()[:QUERIES]


def _ranks(
    keys: torch.Tensor, users: torch.Tensor, lists: Mapping[str, Lists], known: torch.Tensor, items: torch.Tensor
) -> torch.Tensor:
    """Return the rank, from 1, of each query's item; one more than there are items where it is none of them.

    Args:
        keys: (Q,) of the items looked for.
        users: (Q, d), or (Q, K, d) of users with several vectors.
        lists: by `SEEN` and `CANDIDATES`, of the Q queries.
        known: (N,) keys of all items, rising.
        items: (N, d).

    Returns:
        (Q,) float64.
    """
    if not len(known):
        return torch.ones_like(keys, dtype=torch.float64)
    found = [torch.zeros_like(keys[:0], dtype=torch.float64)]
    step = max(_CELLS // (len(known) * users.shape[1:-1].numel()), 1)
    for part in torch.arange(len(keys), device=keys.device).split(step):
        own = {name: of[part].padded(keys[part]) for name, of in lists.items()}
        scores = products.of_all(users[part], items)  # (q, N)
        found.append(places(scores, keys[part], own.get(SEEN), known, own.get(CANDIDATES)))
    return torch.cat(found)


def places(
    scores: torch.Tensor,
    keys: torch.Tensor,
    had: torch.Tensor | None,
    known: torch.Tensor,
    among: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the rank, from 1, of each query's item among items with scores, whatever gave them.

    rank = 1 + items with a greater score + half of the others with the same

    so that scores that are all the same are worth the middle of the list.

    Args:
        scores: (Q, N), one of each item for each query. A nan stands before numbers.
        keys: (Q,) of the items looked for.
        had: (Q, L) keys of items that do not count; those looked for do.
        known: (N,) keys of the items, rising; N > 0.
        among: (Q, C) keys of the only items that count, besides those looked for; by default all do.

    Returns:
        (Q,) float64; N + 1 where an item is none of them.

    Example:
        >>> scores, known = torch.tensor([[3.0, 2.0, 2.0, 2.0, 1.0]]), torch.tensor([10, 11, 12, 13, 14])
        >>> places(scores, torch.tensor([12]), None, known)
        tensor([3.], dtype=torch.float64)
        >>> places(scores, torch.tensor([12]), torch.tensor([[10, 12]]), known)
        tensor([2.], dtype=torch.float64)
        >>> places(scores, torch.tensor([12]), None, known, torch.tensor([[10, 14]]))
        tensor([2.], dtype=torch.float64)
    """
    place = torch.searchsorted(known, keys).clamp(max=len(known) - 1).unsqueeze(1)  # (Q, 1)
    own = scores.gather(1, place)
    counts = torch.ones_like(scores, dtype=torch.bool) if among is None else _marked(among, known)
    if had is not None:
        counts &= ~_marked(had, known)
    counts.scatter_(1, place, False)
    before = (~(scores <= own) & counts).sum(1) + ((scores == own) & counts).sum(1) / 2
    return torch.where(known[place.squeeze(1)] == keys, 1 + before.double(), len(known) + 1)


def _marked(keys: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Return which of (N,) known keys, rising, are in each row of keys (Q, L): (Q, N) booleans."""
    at = torch.searchsorted(known, keys)
    at = torch.where(known[at.clamp(max=len(known) - 1)] == keys, at, len(known))
    marks = torch.zeros(len(keys), len(known) + 1, dtype=torch.bool, device=keys.device)
    return marks.scatter_(1, at, True)[:, :-1]


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
