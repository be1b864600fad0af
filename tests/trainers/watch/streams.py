"""A stream with clicks, gifts, scores and channels."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from livetrain.trainers.data.read import minutes
from tests import live

BEGIN = minutes.started("2026-11-30T12:00:00Z")
COLUMNS = {
    "click": "int8", "gift": "int8", "watch_time": "float", "click_score": "float", "channel": "string",
    "version": "int64",
}  # fmt: skip


def samples(rows: int, seed: int, factor: float = 1.0, gifts: bool = True) -> pa.Table:
    """Rows whose clicks come with chance `factor` times click_score; two in ten gifts are not known."""
    random = np.random.default_rng(seed)
    score = random.uniform(0.1, 0.5, rows)
    click = random.random(rows) < np.minimum(score * factor, 1)
    gift = [None if random.random() < 0.2 else int(gifts and c and random.random() < 0.3) for c in click]
    channel = np.array(["friend", "hot", 'near"by'])[random.integers(0, 3, rows)]
    return pa.table(
        {
            "click": pa.array(click, pa.int8()),
            "gift": pa.array(gift, pa.int8()),
            "watch_time": pa.array(np.where(click, random.exponential(30, rows), 0), pa.float32()),
            "click_score": pa.array(score, pa.float32()),
            "channel": pa.array([None if random.random() < 0.1 else name for name in channel]),
            "version": pa.array(random.integers(6, 8, rows), pa.int64()),
        }
    )


def open_stream(folder: Path, lanes: int = 1) -> Path:
    return live.begin(folder, COLUMNS, lanes)


def close(folder: Path, number: int, rows: pa.Table | None, lane: int = 0, late: int = 0) -> None:
    """Close minute 0, 1, ... of a lane."""
    live.close(folder, BEGIN + 60 * number, rows, lane, late)
