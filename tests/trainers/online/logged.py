"""A log of requests, as a server would have written it of some samples."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from livetrain.configs.schema import Evaluate, Recipe
from livetrain.trainers.data.read.decode import Decoder
from livetrain.trainers.online import skew
from livetrain.trainers.online.request_log import Given


def rows_of(given: Given, lists: bool) -> list[Any]:
    """Return a feature's rows as a log has them."""
    if given.counts is None:
        rows = [[None if x != x else x for x in np.atleast_1d(row).tolist()] for row in given.values]
        return rows if given.values.ndim > 1 else [row[0] for row in rows]
    parts = [part.tolist() for part in np.split(given.values, np.cumsum(given.counts)[:-1])]
    return parts if lists else [part[0] if part else None for part in parts]


def write(
    folder: Path, samples: pa.Table, time: list[int], recipe: Recipe, mine: list[str], scores: Any = None
) -> pa.Table:
    """Write a request per sample, whose candidates are its own and those of the next two rows, and return the log."""
    bare = recipe.model_copy(update={"tasks": {}, "evaluate": Evaluate()})
    decoder = Decoder(bare, groups=False)
    given = skew._decoded(decoder, bare, samples.combine_chunks(), "samples")
    features = {name: rows_of(part, recipe.features[name].lists) for name, part in given.items()}
    for name, part in given.items():
        if part.beside is not None:
            features[f"{name}.weights"] = rows_of(Given(part.beside, part.counts), lists=True)
    number = len(samples)
    log: dict[str, Any] = {"request_id": [f"r{n}" for n in range(number)], "time": pa.array(time, pa.int64())}
    log |= {"model": ["din"] * number, "version": ["1"] * number, "fence": [3] * number, "stored": [["rate"]] * number}
    for name, rows in features.items():
        three = [[rows[(n + step) % number] for step in range(3)] for n in range(number)]
        log[name] = rows if name in mine else three
    log["order"] = pa.array([[1, 0]] * number, pa.list_(pa.int32()))  # the third was cut by the pre-rank
    log["prerank"] = [[0.5, 0.6, 0.1]] * number
    log["channel"] = [["hot", "towers", "hot"]] * number
    table = pa.table(log)
    for task, each in (scores or {}).items():
        table = table.append_column(f"scores.{task}", pa.array(each))
    (folder / "date=2026-11-29").mkdir(parents=True)
    pq.write_table(table, folder / "date=2026-11-29/120000-host-0.parquet")
    return table
