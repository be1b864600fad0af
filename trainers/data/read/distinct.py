"""How many different ids a column has: a sketch of them per partition, which merges as sets do."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from livetrain.configs.schema import Recipe
from livetrain.modules.mixing import mix
from livetrain.trainers.data.read import carry

KEPT = 4096  # hashes: an estimate is off by 1.6 %, one standard deviation
_LARGEST = 2.0**64


@dataclass(frozen=True)
class Ids:
    """The least hashes of the ids met, (n,) uint64 ascending, `KEPT` at most: a KMV synopsis.

    Of D distinct ids the k-th least of D hashes that lie evenly in [0, 1) is about k / D, so D is about
    (k - 1) / (the k-th least): Beyer et al., On synopses for distinct-value estimation under multiset operations,
    SIGMOD 2007, equation 4. Fewer than k hashes are all there are, and exact.

    Example:
        >>> one, other = (Ids.of(np.arange(start, start + 60_000)) for start in (0, 30_000))
        >>> round(one.merge(other).count, -4)
        90000.0
    """

    hashes: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray) -> "Ids":
        """Return the sketch of (n,) ids."""
        return cls(np.unique(mix(np.unique(ids).astype(np.uint64)))[:KEPT])

    def merge(self, other: "Ids") -> "Ids":
        """Return the sketch of the ids of both."""
        return Ids(np.union1d(self.hashes, other.hashes)[:KEPT])

    @property
    def count(self) -> float:
        """Return about how many different ids these are."""
        if len(self.hashes) < KEPT:
            return float(len(self.hashes))
        return (KEPT - 1) / (float(self.hashes[-1]) / _LARGEST)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all of it, for a file; see `restored`."""
        return {"hashes": self.hashes}

    @classmethod
    def restored(cls, arrays: dict[str, np.ndarray]) -> "Ids":
        """Undo `arrays`."""
        return cls(arrays["hashes"])


class Distinct:
    """Counts the different ids of a feature that has one id per row. Ids in lists are of the same tables, mostly.

    Args:
        recipe: the run.
        name: the feature's.

    Attributes:
        columns: the one that is read.
    """

    restored = staticmethod(Ids.restored)
    nothing = Ids(np.zeros(0, np.uint64))

    def __init__(self, recipe: Recipe, name: str) -> None:
        self._feature = recipe.features[name]
        self.columns = [recipe.column(name)]

    @property
    def question(self) -> dict[str, Any]:
        """What is asked, so that an answer of equal words is this one's."""
        return {"distinct": self.columns, "kept": KEPT, "code": "1"}

    def of(self, table: pa.Table, first: int, where: str) -> Ids:
        """Return the sketch of some rows' ids; null is none."""
        ids = pc.unique(table.column(self.columns[0])).drop_null()
        return Ids.of(carry.ids(self._feature, ids).values)


def distinct(recipe: Recipe) -> dict[str, Distinct]:
    """Return what to count, by column: those of the features that look up one id per row as it is."""
    found: dict[str, Distinct] = {}
    for name, feature in recipe.features.items():
        if feature.looks_up() is not None and feature.form == "id" and feature.plain and not feature.lists:
            found.setdefault(recipe.column(name), Distinct(recipe, name))
    return found
