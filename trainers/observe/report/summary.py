"""A run's figures as a table for the terminal."""

from collections.abc import Iterable, Iterator
from typing import Any

from rich.table import Table

from livetrain.modules.tasks.kind import Metric
from livetrain.modules.tasks.registry import metrics
from livetrain.trainers.evaluate.intervals import HIGH, LOW
from livetrain.trainers.observe.report.panels import finite_number

SPLITS = ("valid", "test")
ADMISSION = ("admitted", "evicted", "expired", "refused", "waiting")  # of a table of ids: what became of them


def summary_table(result: dict[str, Any]) -> Table:
    """Return the metrics of a result.json as a table: a row per metric, a column per task and split.

    Beyond two tasks a terminal is too narrow for that: then each task has rows of its own, and each split a column.
    Below stands what undefined metrics need, and what has picked the best checkpoint where its metric is undefined.
    """
    empty = [name for name in slices_in(result) if not any(result.get(f"{split}.{name}.rows") for split in SPLITS)]
    figures = {key: value for key, value in evaluated(result) if key[1].partition(".")[0] not in empty}
    tasks = list(dict.fromkeys(task for _, task, _ in figures))
    every = metrics(name for _, _, name in figures)
    splits = sorted({split for split, _, _ in figures}, key=lambda split: split != "valid")
    table = Table(title=result.get("name"), title_justify="left", header_style="bold")
    rows = {split: finite_number(result.get(f"{split}.rows")) for split in splits}
    table.caption, table.caption_justify = "\n".join([*_slices(result), *_reasons(result, figures)]) or None, "left"
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
                shown = [_shown(metric, figures[key]) + ends(result, key) if key in figures else "-" for key in keys]
                table.add_row(*([task] if task else []), metric.title, *shown)
        table.add_section()
    return table


def ends(result: dict[str, Any], key: tuple[str, str, str]) -> str:
    """Return the interval of a figure (split, task, metric), as ``" (.74-.76)"``, and "" where it has none."""
    low, high = interval(result, key)
    known = metrics([key[2]])[key[2]]
    return "" if low is None or high is None else f" ({low:{known.shown}}-{high:{known.shown}})"


def interval(result: dict[str, Any], key: tuple[str, str, str]) -> tuple[float | None, float | None]:
    """Return the ends of the interval of a figure (split, task, metric); None where it has none."""
    low, high = (finite_number(result.get(f"{'.'.join(key)}{end}")) for end in (LOW, HIGH))
    return low, high


def _slices(result: dict[str, Any]) -> list[str]:
    """Return a line per slice and split that was evaluated, on how many rows it has."""
    return [
        f"{split}: slice {name} has {result[f'{split}.{name}.rows']:,.0f} rows, {_percent(result, split, name)}"
        for split in SPLITS
        for name in slices_in(result)
        if f"{split}.{name}.rows" in result
    ]


def slices_in(names: Iterable[str]) -> list[str]:
    """Return the slices of which figures speak, given the names of all figures of a result or of a log line."""
    found = [name.removesuffix(".share").rpartition(".")[2] for name in names if name.endswith(".share")]
    return list(dict.fromkeys(found))


def _percent(result: dict[str, Any], split: str, name: str) -> str:
    share = finite_number(result[f"{split}.{name}.share"])
    return "no share of none" if share is None else f"{share:.1%} of the split"


def _reasons(result: dict[str, Any], figures: dict[tuple[str, str, str], float | None]) -> list[str]:
    """Say what undefined metrics need, and what has picked the best checkpoint in their place."""
    lacking: dict[str, dict[str, None]] = {}
    known = metrics(name for _, _, name in figures)
    for (_, _, name), value in figures.items():
        if value is None:
            lacking.setdefault(known[name].needs, {})[known[name].title] = None
    lines = [f"undefined: {', '.join(names)}; needed: {needs}" for needs, names in lacking.items()]
    by, selected = result.get("best_by"), result.get("selected")
    if lines and by != selected:
        instead = f"by {by}" if by else "as the last one"
        lines.append(f"best checkpoint chosen {instead}, for {selected} is undefined on valid")
    return lines


def table_lines(result: dict[str, Any]) -> list[str]:
    """Return a sentence per table on how full it is, and one on rows and lists that were left out, if any."""
    lines = []
    for name, table in result.get("tables", {}).items():  # what is fitted has none
        line = f"table {name}: {table['occupied']:,} of {table['rows']:,} rows in use ({table['occupancy']:.1%})"
        if table["collisions"] is None:
            line += "; the table is full, give it more rows"
        elif "refused" in table:
            line += " by ids of their own; " + ", ".join(f"{table[each]:,} {each}" for each in ADMISSION)
        elif table["collisions"]:
            line += f"; about {table['collisions']:,} of {table['ids']:,} ids share a row"
        lines.append(line)
    cut = ", ".join(f"{count:,} of {name}" for name, count in result.get("cut", {}).items() if count)
    if cut:
        lines.append(f"lists cut to max_length in training: {cut}")
    if result.get("skipped_rows"):
        lines.append(f"rows of unreadable row groups left out: {result['skipped_rows']:,}")
    return lines


def _shown(metric: Metric, value: float | None) -> str:
    return "undefined" if value is None else format(value, metric.shown)


def evaluated(result: dict[str, Any]) -> Iterator[tuple[tuple[str, str, str], float | None]]:
    """Yield ((split, task, metric), value) for the flat keys; of a slice the task is ``<slice>.<task>``."""
    known = metrics(key.rpartition(".")[2] for key in result)
    for key, value in result.items():
        split, _, rest = key.partition(".")
        task, _, metric = rest.rpartition(".")
        if split in SPLITS and task and metric in known:
            yield (split, task, metric), finite_number(value)
