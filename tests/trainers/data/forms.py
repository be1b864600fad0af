"""A column's values in every form in which Parquet may hold them, and small splits that hold such columns."""

import datetime
import decimal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import livetrain.modules.models  # noqa: F401
from livetrain.configs.schema import Recipe

SPLITS = ("train", "valid", "test")
ROWS = 72  # a split: enough for the leakage probes, which ask for 30 of each class
Make = Callable[[list[int | None]], pa.Array]


def typed(kind: pa.DataType) -> Make:
    return lambda numbers: pa.array(numbers, pa.int64()).cast(kind)


def made(convert: Callable[[int], Any], kind: pa.DataType | None = None) -> Make:
    """Return a maker of columns that convert each number; None stays."""
    return lambda numbers: pa.array([None if n is None else convert(n) for n in numbers], kind)


def a_list(kind: pa.DataType, convert: Callable[[int], Any] = int, two: bool = False) -> Make:
    """Return a maker of lists [n], or [n, 2 n]; of None an empty list where the number before it was odd, else null."""

    def make(numbers: list[int | None]) -> pa.Array:
        rows = []
        for n, before in zip(numbers, [0, *numbers], strict=False):
            empty = None if two or not (before or 0) % 2 else []
            rows.append(empty if n is None else [convert(n), convert(2 * n)] if two else [convert(n)])
        return pa.array(rows, kind)

    return make


def _nested(n: int) -> list[list[int]]:
    return [[n], [n, n]]


SCALARS: dict[str, Make] = {
    "int8": typed(pa.int8()),
    "int16": typed(pa.int16()),
    "int32": typed(pa.int32()),
    "int64": typed(pa.int64()),
    "uint8": typed(pa.uint8()),
    "uint16": typed(pa.uint16()),
    "uint32": typed(pa.uint32()),
    "uint64": typed(pa.uint64()),
    "float16": typed(pa.float16()),
    "float32": typed(pa.float32()),
    "float64": typed(pa.float64()),
    "bool": made(lambda n: n % 2 == 1, pa.bool_()),
    "bool8": lambda numbers: pa.array([n and n % 2 for n in numbers], pa.bool8()),
    "null": lambda numbers: pa.nulls(len(numbers)),
    "dictionary of int64": lambda numbers: pa.array(numbers, pa.int64()).dictionary_encode(),
    "string": made(str, pa.string()),
    "large_string": made(str, pa.large_string()),
    "string_view": made(str, pa.string_view()),
    "dictionary of string": lambda numbers: made(str, pa.string())(numbers).dictionary_encode(),
    "binary": made(lambda n: bytes([n]), pa.binary()),
    "fixed binary": made(lambda n: bytes([n, n]), pa.binary(2)),
    "uuid": made(lambda n: bytes([n] * 16), pa.uuid()),
    "decimal": made(decimal.Decimal, pa.decimal128(12, 2)),
    "timestamp": made(lambda n: n, pa.timestamp("ms", "UTC")),
    "nanoseconds": made(lambda n: n, pa.timestamp("ns")),
    "date": made(lambda n: datetime.date(2025, 5, 1) + datetime.timedelta(n), pa.date32()),
    "time": made(lambda n: n, pa.time64("us")),
    "duration": made(lambda n: n, pa.duration("ms")),
    "struct": made(lambda n: {"id": n, "weight": 0.5}),
    "map": made(lambda n: [(n, n)], pa.map_(pa.int64(), pa.int64())),
}
LISTS: dict[str, Make] = {
    "list<int64>": a_list(pa.list_(pa.int64())),
    "list<int8>": a_list(pa.list_(pa.int8())),
    "list<int32 not null>": a_list(pa.list_(pa.field("element", pa.int32(), nullable=False))),
    "list<uint32>": a_list(pa.list_(pa.uint32())),
    "large_list<int64>": a_list(pa.large_list(pa.int64())),
    "fixed_size_list<int64>[2]": a_list(pa.list_(pa.int64(), 2), two=True),
    "fixed_size_list<int32>[2]": a_list(pa.list_(pa.int32(), 2), two=True),
    "list<dictionary of int64>": a_list(pa.list_(pa.dictionary(pa.int32(), pa.int64()))),
    "list<null>": lambda numbers: pa.array([None if n is None else [] for n in numbers], pa.list_(pa.null())),
    "list of a null": lambda numbers: pa.array([[None] if n else None for n in numbers], pa.list_(pa.null())),
    "list_view<int64>": a_list(pa.list_view(pa.int64())),
    "list<uint64>": a_list(pa.list_(pa.uint64())),
    "list<string>": a_list(pa.list_(pa.string()), str),
    "large_list<string>": a_list(pa.large_list(pa.large_string()), str),
    "fixed_size_list<string>[2]": a_list(pa.list_(pa.string(), 2), str, two=True),
    "list<dictionary of string>": a_list(pa.list_(pa.dictionary(pa.int32(), pa.string())), str),
    "list<float>": a_list(pa.list_(pa.float32()), float),
    "list<float16>": a_list(pa.list_(pa.float16()), np.float16),
    "list<bool>": a_list(pa.list_(pa.bool_()), bool),
    "list<decimal>": a_list(pa.list_(pa.decimal128(12, 2)), decimal.Decimal),
    "list<struct>": a_list(pa.list_(pa.struct([("id", pa.int64()), ("weight", pa.float32())])), lambda n: {"id": n}),
    "list<list>": a_list(pa.list_(pa.list_(pa.int64())), lambda n: [n]),
}
FORMS = SCALARS | LISTS

