"""A stream's folder as `livetrain stream` leaves it, of whatever samples."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from livetrain.trainers.data.read import minutes
from livetrain.trainers.runtime import manifest


def begin(live: Path, columns: Mapping[str, str], lanes: int = 1) -> Path:
    """Begin a stream, or go on with it."""
    live.mkdir(parents=True, exist_ok=True)
    manifest.write_json(live / minutes.STREAM, {"lanes": lanes, "every_s": 60, "columns": dict(columns)})
    return live


def close(live: Path, start: int, rows: pa.Table | None, lane: int = 0, late: int = 0) -> Path:
    """Close the minute of a lane that begins at `start`, s since 1970; return its folder."""
    folder = live / minutes.folder_of(start) / f"lane={lane}"
    folder.mkdir(parents=True)
    files = {}
    if rows is not None:
        pq.write_table(rows, folder / "part-0.parquet")
        files = {"part-0.parquet": manifest.digest(folder / "part-0.parquet")}
    content = {"rows": 0 if rows is None else len(rows), "start": start, "end": start + 60}
    manifest.commit(folder, files, offsets={}, counts={"late": late}, watermark=start + 90.0, **content)
    return folder
