"""Users of a few tastes, each with a history of her taste's items, and recipes that fit them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from livetrain.configs.schema import Recipe

ITEMS, GROUPS, DIM = 40, 4, 8


def write(folder: Path, users: int = 120) -> Path:
    """Write users of four groups, each with a history of her group's items and one more of them."""
    draw = np.random.default_rng(0)
    for split, count in (("train", users), ("valid", users // 2), ("test", users // 2)):
        taste = draw.integers(0, GROUPS, count)
        own = [draw.permutation(ITEMS // GROUPS)[:6] * GROUPS + group for group in taste]
        table = {
            "user": pa.array(np.arange(count) % (users // 3)),
            "item": pa.array([int(items[-1]) for items in own]),
            "history": pa.array([items[:-1].tolist() for items in own]),
            "seconds": pa.array(draw.uniform(0, 60, count)),
            "label": pa.array((draw.random(count) < 0.9).astype(np.int8)),
        }
        (folder / split).mkdir(parents=True)
        pq.write_table(pa.table(table), folder / split / "part-0.parquet", row_group_size=16)
    return folder


def recipe(data: Path, **changes: Any) -> Recipe:
    content: dict[str, Any] = {
        "name": "factors",
        "data": {"path": str(data), "batch_size": 48, "shards": 12},
        "features": {
            "item": {"type": "id", "table": "item"},
            "history": {"type": "sequence", "table": "item", "max_length": 5},
        },
        "tables": {"item": {"rows": 64, "dim": DIM, "hash": "modulo", "sharding": "row_wise"}},
        "model": {"kind": "als", "key": "item", "history": "history", "unobserved": 0.2, "regularisation": 0.01},
        "tasks": {"click": {"label": "label", "kind": "retrieval"}},
        "train": {"epochs": 3},
        "evaluate": {"seen": "history"},
        "cluster": {"workers": 0, "device": "cpu"},
        "export": {"after_training": False},
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        place = content
        for name in path:
            place = place.setdefault(name, {})
        place[last] = value
    return Recipe.model_validate(content)
