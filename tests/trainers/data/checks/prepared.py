"""Small prepared datasets for the checks: honest ones, which a test then spoils in one way."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from livetrain.trainers.data.checks import whole
from livetrain.trainers.data.checks.findings import Finding

FIRST = datetime.date(2025, 5, 4)
DAY_MS = 86_400_000
ROLES = {
    "time": "timestamp",
    "group": "user",
    "labels": ["click", "watch_time"],
    "ids": ["user", "streamer", "room"],
    "sequences": ["live_streamer", "live_action"],
    "dense": ["viewers"],
}
Rows = dict[str, Any]


def day_rows(number: int, rows: int = 1500) -> Rows:
    """Return the columns of one honest day: nothing drifts, nothing leaks, every id is met on the first day."""
    rng = np.random.default_rng([7, number])
    user = np.arange(rows) % 60
    click = rng.random(rows) < 0.2 + 0.2 * (user % 2)
    lengths = rng.integers(0, 6, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return {
        "user": user,
        "streamer": np.arange(rows) % 25,
        "room": np.arange(rows) % 25 + 1000,
        "timestamp": day_start(number) + np.arange(rows) * 1000,
        "click": click.astype(np.int8),
        "watch_time": np.where(click, rng.gamma(2, 20, rows), 0).astype(np.float32),
        "live_streamer": sequence(offsets, rng.integers(100, 125, offsets[-1])),
        "live_action": sequence(offsets, rng.integers(1, 4, offsets[-1])),
        "viewers": rng.normal(100, 10, rows).astype(np.float32),
    }


def day_start(number: int) -> int:
    """Return a day's first millisecond."""
    return (FIRST - datetime.date(1970, 1, 1)).days * DAY_MS + number * DAY_MS


def day_name(number: int) -> str:
    return (FIRST + datetime.timedelta(days=number)).isoformat()


def sequence(offsets: np.ndarray, values: np.ndarray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, pa.int64()))


def write(
    folder: Path,
    days: int = 4,
    spoil: Callable[[int, Rows], None] = lambda number, rows: None,
    roles: dict | None = ROLES,
    splits: bool = False,
) -> Path:
    """Write `days` day partitions, or three splits of which train/ is the first days, and dataset.json.

    Args:
        spoil: called with each day's number and columns, which it may change.
    """
    names = [f"date={day_name(number)}" for number in range(days)]
    if splits:
        names = ["train"] * (days - 2) + ["valid", "test"]
    for number, name in enumerate(names):
        rows = day_rows(number)
        spoil(number, rows)
        (folder / name).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(rows), folder / name / f"part-{number}.parquet", row_group_size=500)
    if roles is not None:
        (folder / "dataset.json").write_text(json.dumps({"roles": roles}))
    return folder


def findings(folder: Path, check: str, subject: str | None = None) -> list[Finding]:
    """Return what a check finds, in all or of one subject."""
    found = [finding for finding in whole.check(folder).findings if finding.check == check]
    return [finding for finding in found if subject in (None, finding.subject)]


def only(folder: Path, check: str, subject: str | None = None) -> Finding:
    """Return the one finding of a check (and subject)."""
    (found,) = findings(folder, check, subject)
    return found
