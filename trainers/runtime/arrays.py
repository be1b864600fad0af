"""Arrays in a folder, a file each, that are mapped when they are read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from livetrain.trainers.runtime import manifest

_ENDING = ".npy"


def write(folder: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Write arrays into a folder that is there; return the digests of their files, for `manifest.commit`."""
    for name, array in arrays.items():
        np.save(folder / f"{name}{_ENDING}", np.ascontiguousarray(array), allow_pickle=False)
    return {f"{name}{_ENDING}": manifest.digest(folder / f"{name}{_ENDING}") for name in arrays}


def read(folder: Path) -> dict[str, np.ndarray]:
    """Return a folder's arrays, by name; their numbers are read where they are used.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write(Path(folder), {"items": np.arange(3)})
        ...     read(Path(folder))["items"].tolist()
        [0, 1, 2]
    """
    return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(folder.glob(f"*{_ENDING}"))}
