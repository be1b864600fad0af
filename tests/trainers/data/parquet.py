"""Small Parquet splits and the recipes that read them."""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from livetrain.configs.schema import ModelConfig, Recipe

SCHEMA = pa.schema(
    [
        ("user", pa.int64()),
        ("movie", pa.int32()),
        ("history", pa.list_(pa.int64())),
        ("tags", pa.large_list(pa.int32())),
        ("age", pa.float64()),
        ("price", pa.int64()),
        ("click", pa.int8()),
        ("like", pa.float32()),
        ("unused", pa.string()),
    ]
)


def make_recipe(path: str | Path, *, features: dict[str, Any] | None = None, group: str | None = "user", **data: Any):
    """Return a recipe over SCHEMA's columns; `data` adds to its section of that name."""
    default = {
        "user": {"type": "id", "table": "users"},
        "age": {"type": "dense"},
        "history": {"type": "sequence", "table": "movies", "max_length": 3},
        "film": {"type": "id", "table": "movies", "column": "movie"},
        "tags": {"type": "sequence", "table": "tags", "max_length": 50},
        "cost": {"type": "dense", "column": "price"},
    }
    features = default if features is None else features
    tables = {
        feature["table"]: {"rows": 100, "dim": 4, "hash": "modulo" if feature["type"] == "bucket" else "mix"}
        for feature in features.values()
        if "table" in feature
    }
    return Recipe.model_validate(
        {
            "data": {"path": str(path), "batch_size": 12, "shards": 6, "shuffle_window": 4} | data,
            "features": features,
            "tables": tables,
            "model": ModelConfig(kind="none"),
            "tasks": {"click": {"label": "click"}, "liked": {"label": "like"}},
            "evaluate": {"group_by": group},
        }
    )


def make_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows with every kind of missing value, long lists and ids over the whole int64 range."""
    draw = random.Random(seed)

    def ids(bound: int, longest: int) -> list[int | None] | None:
        if draw.random() < 0.15:
            return None
        return [None if draw.random() < 0.1 else draw.randrange(-bound, bound) for _ in range(draw.randrange(longest))]

    def maybe(value: Any) -> Any:
        return None if draw.random() < 0.15 else value

    return [
        {
            "user": maybe(draw.randrange(-(2**63), 2**63)),
            "movie": maybe(draw.randrange(2**31)),
            "history": ids(2**63, 7),
            "tags": ids(2**31, 4),
            "age": maybe(draw.uniform(-5, 5)),
            "price": maybe(draw.randrange(1000)),
            "click": draw.randrange(2),
            "like": float(draw.randrange(2)),
            "unused": "x",
        }
        for _ in range(count)
    ]


def write_split(folder: Path, files: list[list[dict[str, Any]]], group: int = 5, schema: pa.Schema = SCHEMA, **options):
    """Write one Parquet file per list of rows, with row groups of `group` rows; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"part-{number}.parquet" for number in range(len(files))]
    for path, rows in zip(paths, files, strict=True):
        table = pa.Table.from_pylist(rows, schema=schema)
        pq.write_table(table, path, row_group_size=group, **options)
    return paths


def corrupt(path: Path, group: int, column: str) -> None:
    """Overwrite the middle of a column's bytes in one row group."""
    footer = pq.read_metadata(path)
    chunks = [footer.row_group(group).column(i) for i in range(footer.num_columns)]
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)
