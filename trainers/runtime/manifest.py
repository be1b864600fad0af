"""Folders that are either whole or not there: a manifest of sizes and hashes, written last, is the commit."""

import errno
import glob
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash

from livetrain.trainers.runtime import scratch

MANIFEST = "manifest.json"
DRAFT = ".draft"  # ends the name of a file that is being written


def finite(content: Any) -> Any:
    """Return JSON-able content with null for every number that JSON has no word for (nan, infinity)."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file as `write_text` does."""
    write_text(path, json.dumps(finite(content), indent=1, allow_nan=False))


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the new one, also after a kill or a loss of power."""
    beginning = f".{path.name}."
    for left in path.parent.glob(f"{glob.escape(beginning)}*{DRAFT}"):
        if scratch.ended(left.name.removeprefix(beginning).removesuffix(DRAFT)):
            left.unlink(missing_ok=True)  # of a process that was killed
    draft = path.with_name(f"{beginning}{scratch.label()}{DRAFT}")  # nobody else's, on whatever machine
    try:
        with draft.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what a file system says that cannot, of a folder
            raise
    finally:
        os.close(handle)


def digest(path: Path) -> dict[str, Any]:
    """Return a file's size in bytes and its xxh64, as a manifest keeps them."""
    with path.open("rb") as file:
        return digest_of(iter(lambda: file.read(1 << 22), b""))


def digest_of(chunks: Iterable[bytes]) -> dict[str, Any]:
    """Return `digest` of content that comes in parts."""
    digest = Digest()
    for chunk in chunks:
        digest.update(chunk)
    return digest.found()


class Digest:
    """`digest` of content that comes, or goes to a file, part by part."""

    def __init__(self) -> None:
        self._state, self._size = xxhash.xxh64(), 0

    def update(self, part: Any) -> None:
        """Go on with a part: bytes, or what has some."""
        self._state.update(part)
        self._size += memoryview(part).nbytes

    def found(self) -> dict[str, Any]:
        """Return the digest of all parts so far."""
        return {"bytes": self._size, "xxh64": self._state.hexdigest()}


def commit(folder: Path, files: dict[str, dict[str, Any]], **content: Any) -> None:
    """Write the manifest that makes `folder` whole, once its files are on the disk."""
    for name in files:
        sync(folder / name)
    write_json(folder / MANIFEST, {"files": files, **content})


def read(folder: Path) -> dict[str, Any] | None:
    """Return a folder's manifest, or None where it was never committed, or is none any more."""
    try:
        return parsed((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def parsed(text: bytes) -> dict[str, Any] | None:
    """Return a manifest's content, or None where it is none."""
    try:
        content = json.loads(text)
        whole = all(isinstance(entry, dict) for entry in content["files"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return content if whole else None


def damage(folder: Path, manifest: dict[str, Any], share: tuple[int, int] = (0, 1)) -> str | None:
    """Return which file of a committed folder is missing or changed, in words, or None.

    Args:
        folder: the folder.
        manifest: its manifest.
        share: (this rank, ranks): each rank reads its part of the files.
    """
    rank, ranks = share
    for name in sorted(manifest["files"])[rank::ranks]:
        path, wanted = folder / name, manifest["files"][name]
        if not path.exists():
            return f"{path} is missing"
        if changed := difference(digest(path), wanted):
            return f"{path} {changed}"
    return None


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """Return in words that a file's digest is not its manifest's, or None."""
    if found == wanted:
        return None
    return f"is damaged: {found['bytes']:,} bytes that are not its manifest's"
