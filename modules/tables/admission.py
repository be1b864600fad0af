"""Which ids have rows of their own: counted, admitted and evicted between steps, as the data's days or minutes pass.

Ids come in counts: how often the training data look each of them up within one interval. They are taken in this order:

    1. an id that has a row keeps it, and its last use is the interval's time
    2. ids that were last used `expire_days` or longer ago give their rows back
    3. of the others, those whose count, with what was counted before, reaches `threshold` are placed by ascending id:
       in the emptier of their two buckets, its first free slot; where both are full, in the slot of the id that was
       used longest ago, if that is earlier than now and the strategy is last_use; otherwise they are refused
    4. those below it wait with their counts, as many as the table has rows, the longest unused ones forgotten

Placing goes by rounds over blocks of 65,536 ids: in a round every id asks for a slot, and of those that ask for the
same the least id gets it. So rows are a function of what was counted when, and of nothing else: neither of the number
of ranks, nor of who read which rows first.

An id that was evicted is a new one when it comes again. Ids of an evaluation are not counted: it only looks them up.

Terms: admission by a threshold (>=, this interval included) and its counts as in NVIDIA's dynamicemb; expiry in days of
data as Monolith's `expire_time` (Liu et al., 2209.07663), but by the data's time and not the device's.
"""

from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor

from livetrain.configs.schema import Table
from livetrain.modules.tables.ids import EMPTY, IdMap, choices, own_row

MINUTES = 1440  # a day's: time is in whole minutes since 1970
NEVER = -(2**31)  # the last use of a free slot
_BLOCK = 1 << 16
_BITS = torch.tensor([1 << slot for slot in range(8)], dtype=torch.uint8)
_FREE = torch.tensor([8 - taken.bit_count() for taken in range(256)])  # slots of a bucket, by the bits of those taken
_FIRST = torch.tensor([(~taken & (taken + 1)).bit_length() - 1 for taken in range(255)] + [0])  # the first free one