SMALL = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "null", "dictionary of int64")
TEXTS = ("string", "large_string", "string_view", "dictionary of string")
TEXT_LISTS = ("list<string>", "large_list<string>", "fixed_size_list<string>[2]", "list<dictionary of string>")
NUMBERS = (*SMALL, "uint64", "float16", "float32", "float64", "bool")
ACCEPTED = {
    "id": (*SMALL, *TEXTS),
    "group": (*SMALL, *TEXTS),
    "sequence": (*list(LISTS)[: list(LISTS).index("list_view<int64>")], *TEXT_LISTS, "null"),
    "dense": NUMBERS,
    "label": NUMBERS,
    "sample weight": NUMBERS,
}
"""By its part in a recipe, the forms of a column that have one clear meaning."""

COLUMNS = {
    "id": "item",
    "group": "shop",
    "sequence": "history",
    "dense": "age",
    "label": "click",
    "sample weight": "worth",
    "unused": "spare",
}


def numbers(part: str, rows: int = ROWS) -> list[int | None]:
    """Return the numbers that a column of this part is made of, None where it may be null."""
    if part == "label":
        return [(n // 3) % 2 for n in range(rows)]
    if part in ("group", "sample weight"):
        return [n % 7 for n in range(rows)]
    return [None if n % 5 == 0 else (n * 13) % 60 for n in range(rows)]


def table(**changes: pa.Array) -> pa.Table:
    """Return a split's rows, some columns of which are given."""
    columns: dict[str, Any] = {
        "user": pa.array([n % 11 for n in range(ROWS)]),
        "item": pa.array(numbers("id")),
        "shop": pa.array(numbers("group")),
        "history": a_list(pa.list_(pa.int64()))(numbers("sequence")),
        "age": pa.array(numbers("dense"), pa.float64()),
        "click": pa.array(numbers("label"), pa.int8()),
        "worth": pa.array(numbers("sample weight"), pa.float32()),
    }
    return pa.table(columns | changes)


def write(folder: Path, **splits: list[pa.Table]) -> Path:
    """Write the splits, a file for each table; a split that is not given has one honest file."""
    for split in SPLITS:
        (folder / split).mkdir(parents=True, exist_ok=True)
        for number, part in enumerate(splits.get(split) or [table()]):
            pq.write_table(part, folder / split / f"part-{number}.parquet", row_group_size=40)
    return folder


def recipe(folder: Path, **task: Any) -> Recipe:
    """Return a recipe of all parts over these splits."""
    return Recipe.model_validate(
        {
            "name": "forms",
            "data": {"path": str(folder), "batch_size": 24, "shards": 2, "shuffle_window": 30},
            "features": {
                "user": {"type": "id", "table": "user"},
                "item": {"type": "id", "table": "item"},
                "history": {"type": "sequence", "table": "item", "max_length": 3},
                "age": {"type": "dense"},
            },
            "tables": {"user": {"rows": 11, "dim": 4, "hash": "modulo"}, "item": {"rows": 120, "dim": 4}},
            "model": {"kind": "lr"},
            "tasks": {"click": {"label": "click", "sample_weight": "worth"} | task},
            "evaluate": {"group_by": "shop"},
            "train": {"epochs": 1},
            "cluster": {"workers": 0, "device": "cpu"},
        }
    )
