"""The ids that one rank looks after, of a table whose ids get rows online: counted, admitted and evicted by the batch.

A table's buckets are cut into shards (see `Table.shards`), and a rank owns a range of these: their keys, and of each id
its last use. Of every global batch it is given the ids of its shards, each once, with the number of its lookups:

    1. an id that has a row keeps it, and the batch is its last use
    2. of the others, those whose count, with what was counted before, reaches `threshold` are placed by ascending id:
       in the emptier of their two buckets, its first free slot; where both are full, in the slot of the id that was
       used longest ago, if not in this batch, and the strategy is last_use; otherwise they are refused
    3. those below it, and those refused where there is a threshold, wait with their counts in as many buckets again, in
       the place of the one that was used longest ago where theirs are full; in the same way

No id's fate depends on another shard's, so rows are a function of the order of global batches, whatever the number of
ranks. A batch costs time by its ids and not by the table's rows; only expiry, once a run or increment, looks at all.

Days pass between runs and increments, and within one all batches have its time: ids that were last used `expire_days`
or longer before it give their rows back as it begins.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from livetrain.configs.schema import Table
from livetrain.modules.tables.admission import MINUTES, NEVER
from livetrain.modules.tables.hashing import mix
from livetrain.modules.tables.ids import EMPTY, IdMap, choices, own_row, shard_of

_SLOTS = 8
TOLD = 5  # what `Owner.take` counts


class Slots:
    """Buckets of 8 places for ids; all tensors of a batch are (N,), or (2, N) of the buckets that ids may lie in.

    Args:
        keys: (8 b,) int64, `EMPTY` of free places.
        used: (8 b,) int32, last use in minutes since 1970, `NEVER` of free places.
        last: (8 b,) int32, last use in batches.
    """

    def __init__(self, keys: Tensor, used: Tensor, last: Tensor) -> None:
        self.keys, self.used, self.last = keys, used, last

    def find(self, ids: Tensor, both: Tensor) -> Tensor:
        """Return the place of every id, -1 where it has none."""
        if not len(self.keys):
            return torch.full_like(ids, -1)
        there, place = own_row(ids, both[0], both[1], self.keys.view(-1, _SLOTS))
        return torch.where(there, place, -1)

    def touch(self, places: Tensor, batch: int | Tensor, time: int | Tensor) -> None:
        """Note a use of the ids at some places."""
        self.last[places], self.used[places] = batch, time

    def free(self, places: Tensor) -> None:
        """Let ids go."""
        self.keys[places], self.used[places], self.last[places] = EMPTY, NEVER, NEVER

    def place(self, ids: Tensor, both: Tensor, batches: Tensor, evicts: bool) -> tuple[Tensor, int]:
        """Give places to ids that have none, each of them once and in ascending order.

        Args:
            ids, both: as above.
            batches: int32, the use of each id.
            evicts: whether one that was used earlier makes room.

        Returns:
            Each id's place, -1 where there was none, and how many others lost theirs for it.
        """
        found, evicted = torch.full_like(ids, -1), 0
        left = torch.arange(len(ids), device=ids.device)
        while len(left):
            wanted, full = self._wanted(both)
            may = ~full
            if evicts:
                may |= self.last[wanted] < batches[left]
            left, both, wanted = left[may], both[:, may], wanted[may]
            wins = _first_of_each(wanted >> 3)  # in a round all that ask a bucket ask for the same place
            places, winners = wanted[wins], left[wins]
            evicted += int((self.keys[places] != EMPTY).sum())
            self.keys[places], self.last[places] = ids[winners], batches[winners]
            found[winners] = places
            left, both = left[~wins], both[:, ~wins]
        return found, evicted

    def _wanted(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """Return the place that each id asks for, and whether its buckets are full."""
        free = self.keys.view(-1, _SLOTS)[both] == EMPTY  # (2, N, 8)
        count = free.sum(2)
        second = (count[1] > count[0]).long()
        which = torch.arange(len(second), device=both.device)
        wanted = both[second, which] * _SLOTS + free[second, which].to(torch.uint8).argmax(1)
        full = count.amax(0) == 0
        if len(at := full.nonzero().squeeze(1)):
            used = self.last.view(-1, _SLOTS)[both[:, at]].long()
            order = torch.cat([used[0], used[1]], 1) * 16 + torch.arange(16, device=both.device)  # no two are equal
            oldest = order.argmin(1)
            wanted[at] = both[oldest >> 3, at] * _SLOTS + (oldest & 7)
        return wanted, full


def _first_of_each(values: Tensor) -> Tensor:
    """Return which entries (N,) are the first of their value, bool."""
    order = values.argsort(stable=True)
    found = values[order]
    first = torch.ones(len(values), dtype=torch.bool, device=values.device)
    first[1:] = found[1:] != found[:-1]
    return torch.empty_like(first).scatter_(0, order, first)


def held(table: Table, world: int) -> list[range]:
    """Return the rows that each of `world` ranks has the keys of; empty where there are more ranks than shards.

    Example:
        >>> table = Table(rows=40, dim=4, hash="table", assign="online", shared=7)
        >>> held(table, 2), held(table, 3)
        ([range(0, 16), range(16, 40)], [range(0, 16), range(16, 40), range(0, 0)])
    """
    each = _SLOTS * table.buckets // table.shards
    found = []
    for rank in range(world):
        start, stop = (-(-part * table.shards // world) for part in (rank, rank + 1))
        rows = range(each * start, each * stop if stop < table.shards else table.rows)
        found.append(rows if stop > start else range(0))
    return found


class Owner:
    """A rank's part of one table's ids.

    Args:
        table: the recipe's.
        map: the model's; its keys become those of this part.
        rank: this one.
        world: the number of ranks.
        device: where all of it lies.

    Attributes:
        rows: those that this part has the keys of: of its shards, and the last shard's owner has the shared ones.
        counted: () int64, the time of the last run or increment, in minutes since 1970.
        batches: () int64, those counted since the table's beginning.
        ahead: () int64, in a checkpoint how many of them are not trained on yet; see trainers.train.online.
        totals: (4,) int64, admitted, evicted, expired and refused on all ranks.
        held: (2,) int64, ids that have rows and ids that wait, on all ranks.

    Example:
        >>> import torch
        >>> table = Table(rows=17, dim=4, hash="table", assign="online", admission={"threshold": 2})
        >>> owner = Owner(table, IdMap.of("room", table))
        >>> rows, told = owner.take(torch.tensor([3, 5]), torch.tensor([1, 2]), time=0)
        >>> (rows < 16).tolist(), told
        ([False, True], [1, 0, 0, 0, 1])
        >>> bool(owner.take(torch.tensor([3]), torch.tensor([1]), time=0)[0] < 16)
        True
        >>> [part.tolist() for part in owner.changed()]
        [[0, 8], [5, 3]]
    """

    def __init__(
        self, table: Table, map: IdMap, rank: int = 0, world: int = 1, device: torch.device | str = "cpu"
    ) -> None:
        self.table, self.world, self.device = table, world, torch.device(device)
        self.buckets, self.shards, self.capacity = map.buckets, map.shards, _SLOTS * map.buckets
        self.rows = held(table, world)[rank]
        many = len(self.rows)
        own = min(many, max(self.capacity - self.rows.start, 0))

        def filled(value: int, dtype: torch.dtype = torch.int32, size: int = many) -> Tensor:
            return torch.full((size,), value, dtype=dtype, device=self.device)

        map.keys = self.keys = filled(EMPTY, torch.int64)
        self._parts = {"used": filled(NEVER), "last": filled(NEVER)}
        self._own = Slots(*(part[:own] for part in (self.keys, *self._parts.values())))
        self._waiting: Slots | None = None
        if table.threshold > 1:
            waiting = {
                "waiting": filled(EMPTY, torch.int64),
                "waiting_used": filled(NEVER),
                "waiting_last": filled(NEVER),
            }
            self._waiting = Slots(*(part[:own] for part in waiting.values()))
            self._parts |= waiting | {"waiting_counts": filled(0)}
        self.counted, self.batches, self.ahead = torch.tensor(NEVER), torch.tensor(0), torch.tensor(0)
        self.totals, self.held = torch.zeros(4, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
        self._changed: list[tuple[Tensor, Tensor]] = []

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return what a checkpoint keeps besides the keys: by rows, of this part, and what all ranks have alike."""
        alike = ("counted", "batches", "ahead", "totals", "held")
        return dict(self._parts), {name: getattr(self, name) for name in alike}

    def rank_of(self, ids: Tensor) -> Tensor:
        """Return the rank that owns each id, (N,) int64."""
        if self.world == 1:
            return torch.zeros_like(ids)
        return shard_of(mix(ids), self.shards) * self.world // self.shards

    def find(self, ids: Tensor) -> Tensor:
        """Return the rows of ids (N,) of this part, in the whole table; nothing is counted."""
        both, shared = self._places(ids)
        found = self._own.find(ids, both)
        return torch.where(found >= 0, found + self.rows.start, shared)

    def take(self, ids: Tensor, counts: Tensor, time: int) -> tuple[Tensor, list[int]]:
        """Count the ids of a global batch, and give rows to those that are due.

        Args:
            ids: (N,) int64 of this part, distinct and ascending.
            counts: (N,) int64, lookups of each in the batch.
            time: of the run or increment, in minutes since 1970.

        Returns:
            Their rows in the whole table, (N,) int64, and how many were admitted, evicted, expired (none) and refused,
            and how many more wait than before.
        """
        self.batches += 1
        batch = int(self.batches)
        both, shared = self._places(ids)
        found = self._own.find(ids, both)
        self._own.touch(found[found >= 0], batch, time)
        new = ((found < 0) & (ids != EMPTY)).nonzero().squeeze(1)
        if not len(new):
            return torch.where(found >= 0, found + self.rows.start, shared), [0] * TOLD
        got, told = self._admit(ids[new], both[:, new], counts[new], batch, time)
        found[new] = got
        return torch.where(found >= 0, found + self.rows.start, shared), told

    def expire(self, time: int) -> list[int]:
        """Take the rows back of ids that were last used `expire_days` or longer ago; return what `take` tells."""
        days, told = self.table.evicts.expire_days, [0] * TOLD
        if days is None:
            return told
        for slots, place in ((self._own, 2), (self._waiting, 4)):
            if slots is None:
                continue
            old = ((slots.used != NEVER) & (slots.used <= time - days * MINUTES)).nonzero().squeeze(1)
            slots.free(old)
            told[place] = len(old) if place == 2 else -len(old)
            if place == 2 and len(old):
                self._changed.append((old + self.rows.start, torch.full_like(old, EMPTY)))
        return told

    def changed(self) -> tuple[Tensor, Tensor]:
        """Return the rows that have changed hands since this was called last, and their ids now: (n,) int64 each."""
        none = torch.zeros(0, dtype=torch.int64, device=self.device)
        rows, ids = zip((none, none), *self._changed, strict=True)
        self._changed.clear()
        return torch.cat(rows), torch.cat(ids)

    def tell(self, told: list[int]) -> None:
        """Add what became of ids on all ranks, see `take`."""
        if any(told):
            self.totals += torch.tensor(told[:4])
            self.held += torch.tensor([told[0] - told[1] - told[2], told[4]])

    def begin_with(self, ids: Tensor, used: Tensor, waiting: Mapping[str, Tensor]) -> Tensor:
        """Give rows to ids that another table had; those that were used last stay. Of a whole table, on one rank.

        Args:
            ids: (n,) int64, distinct and ascending.
            used: (n,) int32, their last uses in minutes.
            waiting: `waiting`, `waiting_counts` and `waiting_used` of that table, if it had them.

        Returns:
            Each id's row, -1 where there is no room.
        """
        both, _ = self._places(ids)
        self._own.place(ids, both, used, evicts=True)
        rows = self._own.find(ids, both)
        self._own.used[rows[rows >= 0]] = used[rows >= 0]
        if self._waiting is not None and "waiting" in waiting:
            order = waiting["waiting"].argsort()
            order = order[waiting["waiting"][order] != EMPTY]
            ids, last = waiting["waiting"][order], waiting["waiting_used"][order]
            both, _ = self._places(ids)
            self._waiting.place(ids, both, last, evicts=True)
            at = self._waiting.find(ids, both)
            self._waiting.used[at[at >= 0]] = last[at >= 0]
            self._parts["waiting_counts"][at[at >= 0]] = waiting["waiting_counts"][order][at >= 0]
        # Batches go on from the last minute: so these ids make room for newer ones, the oldest of them first.
        latest = max([int(part.max()) for name, part in self._parts.items() if name.endswith("last")])
        self.batches.fill_(max(latest, 0))
        held = [int((keys != EMPTY).sum()) for keys in (self.keys, self._parts.get("waiting", self.keys[:0]))]
        self.held.copy_(torch.tensor(held))
        return rows

    def copy_of(self, whole: "Owner") -> None:
        """Take this part of a table that another owner has whole."""
        parts, alike = self.state()
        all_parts, all_alike = whole.state()
        for name, part in (parts | {"keys": self.keys}).items():
            part.copy_((all_parts | {"keys": whole.keys})[name][self.rows.start : self.rows.stop])
        for name, value in alike.items():
            value.copy_(all_alike[name])

    def _places(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the buckets that ids may lie in, (2, N) within this part, and the rows that they share otherwise."""
        first, second, spread = choices(ids, self.buckets, self.shards)
        shared = self.capacity + spread.remainder(self.table.rows - self.capacity)
        return torch.stack([first, second]) - self.rows.start // _SLOTS, shared

    def _admit(self, ids: Tensor, both: Tensor, counts: Tensor, batch: int, time: int) -> tuple[Tensor, list[int]]:
        """Return the places of ids that had none, -1 where they get none, and what `take` tells."""
        stamps = torch.full((len(ids),), batch, dtype=torch.int32, device=ids.device)
        evicts, waiting = self.table.evicts.strategy == "last_use", self._waiting
        if waiting is None:
            got, evicted = self._own.place(ids, both, stamps, evicts)
            refused, waits = int((got < 0).sum()), 0
        else:
            at, kept = waiting.find(ids, both), self._parts["waiting_counts"]
            total = counts + torch.where(at >= 0, kept[at.clamp(min=0)], 0) if len(kept) else counts
            total = total.clamp(max=2**31 - 1).int()
            due = (total >= self.table.threshold).nonzero().squeeze(1)
            got = torch.full_like(ids, -1)
            got[due], evicted = self._own.place(ids[due], both[:, due], stamps[due], evicts)
            refused = int((got[due] < 0).sum())
            left = at[(got >= 0) & (at >= 0)]
            waiting.free(left)
            known = (got < 0) & (at >= 0)
            waiting.touch(at[known], batch, time)
            kept[at[known]] = total[known]
            new = ((got < 0) & (at < 0)).nonzero().squeeze(1)
            places, forgotten = waiting.place(ids[new], both[:, new], stamps[new], evicts=True)
            new, places = new[places >= 0], places[places >= 0]
            waiting.touch(places, batch, time)
            kept[places] = total[new]
            waits = len(places) - forgotten - len(left)
        placed = got >= 0
        if len(rows := got[placed]):
            self._own.touch(rows, batch, time)
            self._changed.append((rows + self.rows.start, ids[placed]))
        return got, [len(rows), evicted, 0, refused, waits]
