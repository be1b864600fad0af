"""How often each id is looked up, by table and by partition: what ids are admitted by.

A partition's counts are kept beside it as other answers are (see statistics.py). They are read one partition at a time,
so that what is held grows with the ids of a day, and not with those of the log.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from livetrain.configs.schema import Recipe
from livetrain.trainers.data.read import carry
from livetrain.trainers.data.read.source import Partition

_DAY = re.compile(r".*date=(\d{4}-\d{2}-\d{2})(?:/time=(\d{6}))?")


@dataclass(frozen=True)
class Sights:
    """Ids (n,) int64, ascending, and how often each was met, (n,) int64.

    Example:
        >>> Sights.of(np.array([7, 3, 7])).merge(Sights.of(np.array([3]))).counts.tolist()
        [2, 2]
    """

    ids: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray) -> "Sights":
        """Count (n,) ids."""
        return cls(*np.unique(ids, return_counts=True))

    def merge(self, other: "Sights") -> "Sights":
        """Return the counts of both."""
        ids, place = np.unique(np.concatenate([self.ids, other.ids]), return_inverse=True)
        counts = np.zeros(len(ids), np.int64)
        np.add.at(counts, place, np.concatenate([self.counts, other.counts]))
        return Sights(ids, counts)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all of it, for a file; see `restored`."""
        return {"ids": self.ids, "counts": self.counts}

    @classmethod
    def restored(cls, arrays: dict[str, np.ndarray]) -> "Sights":
        """Undo `arrays`."""
        return cls(arrays["ids"], arrays["counts"])


NONE = Sights(np.zeros(0, np.int64), np.zeros(0, np.int64))


class Sighted:
    """Counts the ids of a table: those of every feature that looks up in it, of lists the newest, as training does.

    Args:
        recipe: the run.
        table: the table's name.

    Attributes:
        columns: that are read.
    """

    restored = staticmethod(Sights.restored)
    nothing = NONE

    def __init__(self, recipe: Recipe, table: str) -> None:
        self._users = [(recipe.column(n), f) for n, f in recipe.features.items() if f.looks_up() == table]
        self.columns = list(dict.fromkeys(column for column, _ in self._users))

    @property
    def question(self) -> dict[str, Any]:
        """What is asked, so that an answer of equal words is this one's."""
        return {"sights": [[column, f.limit if f.lists else 0] for column, f in self._users], "code": "1"}

    def of(self, table: pa.Table, first: int, where: str) -> Sights:
        """Count some rows' ids; null is none."""
        found = NONE
        for column, feature in self._users:
            ids = carry.ids(feature, carry.whole(table.column(column)))
            if ids.begins is not None and ids.ends is not None and feature.lists:
                ids = ids._replace(begins=np.maximum(ids.begins, ids.ends - feature.limit))
            found = found.merge(Sights.of(ids.cut(0, len(table))[0]))
        return found


def admitted(recipe: Recipe) -> dict[str, Sighted]:
    """Return what counts the ids of the tables whose ids get rows before a run, by table."""
    own = [name for name, table in recipe.tables.items() if table.hash == "table" and table.assign == "before"]
    return {name: Sighted(recipe, name) for name in own}


def minute_of(partition: Partition) -> int | None:
    """Return when a partition begins by its folder's name, in minutes since 1970; None where that names no day.

    Its name is date=YYYY-MM-DD, with time=HHMMSS below it where it is less than a day; a folder above may have such a
    name too.
    """
    found = _DAY.match(partition.sidecar.places[0][1]) if partition.sidecar.places else None
    if found is None:
        return None
    begins = datetime.strptime(f"{found[1]} {found[2] or '000000'}", "%Y-%m-%d %H%M%S").replace(tzinfo=UTC)
    return int(begins.timestamp()) // 60
