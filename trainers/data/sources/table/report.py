"""What dataset.json tells of the samples, and the table that a preparation ends with."""

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from livetrain.configs.spec import Spec
from livetrain.trainers.data.write import layout


def parts(spec: Spec, done: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return the rows of each day or split.

    Args:
        spec: of the samples.
        done: number of a period, of a day the day's -> its manifest.
    """
    reports = {number: made.get("report", {}) for number, made in sorted(done.items())}
    if spec.split.by == "day":
        return {
            "days": {
                str(datetime.date.fromordinal(number)): {"rows": report.get("rows of day", 0)}
                for number, report in reports.items()
                if report
            }
        }
    return {
        "splits": {
            split: {"rows": sum(report.get(f"rows of {split}", 0) for report in reports.values())}
            for split in layout.SPLITS
        }
    }


def columns(spec: Spec, out: Path) -> dict[str, Any]:
    """Return the columns and the roles that they play."""
    folders = out.glob("date=*") if spec.split.by == "day" else [out / "train"]
    path = next((path for folder in folders for path in sorted(folder.glob("*.parquet"))), None)
    if path is None:
        return {}
    schema = pq.read_schema(path)
    features = [field for field in schema if field.name not in (*spec.labels, "timestamp")]
    return {
        "columns": {field.name: str(field.type) for field in schema},
        "roles": {
            "time": "timestamp" if spec.time else None,
            "group": spec.user,
            "item": spec.item,
            "labels": list(spec.labels),
            "ids": [field.name for field in features if pa.types.is_integer(field.type)],
            "sequences": [
                field.name
                for field in features
                if pa.types.is_list(field.type) and pa.types.is_integer(field.type.value_type)
            ],
            "dense": [field.name for field in features if pa.types.is_floating(field.type)],
        },
    }


def rows_table(prepared: dict[str, Any]) -> Table:
    """Return what dataset.json reports: rows by split or day, label rates, and every count that is not zero."""
    parts = prepared.get("splits") or prepared["days"]
    made = Table(title=f"{prepared['dataset']}: {sum(part['rows'] for part in parts.values()):,} rows")
    made.add_column("what")
    made.add_column("count", justify="right")
    for name, part in parts.items():
        made.add_row(f"rows of {name}", f"{part['rows']:,}")
    made.add_section()
    counts = prepared["report"]["raw"] | prepared["report"]["rows"]
    for words, count in counts.items():
        known = counts.get(f"{words.removesuffix(': 1')}: 0 or 1")
        if words.endswith(": 1") and known:
            made.add_row(f"{words} of {known:,}", f"{count:,} ({count / known:.2%})")
        elif count and not words.startswith("rows of ") and not words.endswith(": 0 or 1"):
            made.add_row(words, f"{count:,}")
    return made
