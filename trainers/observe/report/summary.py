"""A run's figures as a table for the terminal."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from livetrain.modules.tasks.kind import Metric
from livetrain.modules.tasks.registry import metrics
from livetrain.trainers.observe.report.panels import finite_number

SPLITS = ("valid", "test")


def summary_table(result: dict[str, Any]) -> Table:
    """Return the metrics of a result.json as a table: a row per metric, a column per task and split.

    Beyond two tasks a terminal is too narrow for that: then each task has rows of its own, and each split a column.
    Below stands what undefined metrics need, and what has picked the best checkpoint where its metric is undefined.
    """
    figures, tasks, every = dict(_figures(result)), _tasks(result), metrics()
    splits = sorted({split for split, _, _ in figures}, key=lambda split: split != "valid")
    table = Table(title=result.get("name"), title_justify="left", header_style="bold")
    rows = {split: finite_number(result.get(f"{split}.rows")) for split in splits}
    heads = {split: split if rows[split] is None else f"{split}\n{rows[split]:,.0f} rows" for split in splits}
    measured = {(task, split) for split, task, _ in figures}
    known = [(task, split) for task in tasks for split in splits if (task, split) in measured]
    if len(tasks) > 2:
        blocks = [(task, [(task, split) for split in splits]) for task in tasks]
        names = ["task", "metric", *heads.values()]
    else:
        blocks = [("", known)]
        names = ["metric", *(f"{task}\n{heads[split]}" for task, split in known)]
    for place, name in enumerate(names):
        table.add_column(name, justify="left" if place < len(names) - len(blocks[0][1]) else "right")
    for task, columns in blocks:
        for name, metric in every.items():
            keys = [(split, of, name) for of, split in columns]
            if any(key in figures for key in keys):
                shown = [_shown(metric, figures[key]) if key in figures else "-" for key in keys]
                table.add_row(*([task] if task else []), metric.title, *shown)
        table.add_section()
    table.caption, table.caption_justify = _reasons(result, figures), "left"
    return table


def _reasons(result: dict[str, Any], figures: dict[tuple[str, str, str], float | None]) -> str | None:
    """Say what undefined metrics need, and what has picked the best checkpoint in their place."""
    lacking: dict[str, dict[str, None]] = {}
    known = metrics()
    for (_, _, name), value in figures.items():
        if value is None:
            lacking.setdefault(known[name].needs, {})[known[name].title] = None
    lines = [f"undefined: {', '.join(names)}; needed: {needs}" for needs, names in lacking.items()]
    by, selected = result.get("best_by"), result.get("selected")
    if lines and by != selected:
        instead = f"by {by}" if by else "as the last one"
        lines.append(f"best checkpoint chosen {instead}, for {selected} is undefined on valid")
    return "\n".join(lines) or None


def table_lines(result: dict[str, Any]) -> list[str]:
    """Return a sentence per table on how full it is, and one on rows and lists that were left out, if any."""
    lines = []
    for name, table in result["tables"].items():
        line = f"table {name}: {table['occupied']:,} of {table['rows']:,} rows in use ({table['occupancy']:.1%})"
        if table["collisions"] is None:
            line += "; the table is full, give it more rows"
        elif table["collisions"]:
            line += f"; about {table['collisions']:,} of {table['ids']:,} ids share a row"
        lines.append(line)
    cut = ", ".join(f"{count:,} of {name}" for name, count in result["cut"].items() if count)
    if cut:
        lines.append(f"lists cut to max_length in training: {cut}")
    if result["skipped_rows"]:
        lines.append(f"rows of unreadable row groups left out: {result['skipped_rows']:,}")
    return lines


def _shown(metric: Metric, value: float | None) -> str:
    return "undefined" if value is None else format(value, metric.shown)


def _figures(result: dict[str, Any]) -> Iterator[tuple[tuple[str, str, str], float | None]]:
    """Yield ((split, task, metric), value) for the flat keys; a task's name may hold dots."""
    known = metrics()
    for key, value in result.items():
        split, _, rest = key.partition(".")
        task, _, metric = rest.rpartition(".")
        if split in SPLITS and task and metric in known:
            yield (split, task, metric), finite_number(value)


def _tasks(result: dict[str, Any]) -> list[str]:
    """Return the tasks that were evaluated, in the result's order."""
    return list(dict.fromkeys(task for (_, task, _), _ in _figures(result)))
