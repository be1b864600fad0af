"""Reads the files that wandb keeps of offline runs: LevelDB logs of protocol buffers."""

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
WAIT_S = 60


def records(run: Path) -> list[Any]:
    """Return the records of a folder's runs, the oldest run's first, all of which have been finished.

    wandb's service writes a file's end a moment after the call that finishes the run has returned.
    """
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.parent.name)
    until = time.monotonic() + WAIT_S
    found = []
    for path in files:
        part = list(_read(path))
        while not any(record.WhichOneof("record_type") == "exit" for record in part):
            assert time.monotonic() < until, f"{path} does not end"
            time.sleep(0.01)
            part = list(_read(path))
        found += part
    return found


def _read(path: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file, as far as it is written."""
    from wandb.proto import wandb_internal_pb2

    content, at, whole = path.read_bytes(), HEADER, b""  # the file's own header is as long as a record's
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:  # the end of a block holds nothing
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        if at + HEADER + length > len(content):
            return
        whole += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""
