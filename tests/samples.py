"""A small dataset on disk with something to learn in it."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from livetrain.configs.schema import Recipe


def write(folder: Path, rows: int = 2000, seed: int = 0) -> Path:
    """Write train/, valid/ and test/ of `rows`, `rows`/4 and `rows`/4 samples."""
    for number, (split, count) in enumerate({"train": rows, "valid": rows // 4, "test": rows // 4}.items()):
        rng = np.random.default_rng([seed, number])
        (folder / split).mkdir(parents=True)
        user, movie = rng.integers(0, 100, count), rng.integers(-(2**62), 2**62, 50)[rng.integers(0, 50, count)]
        lengths = rng.integers(0, 9, count)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        history = rng.integers(-(2**62), 2**62, int(offsets[-1]))
        rating = rng.integers(1, 6, int(offsets[-1]))
        rate = rng.normal(3, 2, count)
        mean = np.array([rating[a:b].mean() if b > a else 3 for a, b in zip(offsets, offsets[1:], strict=False)])
        score = 0.8 * (rate - 3) + (mean - 3) + np.where(user % 3 == 0, 1.0, -0.5)
        label = rng.random(count) < 1 / (1 + np.exp(-score))
        table = {
            "user": pa.array(user),
            "movie": pa.array(movie, mask=rng.random(count) < 0.05),
            "history": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(history)),
            "rating": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(rating)),
            "rate": pa.array(rate, mask=rng.random(count) < 0.1),
            "label": pa.array(label.astype(np.int8)),
            "like": pa.array((label & (rng.random(count) < 0.4)).astype(np.int8)),  # only after a click
            "watch": pa.array(np.where(label, np.exp(rng.normal(2, 0.5, count) + 0.3 * score), 0).astype(np.float32)),
            "gift": pa.array(np.where(label, rng.integers(0, 20, count), 0), mask=rng.random(count) < 0.3),  # late
            "worth": pa.array(rng.random(count).astype(np.float32)),
        }
        pq.write_table(pa.table(table), folder / split / "part-0.parquet", row_group_size=128)
    return folder


MULTI_TASK: dict[str, Any] = {
    "tasks": {
        "click": {"label": "label"},
        "like": {"label": "like", "sample_weight": "worth"},
        "watch": {"label": "watch", "kind": "watch_time", "weight": 0.1},
        "gift": {"label": "gift", "kind": "regression", "unknown": True},
    },
    "model": {
        "attention": [{"query": ["movie"], "events": ["history"], "side": ["rating"]}],
        "attention_units": [8],
        "tower_units": [8],
    },
}
"""Changes to `recipe`: tasks of every kind, and what every multi-task model shares; `model.kind` is left to say."""


def recipe(data: Path, **changes: Any) -> Recipe:
    """A small DIN for the dataset, trained in this process; `changes` are dotted keys with __ for dots."""
    content: dict[str, Any] = {
        "name": "small",
        "data": {"path": str(data), "batch_size": 96, "shards": 12, "shuffle_window": 100},
        "features": {
            "user": {"type": "id", "table": "user"},
            "movie": {"type": "id", "table": "movie"},
            "history": {"type": "sequence", "table": "movie", "max_length": 6},
            "rating": {"type": "sequence", "table": "rating", "max_length": 6},
            "rate": {"type": "dense"},
        },
        "tables": {
            "user": {"rows": 100, "dim": 8, "hash": "modulo", "sharding": "row_wise"},
            "movie": {"rows": 512, "dim": 8, "sharding": "table_wise"},
            "rating": {"rows": 6, "dim": 4, "hash": "modulo", "sharding": "table_wise"},
        },
        "model": {
            "kind": "din",
            "attention": [{"query": ["movie"], "events": ["history"], "side": ["rating"]}],
            "attention_units": [8],
            "units": [16],
        },
        "tasks": {"click": {"label": "label"}},
        "optimizers": {"sparse": {"lr": 0.05}, "dense": {"lr": 0.01}},
        "train": {"epochs": 2, "log_every": 1, "evaluate_every": 0.5},
        "evaluate": {"group_by": "user"},
        "cluster": {"workers": 0, "device": "cpu"},
        "export": {"after_training": False},
    }
    for dotted, value in changes.items():
        place, keys = content, dotted.split("__")
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = value
    return Recipe.model_validate(content)
