"""The table that a preparation ends with."""

from typing import Any

from rich.table import Table


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
