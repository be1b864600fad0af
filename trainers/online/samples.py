"""Samples that a log of requests is compared with: their files, and which columns tell rows apart."""

from pathlib import Path

import pyarrow.parquet as pq

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.checks.roles import settle
from livetrain.trainers.data.write import layout
from livetrain.trainers.online.skew import Asked


def files_of(folder: Path) -> list[Path]:
    """Return the Parquet files of a day or a split.

    Raises:
        BadInput: there is none.
    """
    found = sorted(path for path in folder.glob("*.parquet") if not path.name.startswith((".", "_")))
    if not found:
        days = sorted(path.name for path in folder.glob("date=*")) if folder.is_dir() else []
        hint = f", as {folder / days[-1]}" if days else ""
        raise BadInput(f"--samples {folder}: holds no Parquet; name a prepared day or a split{hint}")
    return found


def asked(folder: Path, file: Path, within_s: float, tolerance: dict[str, float]) -> Asked:
    """Return how rows are told apart, by the roles in dataset.json beside the folder, or as they are guessed.

    Raises:
        BadInput: no column tells the user, the item or the time.
    """
    roles, _ = settle(layout.finished(folder.resolve().parent) or {}, pq.read_schema(file))
    columns = {"group": roles.group, "item": roles.item, "time": roles.time}
    if missing := [role for role, column in columns.items() if column is None]:
        raise BadInput(
            f"--samples {folder}: no column is the {missing[0]}, by which a request is found again; say it in `roles` "
            "of dataset.json"
        )
    return Asked(roles.group or "", roles.item or "", roles.time or "", within_s, tolerance)
