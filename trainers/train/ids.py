"""Tables whose rows belong to ids (`hash: table`): the ids of the training data are counted before a run's first step,
admitted and evicted, and the rows that have changed hands begin anew.

A partition, a day of the data, is taken after the other in their order. The night after goes on: what an earlier run
has counted it counts no more. Every rank has the map and works the same out of the same counts, which rank 0 reads and
hands on: so the map is the same for any number of ranks, and no step exchanges more than it did.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from livetrain.configs.schema import Recipe
from livetrain.modules.model import initial_values
from livetrain.modules.tables.admission import MINUTES, NEVER, Told
from livetrain.modules.tables.ids import EMPTY
from livetrain.trainers.data.read.sights import Sights, admitted, minute_of
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.data.read.spread import HERE, Looking
from livetrain.trainers.data.read.statistics import by_partition
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train import checkpoint
from livetrain.trainers.train.sharding import Sharded

_ROWS = 1 << 16  # that begin anew at a time
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

    No batch may be on its way through the pipeline: its ids were looked up before. Partitions up to the last one that
    was counted are left out. A split without days counts as one day more.

    Args:
        sharded: its registers, maps and rows are changed.
        recipe: the run.
        source: the split.
        time: of all of it, in minutes since 1970, where it comes once and not before what was counted: an increment.

    Returns:
        What became of the ids, by table.
    """
    if not sharded.registers:
        return {}
    told = {name: Told() for name in sharded.registers}
    found = intervals(source, recipe) if ranks.is_main() else iter(())
    while (interval := ranks.from_main(next(found, None))) is not None:
        named, lookups = interval
        if time is not None:
            one_by_table = count(sharded, lookups, time, again=True)
        else:
            one_by_table = count(sharded, lookups, _after(sharded) if named is None else named)
        for name, one in one_by_table.items():
            told[name].add(one)
    settle(sharded, recipe)
    return told


def _after(sharded: Sharded) -> int:
    """Return the day after the last one that was counted."""
    last = max(int(register.counted) for register in sharded.registers.values())
    return 0 if last == NEVER else last + MINUTES


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
def settle(sharded: Sharded, recipe: Recipe) -> dict[str, Tensor]:
    """Let the rows that have changed hands begin anew: weights by (seed, table, id), optimizer state at zero.

    Returns:
        By table the rows that have changed hands, ascending.
    """
    changed = {name: register.settled() for name, register in sharded.registers.items()}
    if not any(len(rows) for rows in changed.values()):
        return changed
    if sharded.changes is not None:
        for name, rows in changed.items():
            sharded.changes.mark(name, rows)
    state = checkpoint.state(sharded)
    for key, value in state["model"].items():
        if (name := _table_of(key)) in changed:
            begins = initial_values(recipe, name)
            for piece, row, column in pieces(value):
                for rows in _within(changed[name], row, len(piece)).split(_ROWS):
                    ids = sharded.registers[name].map.keys[rows.to(piece.device)]
                    columns = range(column, column + piece.size(1))
                    piece[(rows - row).to(piece.device)] = begins.of_ids(ids, columns).to(piece)
    for key, values in state.get("optimizer_tables", {}).items():
        for value in values.values() if (name := _table_of(key)) in changed else ():
            for piece, row, _ in pieces(value) if value.dim() else ():
                piece[(_within(changed[name], row, len(piece)) - row).to(piece.device)] = 0
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
    register, there = sharded.registers[name], (keys != EMPTY).nonzero().squeeze(1)
    there = there[keys[there].argsort()]
    rows = register.take(keys[there], kept["used"][there])
    if "waiting" in kept:
        register.wait(kept["waiting"], kept["waiting_counts"], kept["waiting_used"])
    register.counted.copy_(kept["counted"])
    return rows[rows >= 0], there[rows >= 0]


def _table_of(key: str) -> str:
    """Return the table whose weight has a key in a checkpoint's state; "" of other keys."""
    *_, kind, name, last = ["", "", *key.split(".")]
    return name if kind == "embeddings" and last == "weight" else ""


def pieces(value: Tensor | ShardedTensor) -> Iterator[tuple[Tensor, int, int]]:
    """Yield what this rank holds of a tensor by rows, with the first row and column of each piece."""
    if not isinstance(value, ShardedTensor):
        yield value, 0, 0
        return
    for shard in value.local_shards():
        row, *column = shard.metadata.shard_offsets
        yield shard.tensor, row, column[0] if column else 0


def _within(rows: Tensor, first: int, many: int) -> Tensor:
    """Return those of some rows that are among `many` from `first` on."""
    return rows[(rows >= first) & (rows < first + many)]


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


def figures(sharded: Sharded, name: str) -> dict[str, int]:
    """Return how full a table of ids is, and what became of ids since its beginning."""
    register = sharded.registers[name]
    return {
        "capacity": register.capacity,
        "ids": int((register.used != NEVER).sum()),
        "waiting": int((register.waiting[0] != EMPTY).sum()),
        **dict(zip(Told().to_dict(), register.totals.tolist(), strict=True)),
    }
