"""Steps of many ranks with drawn delays: what a formula of means leaves out, since ranks wait for the slowest.

Drawn for each step are the lookups of every shard (each lookup falls into a shard of its table by the shard's share of
the ids' frequencies, so those of a table are multinomial), the time that each rank takes for each stretch of the same
work (lognormal), and which ranks stand still (exponential). A collective ends for all ranks when the last one has come,
and takes what the formula says. A rank that is late in its last stretch is late for the next step.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from livetrain.configs.schema.hardware import Hardware
from livetrain.trainers.forecast.cost import Work, calls, cores, stretches


@dataclass(frozen=True, eq=False)
class Drawn:
    """One step as drawn: what every rank computes before each collective, and what each collective takes.

    Attributes:
        computes: (C + 1, R) seconds before each of C collectives, and after the last.
        collectives: (C,) seconds once all ranks are there.
    """

    computes: np.ndarray
    collectives: np.ndarray


@dataclass(frozen=True)
class Simulated:
    """Seconds of a step over all that were simulated: median, 95th percentile, and mean."""

    median: float
    p95: float
    mean: float


def simulate(work: Work, hardware: Hardware, steps: int = 200, seed: int = 0) -> Simulated:
    """Return how long steps take that are drawn.

    Args:
        work: of a rank.
        hardware: the machines, with their delays.
        steps: how many.
        seed: of the draws.
    """
    ends = run(draw(work, hardware, steps, seed), work.world)
    taken = np.diff(ends, prepend=0.0)
    reading = stretches(work, hardware).reading
    taken = np.array([step + cores(step, reading, work, hardware) for step in taken])
    return Simulated(float(np.median(taken)), float(np.percentile(taken, 95)), float(taken.mean()))


def run(drawn: Iterator[Drawn], world: int) -> np.ndarray:
    """Return the time at which the last rank ends each step, the ranks going on from where they are.

    Example:
        >>> step = Drawn(computes=np.array([[1.0, 3.0], [2.0, 0.5]]), collectives=np.array([1.0]))
        >>> run(iter([step, step]), 2).tolist()
        [6.0, 10.5]
    """
    now, ends = np.zeros(world), []
    for step in drawn:
        for computes, taken in zip(step.computes, step.collectives, strict=False):
            now = np.full(world, (now + computes).max() + taken)
        now = now + step.computes[-1]
        ends.append(now.max())
    return np.array(ends)


def draw(work: Work, hardware: Hardware, steps: int, seed: int) -> Iterator[Drawn]:
    """Yield steps as drawn; arguments as of `simulate`."""
    rng, delays, world = np.random.default_rng(seed), hardware.delays, work.world
    for _ in range(steps):
        found = stretches(work, hardware, _lookups(work, rng))
        exchange = float((found.inside + found.between).max())
        reduces = np.array(found.reduces) + found.reduce
        stretch = (found.dense + calls(found, hardware)) / (len(reduces) + 1)
        network = np.full((len(reduces) + 1, world), stretch)
        computes = np.vstack([found.forward, network, found.backward])
        computes = computes * _spread(rng, delays.deviation, computes.shape)
        stalls = rng.random(world) < delays.stalls
        computes[1] += stalls * rng.exponential(delays.stall_ms / 1e3, world)
        there, back = found.ids + found.exchange + exchange, found.exchange + exchange
        yield Drawn(computes, np.array([there, *reduces, back]))


def _lookups(work: Work, rng: np.random.Generator) -> np.ndarray:
    """Draw the lookups of every shard: those of shards of the same rows and other columns are the same."""
    loads = work.loads
    out = np.zeros(len(loads.lookups))
    for table in np.unique(loads.table):
        own = np.flatnonzero(loads.table == table)
        first = np.unique(loads.piece[own], return_index=True)[1]
        expected = loads.lookups[own[first]]
        total = expected.sum()
        if total > 0:
            out[own] = rng.multinomial(round(total), expected / total)[loads.piece[own]]
    return out


def _spread(rng: np.random.Generator, deviation: float, shape: tuple[int, ...]) -> np.ndarray:
    """Return lognormal factors of mean 1."""
    sigma = np.sqrt(np.log1p(deviation**2))
    return rng.lognormal(-(sigma**2) / 2, sigma, shape)
