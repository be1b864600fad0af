"""Small indexes on disk, of no model."""

from pathlib import Path

import numpy as np

from livetrain.trainers.export import publish
from livetrain.trainers.recall.index import ABOUT, KEYS, VECTORS, write_keys
from livetrain.trainers.recall.nearest import Kind, Nearest
from livetrain.trainers.runtime import manifest

FIFTY = np.arange(50)


def unit(rows: int, width: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def write(folder: Path, vectors: np.ndarray, keys: np.ndarray, kind: Kind = "exact", effort: int = 1) -> Path:
    """Write a version's folder."""
    folder.mkdir(parents=True)
    index = Nearest.build(vectors, kind, "none")
    index.effort = effort
    index.write(folder / VECTORS)
    write_keys(folder / KEYS, keys)
    about = {"kind": kind, "width": vectors.shape[1], "recall": 1.0}
    about["key"] = {"column": "movie", "type": "string" if keys.dtype == object else "int64"}
    manifest.write_json(folder / ABOUT, about)
    manifest.commit(folder, {path.name: manifest.digest(path) for path in folder.iterdir()})
    return folder


def published(where: Path, version: str, folder: Path) -> Path:
    publish.publish(folder, str(where), version, keep=5)
    return where
