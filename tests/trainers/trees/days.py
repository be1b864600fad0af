"""Days of clicks, and recipes and runs of trees that learn of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from livetrain.cluster import launch
from livetrain.configs.load import load_recipe
from livetrain.configs.schema import Recipe

DAYS = {"train": ("2026-01-01", "2026-01-02", "2026-01-03"), "valid": ("2026-01-04",), "test": ("2026-01-05",)}
ROWS = 600  # of a day


def drawn(seed: int, rows: int) -> dict[str, Any]:
    """Return rows whose clicks depend on a number, a category, an item, and on what the user had."""
    draw = np.random.default_rng(seed)
    item, city = draw.integers(0, 150, rows), draw.integers(0, 5, rows)
    number = draw.normal(size=rows)
    history = [draw.integers(0, 150, draw.integers(0, 6)).tolist() for _ in range(rows)]
    for row in np.flatnonzero(draw.random(rows) < 0.3):
        history[row].append(int(item[row]))
    had = np.array([own in past for own, past in zip(item, history, strict=True)])
    logit = np.sin(2 * number) + (city % 2) + np.cos(item) + 1.5 * had - 1.5
    click = draw.random(rows) < 1 / (1 + np.exp(-logit))
    number[draw.random(rows) < 0.1] = np.nan
    like = np.where(draw.random(rows) < 0.2, None, (click & (draw.random(rows) < 0.4)).astype(object))
    return {
        "item": item,
        "city": [None if one == 4 else f"city {one}" for one in city],
        "number": pa.array(number, pa.float32(), from_pandas=True),
        "history": history,
        "user": draw.integers(0, 60, rows),
        "seconds": np.exp(number.clip(-2, 2), where=~np.isnan(number), out=np.ones(rows)),
        "click": click.astype(np.int8),
        "like": pa.array([None if one is None else int(one) for one in like], pa.int8()),
    }


def written(folder: Path) -> Path:
    """Write all days into a folder, and return it."""
    for seed, day in enumerate(day for days in DAYS.values() for day in days):
        (folder / f"date={day}").mkdir()
        pq.write_table(pa.table(drawn(seed, ROWS)), folder / f"date={day}" / "part-0.parquet", row_group_size=200)
    return folder


def recipe(data: Path, model: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    return load_recipe(
        {
            "data": {
                "path": str(data),
                "days": {split: f"{days[0]}..{days[-1]}" for split, days in DAYS.items()},
                "batch_size": 192,
                "shards": 12,
            },
            "features": {
                "item": {"type": "id", "table": "item"},
                "city": {"type": "id"},
                "number": {"type": "dense"},
                "part": {"type": "bucket", "column": "number", "bounds": [-1, 0, 1]},
                "both": {"type": "cross", "of": ["city", "part"]},
                "history": {"type": "sequence", "table": "item", "max_length": 4},
            },
            "tables": {"item": {"rows": 256, "dim": 4, "hash": "modulo"}},
            "model": {"kind": "gbdt", "trees": 40, "leaves": 8, "leaf_rows": 10, **(model or {})},
            "tasks": {
                "click": {"label": "click"},
                "like": {"label": "like", "unknown": True},
                "seconds": {"label": "seconds", "kind": "regression"},
            },
            "evaluate": {"group_by": "user"},
            "cluster": {"workers": 0, "device": "cpu"},
            "export": {"parity_rows": 300},
            **changes,
        }
    )


def launched(settled: Recipe, runs: Path, name: str) -> Path:
    launch.train(settled.model_copy(update={"name": name}), runs)
    return runs / name
