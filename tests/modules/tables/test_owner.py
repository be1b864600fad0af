"""Ids that get rows online, against dictionaries, and cut over owners as by one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from livetrain.configs.schema import Table
from livetrain.modules.tables.admission import MINUTES
from livetrain.modules.tables.hashing import mix
from livetrain.modules.tables.ids import EMPTY, IdMap, choices, shard_of
from livetrain.modules.tables.owner import Owner, held

IDS = st.one_of(st.integers(0, 60), st.integers(-(2**63), 2**63 - 1))
BATCH = st.dictionaries(IDS, st.integers(1, 3), max_size=40)
SETTINGS = st.fixed_dictionaries(
    {"rows": st.sampled_from([17, 40, 73, 160]), "shared": st.integers(1, 8)},
    optional={
        "admission": st.fixed_dictionaries({"threshold": st.integers(1, 4)}),
        "eviction": st.sampled_from(
            [{"strategy": "none"}, {"strategy": "last_use"}, {"strategy": "last_use", "expire_days": 2}]
        ),
    },
)


class Places:
    """Buckets of eight places as a dictionary: place -> [id, batch, day, count]."""

    def __init__(self, table: Table) -> None:
        self.table, self.at = table, {}

    def of(self, id_: int) -> int | None:
        return next((place for place, entry in self.at.items() if entry[0] == id_), None)

    def place(self, ids: list[int], batch: int, day: int, evicts: bool) -> tuple[dict[int, int], int]:
        got, evicted, left = {}, 0, sorted(ids)
        buckets = {
            id_: [int(part) for part in choices(torch.tensor([id_]), self.table.buckets, self.table.shards)[:2]]
            for id_ in left
        }
        while left:
            asked: dict[int, int] = {}
            again = []
            for id_ in left:
                free = [[p for p in range(8 * b, 8 * b + 8) if p not in self.at] for b in buckets[id_]]
                first = max(free, key=len)
                if first:
                    wanted = first[0]
                else:
                    all_places = [p for b in buckets[id_] for p in range(8 * b, 8 * b + 8)]
                    wanted = min(all_places, key=lambda place: self.at[place][1])
                    if not evicts or self.at[wanted][1] >= batch:
                        continue
                if wanted in asked.values():
                    again.append(id_)
                else:
                    asked[id_] = wanted
            for id_, place in asked.items():
                evicted += place in self.at
                self.at[place] = [id_, batch, day, 0]
                got[id_] = place
            left = again
        return got, evicted


class Twin:
    """What modules.tables.owner says, id by id."""

    def __init__(self, table: Table) -> None:
        self.table, self.own, self.waiting, self.batch = table, Places(table), Places(table), 0

    def take(self, lookups: dict[int, int], day: int) -> None:
        self.batch += 1
        due, waits, table = [], [], self.table
        for id_, count in sorted(lookups.items()):
            if id_ == EMPTY:
                continue
            if (place := self.own.of(id_)) is not None:
                self.own.at[place][1:3] = self.batch, day
                continue
            known = self.waiting.of(id_)
            total = count + (self.waiting.at[known][3] if known is not None else 0)
            (due if total >= table.threshold else waits).append((id_, total))
        got, _ = self.own.place([i for i, _ in due], self.batch, day, table.evicts.strategy == "last_use")
        if table.threshold == 1:
            return
        for id_ in got:
            if (place := self.waiting.of(id_)) is not None:
                del self.waiting.at[place]
        left = dict(sorted(waits + [(i, n) for i, n in due if i not in got]))
        new = [id_ for id_ in left if self.waiting.of(id_) is None]
        for id_ in left.keys() - set(new):
            self.waiting.at[self.waiting.of(id_)][1:] = self.batch, day, left[id_]
        for id_, place in self.waiting.place(new, self.batch, day, True)[0].items():
            self.waiting.at[place][3] = left[id_]

    def expire(self, day: int) -> None:
        if (days := self.table.evicts.expire_days) is not None:
            for places in (self.own, self.waiting):
                places.at = {p: entry for p, entry in places.at.items() if entry[2] > day - days * MINUTES}


def owners(table: Table, world: int) -> list[Owner]:
    return [Owner(table, IdMap.of("room", table), rank, world) for rank in range(world)]


def feed(parts: list[Owner], lookups: dict[int, int], day: int) -> dict[int, int]:
    """Take a batch; return the row of every id."""
    ids = torch.tensor(sorted(lookups), dtype=torch.int64)
    counts = torch.tensor([lookups[id_] for id_ in ids.tolist()], dtype=torch.int64)
    of, found, told = parts[0].rank_of(ids), {}, []
    for rank, part in enumerate(parts):
        rows, one = part.take(ids[of == rank], counts[of == rank], day)
        told.append(one)
        found |= zip(ids[of == rank].tolist(), rows.tolist(), strict=True)
        assert torch.equal(part.find(ids[of == rank]), rows)
    for part in parts:
        for one in told:
            part.tell(one)
    return found


def whole(parts: list[Owner], name: str) -> list[int]:
    return torch.cat([part.keys if name == "keys" else part.state()[0][name] for part in parts]).tolist()


@given(SETTINGS, st.lists(st.tuples(BATCH, st.integers(0, 2)), min_size=1, max_size=6))
def test_it_is_what_dictionaries_say_whoever_owns_ids(settings, batches):
    table = Table(dim=4, hash="table", assign="online", **settings)
    twin, all_of, day = Twin(table), [owners(table, world) for world in (1, 2, 4)], 0
    map_ = IdMap.of("room", table)
    before: dict[int, int] = {}
    for lookups, later in batches:
        if later:
            day += later * MINUTES
            twin.expire(day)
            for parts in all_of:
                told = [part.expire(day) for part in parts]
                for part in parts:
                    for one in told:
                        part.tell(one)
        twin.take(lookups, day)
        found = [feed(parts, lookups, day) for parts in all_of]
        assert found[0] == found[1] == found[2]
        for parts in all_of:
            keys, used, last = (whole(parts, name) for name in ("keys", "used", "last"))
            assert {p: [k, last[p], used[p]] for p, k in enumerate(keys) if k != EMPTY} == {
                p: entry[:3] for p, entry in twin.own.at.items()
            }
            if table.threshold > 1:
                names = ("waiting", "waiting_last", "waiting_used", "waiting_counts")
                kept = zip(*(whole(parts, name) for name in names), strict=True)
                assert {p: [*entry] for p, entry in enumerate(kept) if entry[0] != EMPTY} == twin.waiting.at
            assert parts[-1].held.tolist() == [len(twin.own.at), len(twin.waiting.at)]
            admitted, evicted, expired, _ = parts[0].totals.tolist()
            assert admitted - evicted - expired == len(twin.own.at)
            changed = [part.changed() for part in parts]
            moved = {r: i for rows, ids in changed for r, i in zip(rows.tolist(), ids.tolist(), strict=True)}
            own = {p: entry[0] for p, entry in twin.own.at.items()}
            assert {r for r in before.keys() | own.keys() if before.get(r) != own.get(r)} <= moved.keys()
        before = own
        map_.keys = all_of[0][0].keys  # the file that is exported has this very map
        rows = map_(torch.tensor([*found[0]], dtype=torch.int64)).tolist()
        assert rows == [*found[0].values()]


@given(SETTINGS, st.lists(BATCH, min_size=1, max_size=3), SETTINGS)
def test_ids_come_along_to_another_layout(settings, batches, others):
    one = Owner(table := Table(dim=4, hash="table", assign="online", **settings), IdMap.of("room", table))
    for day, lookups in enumerate(batches):
        feed([one], lookups, day * MINUTES)
    state = one.state()[0]
    there = (one.keys != EMPTY).nonzero().squeeze(1)
    there = there[one.keys[there].argsort()]
    other = Table(dim=4, hash="table", assign="online", **others)
    whole_one = Owner(other, IdMap.of("room", other))
    rows = whole_one.begin_with(one.keys[there], state["used"][there], state)
    assert whole_one.keys[rows[rows >= 0]].tolist() == one.keys[there][rows >= 0].tolist()
    if len(there) <= 8:  # however they are spread, sixteen places hold them
        assert bool((rows >= 0).all())
    parts = owners(other, 2)
    for part in parts:
        part.copy_of(whole_one)
    more = {id_: 1 for id_ in range(100, 110)}
    assert feed([whole_one], more, 9 * MINUTES) == feed(parts, more, 9 * MINUTES)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8, 40])
@pytest.mark.parametrize("rows", [9, 40, 1000, 4097])
def test_every_row_is_owned_once_and_by_the_owner_of_its_ids(world, rows):
    table = Table(rows=rows, dim=4, hash="table", assign="online")
    parts = held(table, world)
    assert sorted(row for part in parts for row in part) == list(range(rows))
    assert table.shards**2 <= max((rows - max(rows // 16, 1)) // 8, 1) < 4 * table.shards**2
    ids = torch.arange(-500, 500)
    first, second, _ = choices(ids, table.buckets, table.shards)
    shard = shard_of(mix(ids), table.shards)
    for bucket in (first, second):
        assert torch.equal(bucket // (table.buckets // table.shards), shard)
    owner = Owner(table, IdMap.of("room", table), 0, world).rank_of(ids).tolist()
    assert all(8 * b in parts[rank] for b, rank in zip(first.tolist(), owner, strict=True))
    assert world > 4 or len(set(owner)) == min(world, table.shards)


class Waits(TorchDispatchMode):
    """Counts what a host would wait for a GPU for: values, and sizes that values decide."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("threshold", [1, 2])
def test_a_batch_waits_for_a_gpu_as_often_however_many_ids_it_has(threshold):
    table = Table(rows=20_000, dim=4, hash="table", assign="online", admission={"threshold": threshold})
    counts = []
    for many in (50, 5_000):
        owner = Owner(table, IdMap.of("room", table))
        ids = torch.arange(many)
        for lookups in (threshold, 1):  # new, and known
            with Waits() as waits:
                owner.take(ids, torch.full_like(ids, lookups), 0)
            counts.append(waits.count)
    assert counts[1] == counts[3] < 6
    assert counts[2] - counts[0] < 8 * 12  # a round for each id that asks for the same bucket, and these are eight
