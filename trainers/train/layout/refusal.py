"""Why no plan fits the machines, and what would mend it: each mend is planned with before it is named."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.trainers.train import memory
from livetrain.trainers.train.layout.costs import Costs
from livetrain.trainers.train.layout.search import Way

_MOST = 4096  # workers

Fits = Callable[[Recipe, int], bool]
"""Whether a recipe has a plan for some ranks."""


class DoesNotFit(BadInput):
    """The tables do not fit the machines of cluster.topology.

    Attributes:
        table: that takes most of what lacks room; None where it is what the ranks hold besides tables.
        needed: bytes that it takes of all ranks together, or of the one rank that it is to lie on.
        whole: bytes that all takes there, tables and besides.
        room: bytes that there are.
        mends: what each alone would do, in words.
        short: what is short, in words.
        world: number of workers.
    """

    def __init__(
        self, table: str | None, needed: int, whole: int, room: int, mends: tuple[str, ...], short: str, world: int
    ) -> None:
        self.table, self.needed, self.whole, self.room, self.mends = table, needed, whole, room, mends
        self.short, self.world = short, world
        super().__init__(self.of("cluster.topology", "hbm_gb and ddr_gb"))

    def of(self, machines: str, memory: str) -> str:
        """Return the sentence.

        Args:
            machines: where they are described.
            memory: the keys of their memory there.
        """
        mend = f"{_or(self.mends)} would do" if self.mends else f"add workers, lower rows or dim, or correct {memory}"
        return f"tables: no sharding plan fits {_workers(self.world)} of {machines} ({self.short}); {mend}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.table, self.needed, self.whole, self.room, self.mends, self.short, self.world)


def refusal(costs: Costs, fits: Fits) -> DoesNotFit:
    """Return why no plan fits.

    Args:
        costs: of the recipe and ranks that have no plan.
        fits: plans again.
    """
    lacks = _lacking(costs)
    mends = tuple(_mends(costs, lacks.table, fits))
    needed = memory.amount(lacks.needed)
    part = f"of {memory.amount(lacks.whole)}" if lacks.shards == 1 else f"on each of {lacks.shards} workers"
    what = f"table {lacks.table}: {needed} {part}" if lacks.table else f"besides tables {needed}"
    short = f"{what}, and {lacks.where} {memory.amount(lacks.room)}"
    return DoesNotFit(lacks.table, lacks.needed, lacks.whole, lacks.room, mends, short, costs.world)


@dataclass(frozen=True)
class _Lacking:
    table: str | None
    needed: int
    whole: int
    room: int
    where: str  # the room is, and its verb
    shards: int = 1  # of which each takes what is needed


def _lacking(costs: Costs) -> _Lacking:
    """Return what has no room: besides tables, a table on one rank, all in GPU memory, or all in all memory."""
    tables, world, names = costs.recipe.tables, costs.world, ("GPU memory", "host memory")
    room = costs.room(False)
    if (room < 0).any():
        place = int(room.argmin())
        held = sum(v for k, v in costs.besides[("gpu", "host")[place]].items() if k != "checkpoint copy")
        has = round(held + room[place])
        return _Lacking(None, held, held, has, f"the {names[place]} of a worker has")
    sharded = [name for name, table in tables.items() if table.sharding != "data_parallel"]
    home = {n: 1 if not costs.gpu or tables[n].memory == "host" else 0 for n in sharded}  # auto may lie in both
    ways = {n: costs.ways(n, costs.gpu and home[n] == 1, copied=False) for n in sharded}
    least = {n: min(_most(way, home[n]) for way in ways[n]) for n in sharded}
    over = [n for n in sharded if least[n] > (room.max() if tables[n].memory == "auto" else room[home[n]])]
    if over:
        name = max(over, key=lambda n: least[n])
        one = least[name]
        shards = min(len(piece.taken) for way in ways[name] for piece in way.pieces if _most(way, home[name]) == one)
        where = f"the {names[home[name]]} of a worker has"
        return _Lacking(name, one, one, round(room[home[name]]), where, shards)
    sizes = {n: _size(ways[n][0], home[n]) for n in sharded}
    # At the least GPUs hold what must lie there, and the caches of all other tables.
    on_gpu = {n: sizes[n] if tables[n].memory == "gpu" else _size(costs.ways(n, True, False)[0], 0) for n in sharded}
    where, has = f"the memory of {_workers(world)} has", world * room[1]
    if costs.gpu and sum(on_gpu.values()) > world * room[0]:
        sizes, where, has = on_gpu, f"the GPU memory of {_workers(world)} has", world * room[0]
    elif costs.gpu:
        where, has = f"the GPU and host memory of {_workers(world)} has", world * room.sum()
    most = max(sizes, key=lambda n: sizes[n])
    return _Lacking(most, sizes[most], sum(sizes.values()), round(has), where)


def _most(way: Way, place: int) -> int:
    """Return the bytes of a way's largest shard."""
    return round(max(float(piece.taken[:, place].max()) for piece in way.pieces))


def _size(way: Way, place: int) -> int:
    return round(sum(float(piece.taken[:, place].sum()) for piece in way.pieces))


def _mends(costs: Costs, table: str | None, fits: Fits) -> Iterator[str]:
    """Yield, in words, what alone would mend it."""
    recipe, world = costs.recipe, costs.world
    more = [n for n in range(world + 1, recipe.data.shards + 1) if recipe.data.shards % n == 0]
    more = more or [world * 2**n for n in range(1, 13) if world * 2**n <= _MOST]
    enough = next((n for n in more if fits(recipe, n)), None)
    if enough is not None:
        what = ("GPU" if costs.gpu else "worker") + ("s" if enough - world > 1 else "")
        yield f"{enough - world} more {what} (cluster.workers: {enough})"
    if table is None:
        batch = recipe.data.batch_size
        less = (batch // part for part in (2, 4, 8, 16) if batch % (part * world) == 0)
        if (small := next((n for n in less if fits(_with(recipe, "data", batch_size=n), world)), None)) is not None:
            yield f"data.batch_size: {small}"
        return
    declared = recipe.tables[table]

    def fitting(change: dict[str, Any]) -> bool:
        tables = recipe.tables | {table: declared.model_copy(update=change)}
        return fits(recipe.model_copy(update={"tables": tables}), world)

    changes: list[dict[str, Any]] = [{"dtype": "float16"}] if declared.dtype == "float32" else []
    if costs.gpu and declared.memory == "gpu":
        changes.append({"memory": "host"})
    elif costs.gpu:
        smaller: list[dict[str, Any]] = [{"cache": declared.cache / part} for part in (2, 4, 8, 16)]
        changes += [change for change in smaller if fitting(change)][:1]
    if declared.sharding != "auto":
        changes.append({"sharding": "auto"})
    for change in filter(fitting, changes):
        ((key, value),) = change.items()
        yield f"tables.{table}.{key}: {value}"


def _with(recipe: Recipe, section: str, **changes: Any) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=changes)})


def _workers(number: int) -> str:
    return f"{number} workers" if number > 1 else "1 worker"


def _or(words: tuple[str, ...]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
