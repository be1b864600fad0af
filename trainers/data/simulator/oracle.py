"""The best that any model can reach on a simulated world: labels ranked by their true probability."""

from datetime import date
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from rich.table import Table

from livetrain.configs.errors import BadInput
from livetrain.modules.metrics import binary
from livetrain.trainers.data.simulator.settings import TASKS
from livetrain.trainers.runtime import manifest


def measure(folder: Path, days: tuple[date, date] | None = None) -> dict[str, dict[str, float]]:
    """Return, per task, the AUC, GAUC and UAUC of the true probability, and the label's rate.

    Args:
        folder: what `livetrain data simulate` wrote.
        days: first and last day (UTC+8), both included; None takes all.

    Returns:
        {task: {"rows", "rate", "auc", "gauc", "uauc"}}, users being the groups.

    Raises:
        BadInput: the folder holds no simulated world, or none of its days is asked for.
    """
    columns = read(folder, ["user_id", *TASKS, *(f"p_{task}" for task in TASKS)], days)
    found = {}
    for task in TASKS:
        labels, true = columns[task], columns[f"p_{task}"]
        gauc, uauc = binary.gauc_and_uauc(labels, true, columns["user_id"])
        found[task] = {"rows": len(labels), "rate": float(labels.mean()), "auc": binary.auc(labels, true)}
        found[task] |= {"gauc": gauc, "uauc": uauc}
    return found


def read(folder: Path, columns: list[str], days: tuple[date, date] | None = None) -> dict[str, np.ndarray]:
    """Return columns of the truth, (n,) each, by day and time. Arguments and errors as `measure`'s."""
    parts = sorted((folder / "truth").glob("date=*/part-0.parquet"))
    if manifest.read(folder) is None or not parts:
        raise BadInput(f"{folder}: this folder holds no simulated world; write one with livetrain data simulate")
    named = {date.fromisoformat(part.parent.name.removeprefix("date=")): part for part in parts}
    first, last = days or (min(named), max(named))
    chosen = [part for day, part in named.items() if first <= day <= last]
    if not chosen:
        raise BadInput(f"--days {first}..{last}: {folder} has the days {min(named)}..{max(named)}")
    tables = [pq.read_table(part, columns=columns, partitioning=None) for part in chosen]
    return {name: np.concatenate([table[name].to_numpy() for table in tables]) for name in columns}


def oracle_table(found: dict[str, dict[str, float]]) -> Table:
    """Return `measure`'s figures for a terminal."""
    rows = next(iter(found.values()))["rows"]
    shown = Table("task", "rate", "AUC", "GAUC", "UAUC", title=f"Best reachable on {rows:,} exposures")
    for column in shown.columns[1:]:
        column.justify = "right"
    for task, figures in found.items():
        shown.add_row(task, f"{figures['rate']:.4f}", *(f"{figures[name]:.4f}" for name in ("auc", "gauc", "uauc")))
    return shown


def parse_days(text: str | None) -> tuple[date, date] | None:
    """Return the days of "2025-06-05..2025-06-07", or of one day, both ends included.

    Raises:
        BadInput: they are no such days.
    """
    if text is None:
        return None
    first, _, last = text.partition("..")
    try:
        days = date.fromisoformat(first), date.fromisoformat(last or first)
    except ValueError:
        raise BadInput(f"--days {text}: write days such as 2025-06-05..2025-06-07") from None
    if days[0] > days[1]:
        raise BadInput(f"--days {text}: the first day is after the last")
    return days
