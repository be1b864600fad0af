"""Minutes as a stream leaves them, and a night before them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from livetrain.cluster import launch
from livetrain.configs.schema import Recipe
from livetrain.trainers.data.read import minutes
from livetrain.trainers.export import export
from tests import live, samples
from tests.live import close as minute

DAYS = [f"2022-05-0{day}" for day in range(1, 5)]
BEGIN = minutes.started("2022-05-03T00:00:00Z")  # the first second after the training days of the night of 05-04


def recipe(folder: Path, **changes: Any) -> Recipe:
    days = {"train": "2022-05-01..2022-05-02", "valid": "2022-05-03..2022-05-03", "test": "2022-05-04..2022-05-04"}
    made = {"data__days": days, "train__epochs": 1, "follow__path": str(folder / "live"), "train__log_every": 4}
    return samples.recipe(folder / "data", **{**made, "evaluate__group_by": None, "name": "din", **changes})


def days(folder: Path, names: list[str]) -> None:
    """Write partitions of `samples`."""
    for number, day in enumerate(names):
        made = samples.write(folder / "made" / day, rows=480, seed=number)
        shutil.copytree(made / "train", folder / "data" / f"date={day}")


def night(made: Recipe, runs: Path, day: str = DAYS[-1]) -> Path:
    """Train and export a night."""
    run = runs / f"{made.name}-{day}"
    launch.train(made.model_copy(update={"name": run.name}), runs)
    export.export(run)
    return run


def table(folder: Path, seed: int, rows: int, spoilt: bool = False) -> pa.Table:
    made = samples.write(folder / f"made/{seed}-{rows}", rows=rows, seed=seed) / "train/part-0.parquet"
    found = pq.read_table(made)
    if spoilt:  # the labels say the reverse
        label = pa.array(1 - found["label"].to_numpy(), pa.int8())
        found = found.set_column(found.schema.get_field_index("label"), "label", label)
    return found


def open_stream(folder: Path, lanes: int = 1) -> Path:
    return live.begin(folder / "live", {}, lanes)


def write(folder: Path, count: int, rows: int = 100, spoilt: tuple[int, ...] = (), first: int = 0) -> list[Path]:
    """Close so many minutes from `BEGIN` on."""
    stream = open_stream(folder)
    return [
        minute(stream, BEGIN + 60 * k, table(folder, 1000 + k, rows, k in spoilt)) for k in range(first, first + count)
    ]


def state(line: Path) -> dict[str, bytes]:
    """Return the files of a line's newest checkpoint."""
    newest = sorted((line / "checkpoints").glob("step-*"))[-1]
    return {path.name: path.read_bytes() for path in newest.glob("*.distcp")} | {
        "at": json.dumps(json.loads((newest / "manifest.json").read_text())["position"]["taken"]).encode()
    }
