"""Folders that are either whole or not there: a manifest of sizes and hashes, written last, is the commit."""

import glob
import json
import math
import os
from pathlib import Path
from typing import Any

import xxhash

from trainers import scratch

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
    """Write a JSON file so that a reader sees the old one or the new one, never a part."""
    write_text(path, json.dumps(finite(content), indent=1, allow_nan=False))


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader, and whatever starts after a kill, sees the old one or the new one."""
    beginning = f".{path.name}."
    for left in path.parent.glob(f"{glob.escape(beginning)}*{DRAFT}"):
        if scratch.ended(left.name.removeprefix(beginning).removesuffix(DRAFT)):
            left.unlink(missing_ok=True)  # of a process that was killed
    draft = path.with_name(f"{beginning}{scratch.label()}{DRAFT}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def digest(path: Path) -> dict[str, Any]:
    """Return a file's size in bytes and its xxh64, as a manifest keeps them."""
    state = xxhash.xxh64()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            state.update(chunk)
    return {"bytes": path.stat().st_size, "xxh64": state.hexdigest()}


def commit(folder: Path, files: dict[str, dict[str, Any]], **content: Any) -> None:
    """Write the manifest that makes `folder` whole."""
    write_json(folder / MANIFEST, {"files": files, **content})


def read(folder: Path) -> dict[str, Any] | None:
    """Return a folder's manifest, or None where it was never committed, or is none any more."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("files"), dict) else None


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
        found = digest(path)
        if found != wanted:
            return f"{path} is damaged: {found['bytes']} bytes, xxh64 {found['xxh64']}, not as its manifest says"
    return None
