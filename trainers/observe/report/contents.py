"""What a run's report shows: from config.yaml, metrics.jsonl and result.json, whichever are there, to a `Page`."""

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from livetrain.configs.errors import BadInput
from livetrain.modules.tasks.registry import leading, metrics
from livetrain.trainers.observe.report.gradients import gradient_panels
from livetrain.trainers.observe.report.page import Band, Page, Part, Stack, Table
from livetrain.trainers.observe.report.panels import finite_number, task_style
from livetrain.trainers.observe.report.summary import ADMISSION, ends, summary_table, table_lines
from livetrain.trainers.observe.report.tasks import Told, band
from livetrain.trainers.runtime import runlog

PARTS = {  # of a step, in their order; tables are blue and the network is green, lighter on the way back
    "data_wait": "#D55E00",
    "id_exchange": "#CC79A7",
    "embedding_forward": "#0072B2",
    "dense_forward": "#009E73",
    "dense_backward": "#80CEB9",
    "embedding_backward": "#80B8D8",
    "all_reduce": "#E69F00",
    "optimizer": "#7A6BB0",
    "rest": "#C8C8C8",
}
EXPORT = "export/signature.json"
FILES = {  # in a run's folder, and what they hold
    "config.yaml": "the recipe with every default",
    "metrics.jsonl": "the log",
    "result.json": "all figures",
    "warm_start.txt": "what the run began with of another one",
    "spectrum.png": "what the frequency filters kept",
    "profile/operators.txt": "the profile",
    EXPORT: "what the exported model takes and gives",
}
MOST_NOTES = 200


def contents(run: Path) -> Page:
    """Return what the report of a run shows; of a run that still trains, what is known by now.

    Args:
        run: the run's folder.

    Raises:
        BadInput: the folder holds no run, or its result.json is no JSON.
    """
    log, result = runlog.read(run), _read_result(run / "result.json")
    told = Told(_recipe(run / "config.yaml"), _lines(log), result)
    if not told.lines and not result:
        raise BadInput(f"{run}: neither metrics.jsonl nor result.json is there; name a folder that a run has written")
    bands = [band(told, task, number) for number, task in enumerate(told.tasks)]
    gates, combined = _gates(told.lines), gradient_panels(told.lines)
    bands += [Band("", [gates])] if gates else []
    bands += [Band("", combined)] if combined else []
    notes = [line["text"] for line in log if line.get("kind") == "note" and isinstance(line.get("text"), str)]
    coming = {EXPORT} if (told.recipe.get("export") or {}).get("after_training") else set()  # it follows the report
    return Page(
        name=run.resolve().name,
        facts=_facts(told, log),
        figures=_figures_first(told),
        bands=[*bands, Band("", [_times(told.lines)])],
        tables=_tables(told),
        notes=notes[:MOST_NOTES],
        links=[(name, what) for name, what in FILES.items() if name in coming or (run / name).exists()],
    )


