"""A run's figures as a table for the terminal."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from livetrain.trainers.evaluate import selection
from livetrain.trainers.evaluate.retrieval import AT
from livetrain.trainers.observe.report.panels import finite_number

SPLITS = ("valid", "test")
METRICS = {
    "auc": "AUC",
    "auc_error": "AUC error at most",
    "gauc": "GAUC",
    "uauc": "UAUC",
    "log_loss": "log loss",
    "ne": "NE",
    "pcoc": "PCOC",
    "positives": "positives",
    "xauc": "xAUC",
    "xauc_error": "xAUC error at most",
    "mae": "MAE",
    "rmse": "RMSE",
    **{f"{metric}_{k}": f"{title}@{k}" for metric, title in (("recall", "recall"), ("ndcg", "NDCG")) for k in AT},
    "items": "items",
    "queries": "rows ranked",
}


def summary_table(result: dict[str, Any]) -> Table:
    """Return the metrics of a result.json as a table: a row a metric, a column a task and split.

    Beyond two tasks a terminal is too narrow for that: then each task has rows of its own, and each split a column.
    Below stands what undefined metrics need, and what has picked the best checkpoint where its metric is undefined.
    """
    figures, tasks = dict(_figures(result)), _tasks(result)
    splits = sorted({split for split, _, _ in figures}, key=lambda split: split != "valid")
    table = Table(title=result.get("name"), title_justify="left", header_style="bold")
    rows = {split: finite_number(result.get(f"{split}.rows")) for split in splits}
    heads = {split: split if rows[split] is None else f"{split}\n{rows[split]:,.0f} rows" for split in splits}
    known = [(task, split) for task in tasks for split in splits if any((split, task, m) in figures for m in METRICS)]
    if len(tasks) > 2:
        blocks = [(task, [(task, split) for split in splits]) for task in tasks]
        names = ["task", "metric", *heads.values()]
    else:
        blocks = [("", known)]
        names = ["metric", *(f"{task}\n{heads[split]}" for task, split in known)]
    for place, name in enumerate(names):
        table.add_column(name, justify="left" if place < len(names) - len(blocks[0][1]) else "right")
    for task, columns in blocks:
        for metric, name in METRICS.items():
            keys = [(split, of, metric) for of, split in columns]
            if any(key in figures for key in keys):
                shown = [_cell(metric, figures[key]) if key in figures else "-" for key in keys]
                table.add_row(*([task] if task else []), name, *shown)
        table.add_section()
    table.caption, table.caption_justify = _reasons(result, figures), "left"
    return table


def _reasons(result: dict[str, Any], figures: dict[tuple[str, str, str], float | None]) -> str | None:
    """Say what undefined metrics need, and what has picked the best checkpoint in their place."""
    lacking: dict[str, dict[str, None]] = {}
    for (_, _, metric), value in figures.items():
        if value is None:
            lacking.setdefault(selection.needs(metric), {})[METRICS[metric]] = None
    lines = [f"undefined: {', '.join(names)}; needed: {needs}" for needs, names in lacking.items()]
    by, selected = result.get("best_by"), result.get("selected")
    if lines and by != selected:
        instead = f"by {by}" if by else "as the last one"
        lines.append(f"best checkpoint chosen {instead}, for {selected} is undefined on valid")
    return "\n".join(lines) or None


def table_lines(result: dict[str, Any]) -> list[str]:
    """Return a sentence a table on how full it is, and one on rows and lists that were left out, if any."""
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


def _cell(metric: str, value: float | None) -> str:
    if value is None:
        return "undefined"
    if metric in ("auc_error", "xauc_error"):
        return f"{value:.1e}"
    return f"{value:,.0f}" if metric in ("positives", "items", "queries") else f"{value:.4f}"


def _figures(result: dict[str, Any]) -> Iterator[tuple[tuple[str, str, str], float | None]]:
    """Yield ((split, task, metric), value) for the flat keys; a task's name may hold dots."""
    for key, value in result.items():
        split, _, rest = key.partition(".")
        task, _, metric = rest.rpartition(".")
        if split in SPLITS and task and metric in METRICS:
            yield (split, task, metric), finite_number(value)


def _tasks(result: dict[str, Any]) -> list[str]:
    """Return the tasks that were evaluated, in the result's order."""
    return list(dict.fromkeys(task for (_, task, _), _ in _figures(result)))
