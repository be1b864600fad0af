"""Parquet laid out for training, and a folder of splits that is either finished or known not to be.

The constants below are the outcome of benchmarks/parquet_layout.py; its table and the reasons are in
benchmarks/results/parquet_layout.md.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from livetrain.configs.errors import BadInput

SPLITS = ("train", "valid", "test")
ROW_GROUP = 65_536  # rows at most, and
ROW_GROUP_BYTES = 2**23  # bytes of them in memory, about
COMPRESSION = "lz4"
PAGE = 2**17  # bytes; a reader holds a page of every column of every file that it has open
MANIFEST = "dataset.json"
_UNFINISHED = "dataset.json.unfinished"


def list_of(element: pa.DataType) -> pa.DataType:
    """Return the list type that trains fastest: its elements are never null, so Parquet keeps no level for them."""
    return pa.list_(pa.field("element", element, nullable=False))


def lists(offsets: np.ndarray | pa.Array, values: np.ndarray | pa.Array, element: pa.DataType) -> pa.ListArray:
    """Return a list column of R rows.

    Args:
        offsets: (R + 1,) integers, row r is values[offsets[r]:offsets[r + 1]].
        values: (offsets[-1],) values of type `element`, without nulls.
    """
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, element), type=list_of(element))


def finished(out: Path) -> dict | None:
    """Return dataset.json of a finished folder, None where there is none."""
    try:
        found = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BadInput(f"{out / MANIFEST} cannot be read ({error}); remove the folder or name another") from None
    if not isinstance(found, dict):
        raise BadInput(f"{out / MANIFEST} holds no mapping of names to values; prepare the data again, in a new folder")
    return found


def unfinished(out: Path) -> bool:
    """Say whether a preparation has begun in a folder and not ended."""
    return (out / _UNFINISHED).exists()


def begin(out: Path, clear: bool = True) -> None:
    """Make `out` ready for writing: new or empty, or left by a preparation that did not finish.

    Args:
        out: the folder.
        clear: what such a preparation has left of the splits is removed.

    Raises:
        BadInput: `out` holds anything else, is not a folder or cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / _UNFINISHED).exists() and any(out.iterdir()):
            raise BadInput(f"{out} is not empty and holds no prepared data; name a new folder")
        (out / _UNFINISHED).write_text("", encoding="utf-8")
        for split in SPLITS if clear else ():
            shutil.rmtree(out / split, ignore_errors=True)
    except OSError as error:
        raise BadInput(f"{out} cannot be written ({error.strerror}); name a folder that can") from None


def write_split(out: Path, split: str, schema: pa.Schema, pieces: Iterable[pa.Table]) -> int:
    """Write one split as one Parquet file, which has its name only once it is complete.

    Args:
        out: the folder given to `begin`.
        split: train, valid or test.
        schema: of every piece.
        pieces: tables whose rows follow one another, of any size.

    Returns:
        The number of rows.
    """
    folder = out / split
    folder.mkdir(exist_ok=True)
    return write_part(folder / "part-00000.parquet", schema, pieces)


def write_part(path: Path, schema: pa.Schema, pieces: Iterable[pa.Table]) -> int:
    """Write one Parquet file, which has its name only once it is complete; return its rows.

    Args:
        path: in a folder that exists.
        schema, pieces: as for `write_split`.
    """
    hidden = path.with_name(f".{path.name}.unfinished")
    rows = 0
    options = {"compression": COMPRESSION, "data_page_size": PAGE, "write_page_checksum": True}
    with pq.ParquetWriter(hidden, schema, **options) as writer:
        for group in _groups(pieces):
            writer.write_table(group, row_group_size=ROW_GROUP)
            rows += len(group)
    os.replace(hidden, path)
    return rows


def _groups(pieces: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Cut tables whose rows follow one another into row groups."""
    left: pa.Table | None = None
    for piece in pieces:
        left = piece if left is None else pa.concat_tables([left, piece])
        rows = min(ROW_GROUP, max(ROW_GROUP_BYTES * len(left) // max(left.nbytes, 1), 1))
        while len(left) >= rows:
            yield left.slice(0, rows)
            left = left.slice(rows)
    if left:
        yield left


def finish(out: Path, manifest: dict) -> dict:
    """Write dataset.json, which makes the folder a finished one, and return its content."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    (out / _UNFINISHED).write_text(text + "\n", encoding="utf-8")
    os.replace(out / _UNFINISHED, out / MANIFEST)
    return manifest
