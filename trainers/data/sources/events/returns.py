"""Whether a user came back within a day: a label that a day's rows get from the next day's.

While the next day is not there, the label is null: nothing of it is known. Once that day is prepared, the partition
before it is written anew with the label, whole, and takes the place of the old one.

    out/_told/date=2025-05-25/   a partition that has the label, until it is in its place
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from livetrain.trainers.data.sources.events.model import RETURNED, VISIT_MS
from livetrain.trainers.data.write import layout
from livetrain.trainers.data.write.history import Timeline
from livetrain.trainers.runtime import manifest

DAY_MS = 86_400_000
_TOLD = "_told"


def came_back(user: np.ndarray, time: np.ndarray, wanted: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Return whether each user began another visit within a day after each moment.

    Args:
        user, time: (N,) of all exposures from the moments on, in ms.
        wanted, moment: (R,) exposures among them.

    Example:
        >>> time = np.array([0, 600_000, 7_200_000])
        >>> came_back(np.array([1, 1, 1]), time, np.array([1, 1, 1]), time)
        array([ True,  True, False])
    """
    order = np.lexsort((time, user))
    user, time = user[order], time[order]
    begins = np.ones(len(user), bool)
    begins[1:] = (user[1:] != user[:-1]) | (time[1:] - time[:-1] > VISIT_MS)
    # The first exposures of a user begin a visit too, but no row comes before them.
    visits = Timeline(user[begins], time[begins])
    later = visits.before(wanted, moment + DAY_MS + 1).count - visits.before(wanted, moment + 1).count
    return later > 0


def finish(out: Path, work: Path) -> None:
    """Put partitions in their place that were whole when a preparation was killed."""
    for made in sorted((out / _TOLD).glob("date=*")):
        if manifest.read(made) is not None:
            _replace(out / made.name, made, work)
    shutil.rmtree(out / _TOLD, ignore_errors=True)


def tell(out: Path, work: Path, day: str, following: str) -> dict[str, Any]:
    """Write a day's partition anew with the label, which the next day's partition tells; return its manifest."""
    place, made = out / f"date={day}", out / _TOLD / f"date={day}"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    for part in sorted(place.glob("part-*.parquet")):
        told = pq.read_table(part, columns=["user", "timestamp"], partitioning=None)
        after = pq.read_table(out / f"date={following}" / part.name, columns=["user", "timestamp"], partitioning=None)
        wanted, moment = (told[name].to_numpy() for name in told.column_names)
        user, time = (
            np.concatenate([own, after[n].to_numpy()]) for n, own in (("user", wanted), ("timestamp", moment))
        )
        label = pa.array(came_back(user, time, wanted, moment).astype(np.int8))
        layout.write_part(made / part.name, pq.read_schema(part), _with(part, label))
    content = {key: value for key, value in (manifest.read(place) or {}).items() if key != "files"}
    files = {path.name: manifest.digest(path) for path in sorted(made.iterdir())}
    manifest.commit(made, files, **content | {RETURNED: True})
    _replace(place, made, work)
    shutil.rmtree(out / _TOLD)
    return manifest.read(place) or {}


def _with(part: Path, label: pa.Array) -> Iterator[pa.Table]:
    """Yield a file's rows with the label."""
    begin = 0
    with pq.ParquetFile(part) as file:
        at = file.schema_arrow.get_field_index(RETURNED)
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group)
            yield rows.set_column(at, file.schema_arrow.field(at), label.slice(begin, len(rows)))
            begin += len(rows)


def _replace(place: Path, made: Path, work: Path) -> None:
    """Put a partition in the place of another; a kill between both leaves the new one for `finish`."""
    if place.exists():
        place.rename(work / f"old {place.name}")
    made.rename(place)
