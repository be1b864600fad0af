"""What was learned of a partition, kept beside its files, so that data are looked at once.

    <partition>/_livetrain/  index.npz            what the footers say, see index.py
                             answer-<digest>.npz     what a pass over some columns told, see statistics.py
                             brief-<digest>.npz      what the checks said, see train/preflight.py
                             negatives-<digest>.npz  how many each row group gets, see negatives.py

A file here counts only for the very files that it was made of: it holds a digest of their names, sizes and times, and
for other ones it is made again. It appears as a whole and ends with a digest of itself, so that what is cut short or
damaged is not believed. Several processes may write the same one: the last counts, and all of them say the same.
"""

import io
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from pyarrow import fs

from livetrain.trainers.data.read.files import Folder, short, shown
from livetrain.trainers.runtime import scratch

log = logging.getLogger(__name__)

NAME = "_livetrain"  # readers of data leave out what begins with _
_FORMAT = 3
_DIGEST = 16  # bytes of it, at a file's end
_COARSE, _NEW_S = 10**9, 2.0  # a file system that knows times to the second may miss a change within that second

Kept = tuple[dict[str, Any], dict[str, np.ndarray]]  # JSON's values, and arrays


@dataclass(frozen=True)
class Sidecar:
    """What is kept of one partition.

    Args:
        places: folders that may hold it, the first is written to where that can be.
        key: a digest of the partition's files; None where their sizes or times are not known: nothing is kept then.
    """

    places: tuple[tuple[fs.FileSystem, str], ...]
    key: str | None

    @classmethod
    def of(cls, filesystem: fs.FileSystem, folder: Folder, spare: Path | None = None) -> "Sidecar":
        """Return a partition's sidecar.

        Args:
            filesystem: where the partition is.
            folder: its own.
            spare: a local folder for what is learned of partitions that cannot be written to.
        """
        places = [(filesystem, f"{folder.path}/{NAME}")]
        if spare is not None:
            where = xxhash.xxh64_hexdigest(shown(filesystem, folder.path).encode())
            places.append((fs.LocalFileSystem(), str(spare / where)))
        return cls(tuple(places), _key(folder))

    def read(self, name: str) -> Kept | None:
        """Return what is kept under a name of the files that are there now; None where it has to be learned."""
        for filesystem, folder in self.places if self.key else ():
            try:
                with filesystem.open_input_file(f"{folder}/{name}.npz") as file:
                    found = _unpacked(file.read(), self.key)
            except Exception:  # mostly: there is none; each filesystem has errors of its own
                continue
            if found is not None:
                return found
        return None

    def write(self, name: str, told: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Keep something under a name, in the first place that can be written to; in none where there is no such."""
        content = _packed(self.key, told, arrays) if self.key else b""
        for filesystem, folder in self.places if self.key else ():
            try:
                _put(filesystem, folder, f"{name}.npz", content)
                return
            except Exception as error:  # whatever it is: nothing depends on what is kept
                log.info("%s: %s; what was learned of these data is not kept here", folder, short(error))


def _key(folder: Folder) -> str | None:
    """Return a digest of a partition's files, or None where a change of them might not show."""
    known, now = [], time.time()
    for info in folder.files:
        if info.size is None or info.mtime_ns is None:
            return None
        if info.mtime_ns % _COARSE == 0 and abs(now - info.mtime_ns / 1e9) < _NEW_S:
            return None
        known.append([info.path.removeprefix(folder.path), info.size, info.mtime_ns])
    return xxhash.xxh128_hexdigest(json.dumps(known).encode())


def _packed(key: str | None, told: dict[str, Any], arrays: dict[str, np.ndarray]) -> bytes:
    text = json.dumps({"format": _FORMAT, "key": key, "told": told}).encode()
    out = io.BytesIO()
    parts: dict[str, Any] = {f"a_{name}": part for name, part in arrays.items()}
    np.savez_compressed(out, told=np.frombuffer(text, np.uint8), **parts)
    return out.getvalue() + xxhash.xxh128_digest(out.getvalue())  # a ZIP's own checksums leave out its names


def _unpacked(content: bytes, key: str | None) -> Kept | None:
    """Return what `_packed` was given; None if that is of other files or of another version, or is not whole."""
    content, digest = content[:-_DIGEST], content[-_DIGEST:]
    if xxhash.xxh128_digest(content) != digest:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        found = json.loads(file["told"].tobytes())
        if found["format"] != _FORMAT or found["key"] != key:
            return None
        return found["told"], {name[2:]: file[name] for name in file.files if name.startswith("a_")}


def _put(filesystem: fs.FileSystem, folder: str, name: str, content: bytes) -> None:
    """Write a file as a whole: on disks by a rename, elsewhere by the one put that object stores commit."""
    filesystem.create_dir(folder)
    if not isinstance(filesystem, fs.LocalFileSystem):
        with filesystem.open_output_stream(f"{folder}/{name}") as file:
            file.write(content)
        return
    draft = f"{folder}/.{name}.{scratch.label()}"
    try:
        with filesystem.open_output_stream(draft) as file:
            file.write(content)
        filesystem.move(draft, f"{folder}/{name}")
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
