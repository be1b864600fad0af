"""A small piece of work with round figures, and machines without delays."""

import numpy as np

from livetrain.configs.machines import load_hardware
from livetrain.trainers.forecast.cost import Work
from livetrain.trainers.forecast.counts import Counts
from livetrain.trainers.forecast.loads import Loads


def loads(world: int) -> Loads:
    """Return a table on rank 0, and one spread by rows over all ranks, the last of which is asked for most."""
    spread = np.arange(1, world + 1) * 100.0
    lookups = np.array([1000.0, *spread])

    def all_of(value: float) -> np.ndarray:
        return np.full(world + 1, value)

    return Loads(
        world=world,
        table=np.array([0] + [1] * world),
        piece=np.array([0, *range(world)]),
        rank=np.array([0, *range(world)]),
        lookups=lookups,
        touched=lookups,
        read=all_of(128.0),
        updated=all_of(64.0),
        written=all_of(192.0),
        missed=all_of(0.0),
        sent=all_of(64.0),
        pooled=all_of(0.0),
        stepped=all_of(0.0),
        groups=1,
    )


def work(world: int, **changes: object) -> Work:
    """Return a rank's step of 100 operators."""
    values: dict = {"world": world, "rows": 512, "values": 10, "threads": 1, "precision": "float32", "compiled": False}
    values |= {"counts": Counts(100, 1e9, 1e7, 1e7, (1e3, 1e6)), "loads": loads(world)}
    return Work(**values | changes)


def machines(**changes: object):
    """Return nodes of 8 with ample cores, by which no rank is late."""
    made = load_hardware("h100")
    return made.model_copy(update={"delays": type(made.delays)(), "cores": 4096, **changes})