def _lines(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a run's training and evaluation lines in order of steps; of a repeated step the last one counts."""
    lines = {
        (line["kind"], line.get("split"), line["step"]): line
        for line in log
        if isinstance(line.get("step"), int) and line.get("kind") in ("train", "eval")
    }
    return sorted(lines.values(), key=lambda line: line["step"])


def _read_result(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path}: this is no JSON ({error}); run the evaluation again to rewrite it") from None


def _recipe(path: Path) -> dict[str, Any]:
    """Return a run's recipe as plain values: to show it needs none of the plugins that it may name."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (FileNotFoundError, yaml.YAMLError):
        return {}


def _facts(told: Told, log: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return what the run is, by what it was made and when, as far as it is known."""
    recipe, result, facts = told.recipe, told.result, {}
    sections = {name: recipe.get(name) or {} for name in ("data", "model", "optimizers", "train", "cluster")}
    dense = sections["optimizers"].get("dense") or {}
    facts["model"] = sections["model"].get("kind")
    if recipe:
        counts = [(len(recipe.get(name) or ()), name) for name in ("features", "tables", "tasks")]
        parts = [f"{count} {name if count != 1 else name[:-1]}" for count, name in counts]
        parts += [f"batch {sections['data'].get('batch_size')}", f"{dense.get('kind')} {dense.get('lr')}"]
        facts["recipe"] = ", ".join(part for part in parts if "None" not in part)
    facts["data"] = sections["data"].get("path")
    facts["workers"] = _workers(result, sections["cluster"])
    facts["device"] = result.get("device", sections["cluster"].get("device"))
    last = max((line["step"] for line in told.lines), default=result.get("step"))
    best = result.get("best_step")
    facts["steps"] = last if best in (None, last) or last is None else f"{last:,} (best {best:,})"
    facts["time"] = None if (wall := finite_number(result.get("wall_s"))) is None else spent(wall)
    speeds = [result.get("rows_per_s"), *(line.get("rows_per_s") for line in reversed(told.lines))]
    speed = next((value for value in map(finite_number, speeds) if value is not None), None)
    facts["rows/s"] = None if speed is None else f"{speed:,.0f}"
    if ended := max((line["time"] for line in log if finite_number(line.get("time")) is not None), default=None):
        facts["ended"] = datetime.fromtimestamp(ended, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return [(name, f"{value:,}" if isinstance(value, int) else str(value)) for name, value in facts.items() if value]


def _workers(result: dict[str, Any], cluster: dict[str, Any]) -> int | str | None:
    """Return how many workers a run had, in their order where these changed, or is to have."""
    counts = [part["workers"] for part in result.get("workers_by_step") or ()]
    if len(counts) > 1:
        return ", ".join(map(str, counts[:-1])) + f" and {counts[-1]}"
    asked = result.get("workers", cluster.get("workers"))
    if isinstance(asked, dict):
        return f"{asked.get('min')} to {asked.get('max')}"
    return None if asked is None else max(asked, 1)


def spent(seconds: float) -> str:
    """Return how long something took, in the units in which people say it.

    Example:
        >>> [spent(seconds) for seconds in (12.3, 754, 11100)]
        ['12 s', '12 min 34 s', '3 h 05 min']
    """
    whole = round(seconds)
    minutes, hours = whole // 60, whole // 3600
    if hours:
        return f"{hours} h {minutes % 60:02} min"
    return f"{minutes} min {whole % 60:02} s" if minutes else f"{whole} s"


def _figures_first(told: Told) -> Table | None:
    """Return each task's headline figures of one split, with their intervals; None where none was evaluated."""
    split, figures, known = told.split, told.figures, metrics(name for _, _, name in told.figures)
    tasks = [task for task in told.tasks if any((of, own) == (split, task) for of, own, _ in figures)]
    if not tasks:
        return None
    first = [leading([name for of, own, name in figures if (of, own) == (split, task)]) for task in tasks]
    names = dict.fromkeys(name for name in first if name)
    names |= dict.fromkeys(n for n, m in known.items() if m.headline or n in ("pcoc", "positives"))
    names = {name: None for name in names if any((split, task, name) in figures for task in tasks)}
    rows = []
    for task in tasks:
        keys = {name: (split, task, name) for name in names}
        words = [
            "-" if key not in figures
            else "undefined" if (value := figures[key]) is None
            else format(value, known[name].shown) + ends(told.result, key)
            for name, key in keys.items()
        ]  # fmt: skip
        rows.append([task, *words])
    count = finite_number(told.result.get(f"{split}.rows"))
    title = f"{split}, {count:,.0f} rows" if count is not None else split
    return Table(title, ["task", *(known[name].title for name in names)], rows)


def _gates(lines: list[dict[str, Any]]) -> Stack | None:
    """Show the newest mean weight of each expert, and its entropy, by gate; None for a network without gates."""
    newest: dict[str, Any] = next((line for line in reversed(lines) if line["kind"] == "train"), {})
    found: dict[str, dict[str, float]] = {}
    for key, value in newest.items():
        gate, _, expert = key.removeprefix("gate.").rpartition(".")
        if key.startswith("gate.") and finite_number(value) is not None:
            found.setdefault(gate, {})[expert] = float(value)
    if not found:
        return None
    names = list(dict.fromkeys(name for experts in found.values() for name in experts if name != "entropy"))
    rows = []
    for gate, experts in found.items():
        parts = [
            Part(f"{name} {share:.2f}", share, task_style(names.index(name))["color"])
            for name, share in experts.items()
            if name != "entropy"
        ]
        rows.append((gate, parts, f"entropy {experts.get('entropy', math.nan):.2f}"))
    about = "mean weight of each expert at the last logged step; entropy 1: all alike, 0: one per row"
    return Stack("Use of experts", about, rows)


def _times(lines: list[dict[str, Any]]) -> Stack:
    """Show a step's mean time as one bar, cut into its parts in their order."""
    title = "Where a step's time goes"
    timed = [line for line in lines if finite_number(line.get("ms.step")) is not None]
    steps = np.diff([0] + [line["step"] for line in timed])
    if len(timed) > 1:
        timed, steps = timed[1:], steps[1:]  # the first steps also build what the later ones use
    if not timed:
        return Stack(title, missing="no step times logged")
    whole, *parts = (
        np.average([finite_number(line.get(f"ms.{part}")) or 0.0 for line in timed], weights=steps)
        for part in ("step", *list(PARTS)[:-1])
    )
    spans = zip(PARTS.items(), [*parts, max(whole - sum(parts), 0.0)], strict=True)
    cut = [Part(f"{part.replace('_', ' ')} {span / whole:.0%}", float(span), color) for (part, color), span in spans]
    return Stack(f"{title}: {whole:,.1f} ms", "mean of rank 0", [("", cut, "")], key=True)


def _tables(told: Told) -> list[Table]:
    """Return all figures by task and split, and how full the embedding tables are."""
    result, out = told.result, []
    summary = summary_table(result)
    if summary.columns:
        columns = [str(column.header).replace("\n", ", ") for column in summary.columns]
        rows = [list(map(str, row)) for row in zip(*(column.cells for column in summary.columns), strict=True)]
        left = sum(name in ("task", "metric") for name in columns)
        out.append(Table("All figures", columns, rows, str(summary.caption or ""), left))
    if tables := result.get("tables"):
        kept = ADMISSION if any("refused" in table for table in tables.values()) else ()
        rows = [
            [
                name, str((result.get("plan") or {}).get(name, {}).get("sharding", "")).replace("_", " "),
                f"{table['rows']:,}", f"{table['occupied']:,}", f"{table['occupancy']:.1%}",
                "table is full" if table["collisions"] is None else f"{table['collisions']:,}",
                *(f"{table[each]:,}" if each in table else "" for each in kept),
            ]
            for name, table in tables.items()
        ]  # fmt: skip
        heads = ["table", "sharding", "rows", "in use", "share", "ids that share a row", *kept]
        left_out = [line for line in table_lines(result) if not line.startswith("table ")]
        out.append(Table("Embedding tables", heads, rows, "\n".join(left_out), 2))
    return out
