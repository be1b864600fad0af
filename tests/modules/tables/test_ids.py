"""Ids with rows of their own: the map and its register against dictionaries, and against what the table must keep."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from livetrain.configs.schema import Table
from livetrain.modules.tables import admission, mapped
from livetrain.modules.tables.admission import MINUTES, NEVER, Register
from livetrain.modules.tables.ids import EMPTY, IdMap, choices
from livetrain.modules.tables.initial import Initial

IDS = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 40)
INTERVAL = st.dictionaries(IDS, st.integers(1, 3), max_size=60)
SETTINGS = st.fixed_dictionaries(
    {
        "rows": st.integers(9, 60),
        "admission": st.none() | st.fixed_dictionaries({"threshold": st.integers(1, 4)}),
        "eviction": st.none()
        | st.just({"strategy": "none"})
        | st.fixed_dictionaries({"expire_days": st.integers(1, 3)}),
    }
)


class Twin:
    """The same rules on dictionaries, an id at a time."""

    def __init__(self, table: Table) -> None:
        self.table, self.slots, self.waiting = table, {}, {}  # row -> (id, last use); id -> (count, last use)

    def rows(self, id_: int) -> list[list[int]]:
        first, second, _ = choices(torch.tensor([id_]), self.table.buckets)
        return [[8 * int(bucket) + slot for slot in range(8)] for bucket in (first, second)]

    def where(self, id_: int) -> int | None:
        return next((row for row in sum(self.rows(id_), []) if self.slots.get(row, (None,))[0] == id_), None)

    def wish(self, id_: int) -> int:
        buckets = self.rows(id_)
        free = [[row for row in bucket if row not in self.slots] for bucket in buckets]
        if len(free[1]) > len(free[0]):
            buckets, free = buckets[::-1], free[::-1]
        if free[0]:
            return free[0][0]
        return min(sum(buckets, []), key=lambda row: self.slots[row][1])

    def place(self, ids: list[int], time: int) -> set[int]:
        left, placed = sorted(ids), set()
        while left:
            wishes: dict[int, int] = {}
            refused = set()
            for id_ in left:
                row = self.wish(id_)
                full = row in self.slots
                if full and (self.table.evicts.strategy == "none" or self.slots[row][1] >= time):
                    refused.add(id_)
                elif row not in wishes:
                    wishes[row] = id_
            for row, id_ in wishes.items():
                self.slots[row] = (id_, time)
            placed |= set(wishes.values())
            left = [id_ for id_ in left if id_ not in refused and id_ not in placed]
        return placed

    def count(self, lookups: dict[int, int], time: int) -> None:
        lookups = {id_: n for id_, n in lookups.items() if id_ != EMPTY}
        known = {id_: row for id_ in lookups if (row := self.where(id_)) is not None}
        for id_, row in known.items():
            self.slots[row] = (id_, max(time, self.slots[row][1]))
        if (days := self.table.evicts.expire_days) is not None:
            bound = time - days * MINUTES
            self.slots = {row: each for row, each in self.slots.items() if each[1] > bound}
            self.waiting = {id_: each for id_, each in self.waiting.items() if each[1] > bound}
        new = {id_: n + self.waiting.pop(id_, (0,))[0] for id_, n in lookups.items() if id_ not in known}
        due = [id_ for id_, n in new.items() if n >= self.table.threshold]
        placed = self.place(due, time)
        if self.table.threshold > 1:
            # Those below the threshold are cut to the room before those that were refused come to them.
            self.waiting |= {id_: (n, time) for id_, n in new.items() if id_ not in due}
            self.cut()
            self.waiting |= {id_: (new[id_], time) for id_ in due if id_ not in placed}
            self.cut()

    def cut(self) -> None:
        order = sorted(self.waiting, key=lambda id_: (-self.waiting[id_][1], -self.waiting[id_][0], id_))
        self.waiting = {id_: self.waiting[id_] for id_ in order[: self.table.rows]}


def register_of(table: Table) -> Register:
    return Register(table, IdMap.of("room", table))


def feed(register: Register, lookups: dict[int, int], time: int):
    ids = sorted(lookups)
    return register.count(torch.tensor(ids, dtype=torch.int64), torch.tensor([lookups[i] for i in ids]).long(), time)


@given(SETTINGS, st.lists(INTERVAL, min_size=1, max_size=5))
def test_it_is_what_dictionaries_say(settings, intervals):
    table = Table(dim=4, hash="table", **settings)
    register, twin = register_of(table), Twin(table)
    for day, lookups in enumerate(intervals):
        feed(register, lookups, day * MINUTES)
        twin.count(lookups, day * MINUTES)
        kept = {
            row: (key, int(register.used[row])) for row, key in enumerate(register.map.keys.tolist()) if key != EMPTY
        }
        assert kept == twin.slots
        ids, counts, used = (part.tolist() for part in register.waiting)
        waits = {i: (n, t) for i, n, t in zip(ids, counts, used, strict=True) if i != EMPTY}
        assert waits == twin.waiting
        asked = torch.tensor([*lookups, 5, EMPTY, 2**63 - 1], dtype=torch.int64)
        rows = register.map(asked)
        for id_, row in zip(asked.tolist(), rows.tolist(), strict=True):
            own = twin.where(id_) if id_ != EMPTY else None
            assert row == own if own is not None else row >= register.capacity
    assert torch.equal(torch.jit.script(register.map)(asked), rows)


@given(SETTINGS, st.lists(INTERVAL, min_size=2, max_size=4))
def test_what_it_was_told_adds_up(settings, intervals):
    register = register_of(Table(dim=4, hash="table", **settings))
    before = torch.full_like(register.map.keys, EMPTY)
    for day, lookups in enumerate(intervals):
        feed(register, lookups, day * MINUTES)
        changed = register.settled()
        assert set((register.map.keys != before).nonzero().flatten().tolist()) <= set(changed.tolist())
        before = register.map.keys.clone()
        admitted, evicted, expired, _ = register.totals.tolist()
        held = int((before != EMPTY).sum())
        assert admitted - evicted - expired == held == int((register.used != NEVER).sum())
        assert held <= register.capacity
    assert not len(register.settled())


def test_a_map_fills_to_nine_tenths_and_blocks_are_one_after_another(monkeypatch):
    table = Table(rows=8_600, dim=4, hash="table", shared=600)
    ids = torch.randint(-(2**62), 2**62, (7_200,), generator=torch.Generator().manual_seed(1)).unique()
    monkeypatch.setattr(admission, "_BLOCK", 512)
    register = register_of(table)
    told = register.count(ids, torch.ones(len(ids)), 0)
    assert told.refused < 0.02 * len(ids)
    halves = register_of(table)
    halves.count(ids[:3584], torch.ones(3584), 0)  # a multiple of the block
    halves.count(ids[3584:], torch.ones(len(ids) - 3584), 0)
    assert torch.equal(halves.map.keys, register.map.keys)


def test_it_admits_at_the_threshold_and_forgets_what_was_evicted():
    table = Table(rows=9, dim=4, hash="table", admission={"threshold": 3}, eviction={"expire_days": 2})
    register = register_of(table)
    assert feed(register, {7: 2}, 0).admitted == 0
    assert feed(register, {7: 1}, MINUTES).admitted == 1
    assert feed(register, {8: 1}, 3 * MINUTES).expired == 1
    assert feed(register, {7: 2}, 4 * MINUTES).admitted == 0  # counted from 0
    assert feed(register, {i: 3 for i in range(8)}, 5 * MINUTES).to_dict() == dict(
        admitted=8, evicted=0, expired=0, refused=0
    )
    assert feed(register, {9: 3}, 5 * MINUTES).refused == 1  # nothing is older
    assert feed(register, {9: 1}, 6 * MINUTES).to_dict() == dict(admitted=1, evicted=1, expired=0, refused=0)
    assert 0 not in register.ids()[0].tolist()  # of those of equal age the one in the first row gives way


def test_the_map_and_the_register_travel():
    table = Table(rows=40, dim=4, hash="table", admission={"threshold": 2})
    register, other = register_of(table), register_of(table)
    for day in range(4):
        feed(register, {i: 1 + i % 2 for i in range(day, day + 30)}, day * MINUTES)
    other.map.keys.copy_(register.map.keys)
    for own, theirs in zip(other.state().values(), register.state().values(), strict=True):
        own.copy_(theirs)
    more = {i: 2 for i in range(20, 60)}
    assert feed(register, more, 9 * MINUTES) == feed(other, more, 9 * MINUTES)
    assert torch.equal(register.map.keys, other.map.keys)
    assert all(torch.equal(a, b) for a, b in zip(register.state().values(), other.state().values(), strict=True))


def test_a_larger_table_takes_all_ids():
    small, large = (register_of(Table(rows=rows, dim=4, hash="table")) for rows in (100, 300))
    feed(small, {i: 1 for i in range(70)}, 5)
    ids, rows = small.ids()
    here = large.take(ids, small.used[rows])
    assert torch.equal(large.map(ids), here)
    assert torch.equal(large.used[here], small.used[rows])


def test_first_values_are_of_the_id():
    begins = Initial(seed=1, table="room", dim=8, std=0.5)
    ids = torch.arange(20_000)
    values = begins.of_ids(ids, range(8))
    assert values.mean().abs() < 0.01
    assert abs(float(values.std()) - 0.5) < 0.01
    assert torch.equal(begins.of_ids(ids[5:9], range(2, 6)), values[5:9, 2:6])
    for other in (Initial(2, "room", 8, 0.5), Initial(1, "user", 8, 0.5)):
        assert not torch.isclose(other.of_ids(ids, range(8)), values).all(1).any()
    flat = torch.corrcoef(values.T) - torch.eye(8)
    assert flat.abs().max() < 0.03
    assert float((values.abs() > 1.0).float().mean()) == pytest.approx(0.0455, abs=0.003)


def test_a_map_is_attached(tmp_path):
    map = IdMap("room", 24, 2)
    map.keys[:16] = torch.arange(16)
    files = mapped.Files(tmp_path)
    placed = map.placed(files.room)
    ids = torch.arange(-3, 20)
    assert torch.equal(placed(ids), map(ids))
    found = mapped.opened(tmp_path, files.index)
    placed.keys = placed.keys[:0]
    with pytest.raises(ValueError, match=r"'room.keys' lie in a file of their own"):
        placed(ids)
    with pytest.raises(ValueError, match=r"'room.keys' is missing"):
        placed.attach({})
    with pytest.raises(ValueError, match=r"'room.keys' is another table: \[23, 1\]"):
        placed.attach({"room.keys": found["room.keys"][1:]})
    placed.attach(found)
    assert torch.equal(placed(ids), map(ids))
    assert map.placed(mapped.in_memory) is map