@dataclass
class Told:
    """What became of the ids of some intervals.

    Args:
        admitted: got rows of their own.
        evicted: gave their rows to others.
        expired: gave their rows back.
        refused: found no room.
    """

    admitted: int = 0
    evicted: int = 0
    expired: int = 0
    refused: int = 0

    def add(self, other: "Told") -> None:
        """Add what became of the ids of another interval."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def to_dict(self) -> dict[str, int]:
        """Return plain values."""
        return asdict(self)


class Register:
    """The ids of one table with their last uses, beside the map that the model looks them up in.

    Args:
        table: the recipe's.
        map: the model's; what is admitted is looked up from then on.

    Attributes:
        used: (rows,) int32, last use in minutes since 1970; `NEVER` of rows without an id.
        waiting: (rows,) int64, int32 and int32: ids below the threshold, their counts and last uses, by ascending id
            after free places (`EMPTY`); (0,) where the threshold is 1.
        counted: () int64, the latest interval's time.
        totals: (4,) int64, of `Told`, since the table's beginning.
        changed: (rows,) bool, rows that have another id than when `settled` was called.

    Example:
        >>> import torch
        >>> from livetrain.configs.schema import Table
        >>> table = Table(rows=17, dim=4, hash="table", admission={"threshold": 2})
        >>> register = Register(table, IdMap.of("room", table))
        >>> register.count(torch.tensor([3, 5]), torch.tensor([1, 2]), time=0).admitted
        1
        >>> register.count(torch.tensor([3, 7]), torch.tensor([1, 1]), time=1440).admitted
        1
        >>> register.ids()[0].tolist()
        [3, 5]
    """

    def __init__(self, table: Table, map: IdMap) -> None:
        self.table, self.map = table, map
        self.capacity = 8 * map.buckets
        self.used = torch.full((table.rows,), NEVER, dtype=torch.int32)
        room = table.rows if table.threshold > 1 else 0
        self.waiting = (
            torch.full((room,), EMPTY),
            torch.zeros(room, dtype=torch.int32),
            torch.full((room,), NEVER, dtype=torch.int32),
        )
        self.counted = torch.tensor(NEVER)
        self.totals = torch.zeros(4, dtype=torch.int64)
        self.changed = torch.zeros(table.rows, dtype=torch.bool)

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps besides the map, the tensors themselves."""
        found = {"used": self.used, "counted": self.counted, "totals": self.totals}
        names = ("waiting", "waiting_counts", "waiting_used")
        return found | (dict(zip(names, self.waiting, strict=True)) if len(self.waiting[0]) else {})

    def ids(self) -> tuple[Tensor, Tensor]:
        """Return the ids that have rows, ascending, and their rows."""
        keys = self.map.keys.cpu()
        rows = (keys != EMPTY).nonzero().squeeze(1)
        found, order = keys[rows].sort()
        return found, rows[order]

    def count(self, ids: Tensor, counts: Tensor, time: int) -> Told:
        """Take one interval's ids.

        Args:
            ids: (n,) int64, distinct and ascending.
            counts: (n,) lookups of each.
            time: of the interval, in minutes since 1970; not before the last one's.

        Returns:
            What became of them.
        """
        ids, counts = ids[ids != EMPTY], counts[ids != EMPTY]
        keys = self.map.keys.cpu()  # the map's own memory, but on GPUs
        told = Told()
        rows = torch.cat([self._lookup(keys, part) for part in ids.split(_BLOCK)]) if len(ids) else ids
        has = rows >= 0
        self.used[rows[has]] = self.used[rows[has]].clamp(min=time)
        told.expired = self._expire(keys, time)
        ids, counts = self._add_waiting(ids[~has], counts[~has], time)
        placed, told.evicted = self._place(keys, ids, torch.full((len(ids),), time, dtype=torch.int32))
        told.admitted, told.refused = int(placed.sum()), int((~placed).sum())
        self._keep_waiting(ids[~placed], counts[~placed], time)
        self._end(keys, told)
        self.counted.fill_(time)
        return told

    def take(self, ids: Tensor, used: Tensor) -> Tensor:
        """Place ids that another table had, by ascending id; return the row of each, -1 where there is no room.

        Args:
            ids: (n,) int64, distinct and ascending.
            used: (n,) int32, their last uses.
        """
        keys = self.map.keys.cpu()
        self._place(keys, ids, used)
        rows = torch.cat([self._lookup(keys, part) for part in ids.split(_BLOCK)]) if len(ids) else ids
        self._end(keys, Told())
        return rows

    def wait(self, ids: Tensor, counts: Tensor, used: Tensor) -> None:
        """Let ids wait that waited for another table: (n,) int64, their counts and last uses, int32."""
        there = ids != EMPTY
        if len(self.waiting[0]):
            self._store(ids[there], counts[there], used[there])

    def settled(self) -> Tensor:
        """Return the rows that have another id than when this was called last, or none any more; ascending."""
        rows = self.changed.nonzero().squeeze(1)
        self.changed.zero_()
        return rows

    def _end(self, keys: Tensor, told: Told) -> None:
        self.map.keys.copy_(keys)
        self.totals += torch.tensor(list(told.to_dict().values()))

    def _lookup(self, keys: Tensor, ids: Tensor) -> Tensor:
        """Return each id's row; -1 where it has none."""
        first, second, _ = choices(ids, self.map.buckets, self.map.shards)
        there, row = own_row(ids, first, second, keys[: self.capacity].view(-1, 8))
        return torch.where(there, row, -1)

    def _expire(self, keys: Tensor, time: int) -> int:
        days = self.table.evicts.expire_days
        if days is None:
            return 0
        bound = time - days * MINUTES
        old = ((self.used != NEVER) & (self.used <= bound)).nonzero().squeeze(1)
        keys[old], self.used[old], self.changed[old] = EMPTY, NEVER, True
        if len(self.waiting[0]):
            kept = (self.waiting[0] != EMPTY) & (self.waiting[2] > bound)
            self._store(*(part[kept] for part in self.waiting))
        return len(old)

    def _add_waiting(self, ids: Tensor, counts: Tensor, time: int) -> tuple[Tensor, Tensor]:
        """Return the ids that are to be admitted, with their counts; the others wait."""
        if not len(self.waiting[0]):
            return ids, counts
        there = self.waiting[0] != EMPTY
        before, counted, used = (part[there] for part in self.waiting)
        joined, place = torch.cat([before, ids]).unique(return_inverse=True)
        total = torch.zeros(len(joined), dtype=torch.int64)
        total.index_add_(0, place, torch.cat([counted.long(), counts.long()]))
        last = torch.full((len(joined),), NEVER, dtype=torch.int32)
        last[place[: len(before)]] = used
        last[place[len(before) :]] = time
        due = (total >= self.table.threshold) & (last == time)
        self._store(joined[~due], total[~due].clamp(max=2**31 - 1).int(), last[~due])
        return joined[due], total[due]

    def _keep_waiting(self, ids: Tensor, counts: Tensor, time: int) -> None:
        """Let ids that were refused wait with their counts."""
        if len(self.waiting[0]) and len(ids):
            there = self.waiting[0] != EMPTY
            new = (ids, counts.clamp(max=2**31 - 1).int(), torch.full((len(ids),), time, dtype=torch.int32))
            self._store(*(torch.cat([part[there], more]) for part, more in zip(self.waiting, new, strict=True)))

    def _store(self, ids: Tensor, counts: Tensor, used: Tensor) -> None:
        """Keep what waits: as many as there is room for, those that were used last and counted most."""
        room = len(self.waiting[0])
        if len(ids) > room:
            order = ids.argsort()
            order = order[counts[order].argsort(descending=True, stable=True)]
            order = order[used[order].argsort(descending=True, stable=True)][:room]
            ids, counts, used = ids[order], counts[order], used[order]
        order = ids.argsort()
        free = room - len(order)
        for part, empty, values in zip(self.waiting, (EMPTY, 0, NEVER), (ids, counts, used), strict=True):
            part[:free] = empty
            part[free:] = values[order]

    def _place(self, keys: Tensor, ids: Tensor, used: Tensor) -> tuple[Tensor, int]:
        """Give ids rows; return which of them got one, bool, and how many others lost theirs for it."""
        placed, evicted = torch.zeros(len(ids), dtype=torch.bool), 0
        buckets = self.map.buckets
        taken = ((self.used[: self.capacity] != NEVER).view(-1, 8) * _BITS).sum(1, dtype=torch.uint8)  # a bit per slot
        least = torch.full((buckets,), _BLOCK)  # who asks for a bucket's slot: in a round all ask for the same one
        for start in range(0, len(ids), _BLOCK):
            left = torch.arange(start, min(start + _BLOCK, len(ids)))
            both = torch.stack(choices(ids[left], buckets, self.map.shards)[:2])
            while len(left):
                wanted = self._wanted(both, taken)
                last = self.used[wanted]
                may = last == NEVER
                if self.table.evicts.strategy == "last_use":
                    may |= last < used[left]
                left, both, wanted = left[may], both[:, may], wanted[may]
                bucket, number = wanted >> 3, torch.arange(len(left))
                wins = least.scatter_reduce_(0, bucket, number, "amin")[bucket] == number
                least[bucket] = _BLOCK
                rows, winners = wanted[wins], left[wins]
                evicted += int((self.used[rows] != NEVER).sum())
                keys[rows], self.used[rows], self.changed[rows] = ids[winners], used[winners], True
                taken[bucket[wins]] |= _BITS[rows & 7]
                placed[winners] = True
                left, both = left[~wins], both[:, ~wins]
        return placed, evicted

    def _wanted(self, both: Tensor, taken: Tensor) -> Tensor:
        """Return the row that each id asks for, of those in its buckets (2, n): the first free one of the emptier."""
        slots = taken[both].long()
        emptier = _FREE[slots[1]] > _FREE[slots[0]]
        row = torch.where(emptier, both[1] * 8 + _FIRST[slots[1]], both[0] * 8 + _FIRST[slots[0]])
        full = (slots.amin(0) == 255).nonzero().squeeze(1)
        if len(full) and self.table.evicts.strategy == "last_use":
            used = self.used[: self.capacity].view(-1, 8)[both[:, full]]
            oldest = torch.cat([used[0], used[1]], 1).long() * 16 + torch.arange(16)  # no two are equal
            place = oldest.argmin(1)
            row[full] = both[place >> 3, full] * 8 + (place & 7)
        return row
