"""What a recipe would take of a cluster that is not there: memory, time, rows per second by number of workers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from livetrain.configs.errors import BadInput
from livetrain.configs.schema import Recipe
from livetrain.configs.schema.hardware import Hardware
from livetrain.trainers.data.read.lookups import Looked, ids_per_row, looked_up
from livetrain.trainers.data.read.source import Source
from livetrain.trainers.forecast.cost import Work, parts, stretches
from livetrain.trainers.forecast.counts import Counts, count
from livetrain.trainers.forecast.loads import loads
from livetrain.trainers.forecast.simulation import Simulated, simulate
from livetrain.trainers.recall.solving import TRAINERS
from livetrain.trainers.train import compiled_dense, memory, sharding
from livetrain.trainers.train.layout.refusal import DoesNotFit
from livetrain.trainers.train.replication import settled

GIGA = 2**30

Load = Callable[[Sequence[str]], Recipe]
"""Reads the recipe with more overrides."""


@dataclass(frozen=True)
class Advice:
    """A change of the recipe, forecast again: rows per second with it over those without it."""

    change: str
    gain: float


@dataclass(frozen=True)
class Forecast:
    """What so many workers would take.

    Attributes:
        workers: number of ranks.
        batch: rows of a step over all of them.
        parts: seconds of a step, by `cost.PARTS`.
        memory: GiB of the rank that holds most, by place (gpu, host) and kind.
        room: GiB that there are, by place.
        readers: cores per worker whose reading keeps up with the rest of the step.
        simulated: steps that were drawn.
        efficiency: rows per second and worker, over those of the smallest number of workers that fits.
        refused: why it cannot be; then the rest is empty.
        advice: what would change most.
    """

    workers: int
    batch: int
    parts: dict[str, float]
    memory: dict[str, dict[str, float]]
    room: dict[str, float]
    readers: float = 0.0
    simulated: Simulated | None = None
    efficiency: float = 1.0
    refused: str | None = None
    advice: tuple[Advice, ...] = ()

    @property
    def seconds(self) -> float:
        """Seconds of a step."""
        return sum(self.parts.values())

    @property
    def rows_per_s(self) -> float:
        """Rows per second of all workers together."""
        return self.batch / self.seconds if self.parts else 0.0

    @property
    def limit(self) -> str:
        """The part of a step that takes longest."""
        return max(self.parts, key=self.parts.__getitem__)


class Forecaster:
    """Forecasts a recipe on some hardware.

    Args:
        load: reads the recipe with more overrides.
        hardware: the machines.
        lookups: what is known of the features' ids, by feature.
    """

    def __init__(self, load: Load, hardware: Hardware, lookups: Mapping[str, Looked] | None = None) -> None:
        self._load, self.hardware, self._lookups = load, hardware, lookups
        self._counts: dict[str, Counts] = {}

    def all(self, workers: Sequence[int], advised: bool = True) -> list[Forecast]:
        """Return the forecast of each number of workers, the fewest first.

        Raises:
            BadInput: a number does not divide what has to be divided, or the tables fit none of them.
        """
        recipes = {world: self._recipe(world) for world in sorted(set(workers))}
        found = [self._one(world, recipe) for world, recipe in recipes.items()]
        fitting = [one for one in found if one.refused is None]
        if not fitting:
            raise BadInput(found[-1].refused or "")
        first = fitting[0].rows_per_s / fitting[0].workers
        out = []
        for one in found:
            if one.refused is None:
                advice = self._advice(one, recipes[one.workers]) if advised else ()
                one = replace(one, efficiency=one.rows_per_s / one.workers / first, advice=advice)
            out.append(one)
        return out

    def work(self, recipe: Recipe) -> tuple[Recipe, Work, dict[str, dict[str, float]]]:
        """Return a recipe as it is planned for, what each of its workers does, and the memory of the fullest."""
        world, device = max(recipe.cluster.most, 1), self.hardware.device
        recipe = settled(recipe, world)
        plan = sharding.dry_plan(recipe, world, device, self._lookups)
        held = memory.per_rank(recipe, plan, self._lookups)
        fullest = {
            where: max(range(world), key=lambda r: sum(int(k[r]) for k in kinds.values()))
            for where, kinds in held.items()
        }
        peak = {
            where: {kind: float(each[fullest[where]]) / GIGA for kind, each in kinds.items()}
            for where, kinds in held.items()
            if kinds
        }
        rows = recipe.data.batch_size * (recipe.data.candidates or 1) / world
        each = ids_per_row(recipe, self._lookups)
        values = sum(
            each[n] if f.carrier == "ids" else f.numbers for n, f in recipe.features.items() if f.carrier != "features"
        )
        return (
            recipe,
            Work(
                world=world,
                rows=rows,
                values=values + len(recipe.tasks),
                threads=recipe.data.threads,
                precision=recipe.train.precision,
                compiled=compiled_dense.wanted(recipe, torch.device(device)),
                counts=self._counted(recipe, rows, world, each),
                loads=loads(recipe, plan, self._lookups),
            ),
            peak,
        )

    def _recipe(self, world: int, *more: str) -> Recipe:
        recipe = self._load([*more, f"cluster.workers={world}", f"cluster.device={self.hardware.device}"])
        cluster = recipe.cluster.model_copy(update={"topology": self.hardware.topology()})
        return recipe.model_copy(update={"cluster": cluster})

    def _one(self, world: int, recipe: Recipe, simulated: bool = True) -> Forecast:
        batch = recipe.data.batch_size * (recipe.data.candidates or 1)
        room = {"gpu": self.hardware.memory_gb, "host": self.hardware.host_gb}
        try:
            recipe, work, peak = self.work(recipe)
        except DoesNotFit as error:
            return Forecast(world, batch, {}, {}, room, refused=error.of("the hardware file", "memory_gb and host_gb"))
        found = parts(work, self.hardware)
        readers = stretches(work, self.hardware).reading / (sum(found.values()) - found["cores"])
        drawn = simulate(work, self.hardware) if simulated else None
        return Forecast(world, batch, found, peak, {k: room[k] for k in peak}, readers, drawn)

    def _counted(self, recipe: Recipe, rows: float, world: int, each: dict[str, float]) -> Counts:
        key = f"{world} {rows} {recipe.features} {recipe.model} {recipe.tasks} {recipe.gradients} {recipe.optimizers}"
        key += str([name for name, table in recipe.tables.items() if table.sharding == "data_parallel"])
        if key not in self._counts:
            self._counts[key] = count(recipe, rows, world, each)
        return self._counts[key]

    def _advice(self, now: Forecast, recipe: Recipe) -> tuple[Advice, ...]:
        """Return the changes that would give at least a twentieth more rows per second, the best first."""
        found = []
        for change in changes(recipe, now, self.hardware):
            try:
                other = self._one(now.workers, self._recipe(now.workers, *change.split()), simulated=False)
            except BadInput:  # the recipe does not allow it
                continue
            if other.refused is None and other.rows_per_s >= 1.05 * now.rows_per_s:
                found.append(Advice(change, other.rows_per_s / now.rows_per_s))
        return tuple(sorted(found, key=lambda advice: -advice.gain)[:3])


def changes(recipe: Recipe, now: Forecast, hardware: Hardware) -> list[str]:
    """Return overrides that may make a recipe faster, each to be forecast."""
    workers = now.workers
    out = [f"data.batch_size={4 * recipe.data.batch_size}"]
    if hardware.ahead and recipe.train.precision == "float32":
        out += ["train.precision=tf32", "train.precision=bfloat16"]
    if recipe.cluster.quantize_comms == "none" and workers > 1:
        out.append("cluster.quantize_comms=fp16")
    threads = min(math.ceil(now.readers), hardware.cores // min(workers, hardware.workers_per_node))
    if threads > recipe.data.threads:
        out.append(f"data.threads={threads}")
    for name, table in recipe.tables.items():
        if table.sharding == "table_wise" and workers > 1:
            out.append(f"tables.{name}.sharding=row_wise")
        if table.memory == "host":
            out.append(f"tables.{name}.memory=gpu")
    return out


def known(recipe: Recipe) -> tuple[dict[str, Looked], str]:
    """Return what the training split tells of the features' ids, and in words where that is from.

    A forecast needs no data: where they cannot be read, planning's assumptions stand in for them.
    """
    try:
        return looked_up(Source.open(recipe, "train"), recipe), "lists and frequent ids as sampled from data.path"
    except BadInput as error:
        return {}, f"lists taken as half of their limits and all rows as alike frequent, for want of data ({error})"


def check_steps(recipe: Recipe) -> None:
    """Raise BadInput where a model is not trained by steps of rows, which are what is forecast."""
    kind = recipe.model.kind
    if recipe.model.fitted or kind in TRAINERS:
        raise BadInput(
            f"model.kind: '{kind}' is fitted and not trained by steps, of which a forecast tells; fit it by `livetrain "
            "train`, whose result.json says what time and memory that took"
        )


def check_division(recipe: Recipe, workers: Sequence[int]) -> None:
    """Refuse numbers of workers for which a recipe's shards and batch cannot be divided, all at once.

    Raises:
        BadInput: names the first such number, and what would do for all.
    """
    shards = recipe.data.shards
    wrong = next((world for world in workers if shards % world), None)
    if wrong is None:
        return
    every = math.lcm(*workers)
    wanted = every * max(round(shards / every), 1)
    raise BadInput(
        f"--workers: {shards} data.shards do not divide among {wrong} workers; data.shards={wanted} would for all of "
        f"{', '.join(map(str, workers))}, with a data.batch_size that is a multiple of it"
    )
