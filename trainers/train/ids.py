"""Tables whose rows belong to ids (`hash: table`): the ids of the training data are counted before a run's first step,
admitted and evicted, and the rows that have changed hands begin anew.

A partition, a day of the data, is taken after the other in their order. The night after goes on: what an earlier run
has counted it counts no more. Every rank has the map and works the same out of the same counts, which rank 0 reads and
hands on: so the map is the same for any number of ranks, and no step exchanges more than it did.
"""

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

from livetrain.configs.schema import Recipe
from livetrain.modules.tables.admission import MINUTES, NEVER, Register, Told
from livetrain.modules.tables.ids import EMPTY
from livetrain.modules.tables.owner import Owner
from livetrain.trainers.data.read.sights import Sights, admitted, minute_of
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.spread import HERE, Looking
from livetrain.trainers.data.read.statistics import by_partition
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train.sharding import Sharded

Interval = tuple[int | None, dict[str, Sights]]  # when it began, in minutes since 1970, and lookups by table


def intervals(source: Source, recipe: Recipe, looking: Looking = HERE) -> Iterator[Interval]:
    """Yield the lookups of every partition of a split, as kept beside it or counted now.

    Args:
        source: the split.
        recipe: names the tables.
        looking: how what is not kept is counted.
    """
    asked = admitted(recipe)
    if not asked:
        return
    for part, found in by_partition(source, asked, recipe.data.on_corrupt == "skip", looking):
        yield minute_of(part), found


def prepare(source: Source, recipe: Recipe, looking: Looking) -> None:
    """Have every partition's lookups counted and kept, before there are ranks that would wait for it."""
    for _ in intervals(source, recipe, looking):
        pass


def assign(sharded: Sharded, recipe: Recipe, source: Source, time: int | None = None) -> dict[str, Told]:
    """Count the ids of a split, and give the tables' rows to those that are admitted. Collective.

    Tables whose ids get rows online are told the time alone, that of the split's last partition. No batch may be on its
    way through the pipeline: its ids were looked up before. Partitions up to the last one that was counted are left
    out. A split without days counts as one day more.

    Args:
        sharded: its registers, maps and rows are changed.
        recipe: the run.
        source: the split.
        time: of all of it, in minutes since 1970, where it comes once and not before what was counted: an increment.

    Returns:
        What became of the ids, by table.
    """
    if sharded.online.owners:
        sharded.online.pass_to(_time_of(source, sharded) if time is None else time)
    if not sharded.registers:
        return {}
    told = {name: Told() for name in sharded.registers}
    found = intervals(source, recipe) if ranks.is_main() else iter(())
    while (interval := ranks.from_main(next(found, None))) is not None:
        named, lookups = interval
        if time is not None:
            one_by_table = count(sharded, lookups, time, again=True)
        else:
            one_by_table = count(sharded, lookups, _after(sharded.registers.values()) if named is None else named)
        for name, one in one_by_table.items():
            told[name].add(one)
    settle(sharded)
    return told


def _after(all_of: Collection[Register | Owner]) -> int:
    """Return the day after the last one that was counted."""
    last = max(int(each.counted) for each in all_of)
    return 0 if last == NEVER else last + MINUTES


def _time_of(source: Source, sharded: Sharded) -> int:
    """Return when the last partition of a split begins, in minutes since 1970; never before what was counted."""
    owners = sharded.online.owners.values()
    named = [minute for part in source.partitions if (minute := minute_of(part)) is not None]
    return max([*named, *(int(owner.counted) for owner in owners)]) if named else _after(owners)


def count(sharded: Sharded, lookups: Mapping[str, Sights], time: int, again: bool = False) -> dict[str, Told]:
    """Take one interval's lookups, the same ones on every rank; `settle` is to follow before the next step.

    An interval that is not later than the last one is left out, as it was counted before.

    Args:
        sharded: its registers are changed.
        lookups: by table.
        time: when the interval began, in minutes since 1970.
        again: whether one as late as the last one is another one: two increments may lie in one minute.

    Returns:
        What became of the ids, by table.
    """
    told = {}
    for name, register in sharded.registers.items():
        if name in lookups and time >= int(register.counted) + (not again):
            one = lookups[name]
            told[name] = register.count(torch.from_numpy(one.ids.copy()), torch.from_numpy(one.counts.copy()), time)
    return told


@torch.no_grad()
def settle(sharded: Sharded) -> dict[str, Tensor]:
    """Let the rows that have changed hands begin anew: weights by (seed, table, id), optimizer state at zero.

    Returns:
        By table the rows that have changed hands, ascending.
    """
    changed = {name: register.settled() for name, register in sharded.registers.items()}
    if not any(len(rows) for rows in changed.values()):
        return changed
    anew = sharded.anew()
    for name, rows in changed.items():
        sharded.mark(name, rows)
        anew(name, rows, sharded.registers[name].map.keys[rows.to(sharded.device)].to(rows.device))
    sharded.purge()
    return changed


def placed(sharded: Sharded, name: str, keys: Tensor, kept: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Give a table the ids of an earlier one of another size; return their rows here, and there.

    Args:
        sharded: its register is changed; `settle` is to follow.
        name: the table's.
        keys: (rows,) of the earlier one.
        kept: as `Register.state`, of the earlier one.
    """
    there = (keys != EMPTY).nonzero().squeeze(1)
    there = there[keys[there].argsort()]
    if name in sharded.online.owners:
        rows = sharded.online.begin_with(name, keys[there], kept["used"][there], kept)
        sharded.online.owners[name].counted.copy_(kept["counted"])
        return rows[rows >= 0], there[rows >= 0]
    register = sharded.registers[name]
    rows = register.take(keys[there], kept["used"][there])
    if "waiting" in kept:
        register.wait(kept["waiting"], kept["waiting_counts"], kept["waiting_used"])
    register.counted.copy_(kept["counted"])
    return rows[rows >= 0], there[rows >= 0]


def words(sharded: Sharded, told: Mapping[str, Told]) -> Iterator[str]:
    """Yield a sentence for each table on what became of its ids."""
    for name, one in told.items():
        held = figures(sharded, name)
        share = held["ids"] / held["capacity"]
        yield (
            f"tables.{name}: {held['ids']:,} ids have rows of {held['capacity']:,} ({share:.1%}); "
            f"{one.admitted:,} admitted, {one.evicted:,} evicted, {one.expired:,} expired, {one.refused:,} refused; "
            f"{held['waiting']:,} wait"
        )


def told_online(sharded: Sharded) -> dict[str, Told]:
    """Return what became of ids that got rows while it trained, since this was asked last or the run began."""
    told = sharded.online.told
    sharded.online.told = {name: Told() for name in told}
    return told


def tables(sharded: Sharded) -> list[str]:
    """Return the tables of `hash: table`, in the recipe's order."""
    return [name for name in sharded.recipe.tables if name in sharded.registers or name in sharded.online.owners]


def figures(sharded: Sharded, name: str) -> dict[str, int]:
    """Return how full a table of ids is, and what became of ids since its beginning."""
    if name in sharded.online.owners:
        owner = sharded.online.owners[name]
        totals, (held, waiting) = owner.totals, owner.held.tolist()
    else:
        register = sharded.registers[name]
        totals = register.totals
        held, waiting = int((register.used != NEVER).sum()), int((register.waiting[0] != EMPTY).sum())
    return {
        "capacity": 8 * sharded.recipe.tables[name].buckets,
        "ids": held,
        "waiting": waiting,
        **dict(zip(Told().to_dict(), totals.tolist(), strict=True)),
    }
