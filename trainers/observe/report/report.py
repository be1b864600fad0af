"""A finished run on one page: report.png for the eye, a table for the terminal."""

import json
import math
import operator
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from livetrain.configs.errors import BadInput
from livetrain.modules.tasks.kind import Metric
from livetrain.modules.tasks.registry import leading, metrics
from livetrain.modules.tasks.retrieval import AT
from livetrain.trainers.observe.report.gradients import gradient_panels
from livetrain.trainers.observe.report.panels import (
    COLORS,
    GREY,
    INK,
    finite_number,
    layout,
    legend,
    missing,
    note,
    panel,
    step_axis,
    task_style,
)
from livetrain.trainers.observe.report.slices import draw_slices
from livetrain.trainers.observe.report.summary import _figures, interval, slices_in
from livetrain.trainers.runtime import manifest, runlog

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
NAME = "report.png"


def write_report(run: Path) -> Path:
    """Write `report.png` of a run, 1600 x 1000 pixels, 1350 high where experts have gates; see `draw`.

    Args:
        run: the run's folder.

    Returns:
        Path of the picture, which appears whole or not at all.

    Raises:
        BadInput: the folder holds no run, or its result.json is no JSON.
    """
    path, unfinished = run / NAME, run / ".report.png.part"
    FigureCanvasAgg(draw(run)).print_png(unfinished)
    manifest.sync(unfinished)
    os.replace(unfinished, path)
    return path


def draw(run: Path) -> Figure:
    """Draw a run's training loss, AUC, calibration, AUC by history length, and where its time went.

    Of a task of retrieval, recall stands in the place of AUC and calibration.

    Below, as far as they are there: the slices, the use of experts, and the cosines of the tasks' gradients and their
    weights.

    It takes metrics.jsonl and result.json, whichever are there, so that a run that still trains can be drawn too. A
    panel without data says what is missing.

    Args:
        run: the run's folder.

    Raises:
        BadInput: the folder holds no run, or its result.json is no JSON.
    """
    lines, result = _lines(run), _read_result(run / "result.json")
    if not lines and not result:
        raise BadInput(f"{run}: neither metrics.jsonl nor result.json is there; name a folder that a run has written")
    gates, combined = _gates(lines), gradient_panels(lines)
    slices = slices_in(result)
    rows = 2 + bool(slices) + bool(gates) + bool(combined)
    height = 3 + 3.5 * rows
    figure = Figure(figsize=(16, height), dpi=100, layout=layout(1 - 1.05 / height), facecolor="white")
    grid = figure.add_gridspec(rows + 1, 2, height_ratios=[1] * rows + [0.3])
    panels = [[figure.add_subplot(grid[row, column]) for column in (0, 1)] for row in (0, 1)]
    _headline(figure, run.resolve().name, lines, result)
    _draw_loss(panels[0][0], lines)
    _draw_leading(panels[0][1], lines, result)
    recalls = {key: value for key, value in _whole(result) if key[2].startswith("recall_") and value is not None}
    if recalls:
        _draw_recalls(panels[1][0], recalls)
    else:
        _draw_calibration(panels[1][0], result)
    _draw_lengths(panels[1][1], result)
    if slices:
        draw_slices(figure.add_subplot(grid[2, :]), result, _curve_split(result))
    if gates:
        _draw_gates(figure.add_subplot(grid[2 + bool(slices), :]), gates)
    for column, draw_panel in enumerate(combined):
        place = grid[rows - 1, column] if len(combined) > 1 else grid[rows - 1, :]
        draw_panel(figure.add_subplot(place))
    _draw_times(figure.add_subplot(grid[-1, :]), lines)
    return figure


def _lines(run: Path) -> list[dict[str, Any]]:
    """Return a run's training and evaluation lines in order of steps; of a repeated step the last one counts."""
    lines = {
        (line["kind"], line.get("split"), line["step"]): line
        for line in runlog.read(run)
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


def _curves(result: dict[str, Any], kind: str) -> dict[str, list[dict[str, Any]]]:
    return {task: curves[kind] for task, curves in result.get("curves", {}).items() if curves.get(kind)}


def _curve_split(result: dict[str, Any]) -> str:
    """Return the split whose curves a result holds: the test split's, where there is one."""
    return "test" if any(split == "test" for (split, _, _), _ in _figures(result)) else "valid"


def _headline(figure: Figure, name: str, lines: list[dict[str, Any]], result: dict[str, Any]) -> None:
    figures = dict(_whole(result))
    parts = []
    tasks = list(dict.fromkeys(task for _, task, _ in figures))
    for task in tasks[:3]:
        found = {name: m for name, m in metrics().items() if m.headline and ("test", task, name) in figures}
        first = leading(list(found))
        names = sorted(found, key=partial(operator.ne, first))
        shown = [(found[name].title, figures["test", task, name]) for name in names]
        text = "  ".join(f"{label} {value:.4f}" for label, value in shown if value is not None)
        parts += [f"test {task} {text}" if len(tasks) > 1 else f"test {text}"] if text else []
    speed = finite_number(result.get("rows_per_s"))
    if speed is None:
        speed = next(
            (finite_number(line.get("rows_per_s")) for line in reversed(lines) if line["kind"] == "train"), None
        )
    parts += [] if speed is None else [f"{speed:,.0f} rows/s"]
    inch = 1 / figure.get_figheight()
    figure.text(0.0125, 1 - 0.25 * inch, name, fontsize=22, fontweight="bold", color=INK, va="top")
    text = "   |   ".join(parts) or "not evaluated yet"
    figure.text(0.0125, 1 - 0.7 * inch, text, fontsize=15, color=GREY, va="top")


def _whole(result: dict[str, Any]) -> list[tuple[tuple[str, str, str], float | None]]:
    """Return the figures of the splits as a whole, without those of slices."""
    names = slices_in(result)
    return [(key, value) for key, value in _figures(result) if key[1].partition(".")[0] not in names]


def _absent(result: dict[str, Any]) -> str:
    return "no split evaluated" if result else "drawn when the run has ended"


def _draw_loss(axes: Axes, lines: list[dict[str, Any]]) -> None:
    panel(axes, "Training loss", "step")
    lines = [line for line in lines if line["kind"] == "train"]
    keys = [key for key in (lines[-1] if lines else {}) if key.endswith(".loss")] or ["loss"]
    logged = {
        key: [(line["step"], loss) for line in lines if (loss := finite_number(line.get(key))) is not None]
        for key in keys
    }
    found = {key: points for key, points in logged.items() if points}
    if not found:
        return missing(axes, "no training steps logged")
    for number, (key, points) in enumerate(found.items()):
        _draw_curve(axes, key.removesuffix("loss").rstrip("."), points, COLORS[number % len(COLORS)])
    if len(found) > 1:
        axes.set_yscale("log")  # a watch time's loss is not a click's
    if axes.get_legend_handles_labels()[0]:
        legend(axes, "upper right")
    return step_axis(axes, lines)


def _draw_curve(axes: Axes, task: str, points: list[tuple[int, float]], color: str) -> None:
    """Draw a loss as it was logged, and a running mean where there are many points; `task` is "" where there is one."""
    steps, losses = (np.array(x) for x in zip(*points, strict=True))
    window = len(losses) // 20
    if window < 5:
        axes.plot(steps, losses, color=color, linewidth=2, marker="o", markersize=4, label=task or None)
        return
    axes.plot(steps, losses, color=color, linewidth=1, alpha=0.3, label=None if task else "as logged")
    near = np.ones(window)
    smooth = np.convolve(losses, near, "same") / np.convolve(np.ones_like(losses), near, "same")
    axes.plot(steps, smooth, color=color, linewidth=2.2, label=f"{task} mean of {window} logged".strip())


def _draw_leading(axes: Axes, lines: list[dict[str, Any]], result: dict[str, Any]) -> None:
    """Draw each task's leading metric, of the evaluations and, where they were not logged, of the result."""
    points = [
        ((line.get("split", "valid"), *key.rpartition(".")[::2]), line["step"], finite_number(line[key]))
        for line in lines
        if line["kind"] == "eval"
        for names in [slices_in(line)]
        for key in line
        if key.partition(".")[0] not in names
    ]
    evaluated = list(dict.fromkeys([key[2] for key, _, _ in points] + [key[2] for key, _ in _whole(result)]))
    points = [point for point in points if point[-1] is not None]
    logged = {key[:2] for key, _, _ in points}
    last = max((line["step"] for line in lines), default=0)
    points += [(key, last, value) for key, value in _whole(result) if key[:2] not in logged and value is not None]
    written = {task: [key[2] for key, _, _ in points if key[1] == task] for (_, task, _), _, _ in points}
    known = metrics()
    shown = {task: name for task, names in written.items() if (name := leading(names))}
    panel(axes, " / ".join(dict.fromkeys(known[name].title for name in shown.values())) or "AUC", "step")
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for (split, task, metric), step, value in points:
        if metric == shown.get(task) and value is not None:
            found.setdefault(task, {}).setdefault(split, []).append((step, value))
    if not found:
        main = leading(evaluated)
        needed = main and f"{known[main].title} undefined: it needs {known[main].needs}"
        return missing(axes, needed or "no split evaluated")
    for number, (task, splits) in enumerate(found.items()):
        style = task_style(number)
        name = f"{task} " if len(found) > 1 else ""
        if "valid" in splits:
            label = f"{name}valid, best {_best(splits['valid'], known[shown[task]])}"
            axes.plot(*zip(*splits["valid"], strict=True), linewidth=2.2, markersize=6, label=label, **style)
        if "test" in splits:
            step, value = splits["test"][-1]
            label = f"{name}test {value:.4f}"
            axes.scatter(step, value, s=260, marker="*", color=style["color"], edgecolor=INK, zorder=5, label=label)
            low, high = interval(result, ("test", task, shown[task]))
            if low is not None and high is not None:
                axes.plot([step, step], [low, high], color=style["color"], linewidth=3, zorder=4)
    if not any("test" in splits for splits in found.values()):
        note(axes, "no test split evaluated", 0.01, 0.97, ha="left", va="top")
    axes.margins(y=0.15)
    step_axis(axes, lines)
    legend(axes, "lower right", 1 if len(found) < 4 else 2)
    return None


def _best(points: list[tuple[int, float]], metric: Metric) -> str:
    return format(max((value for _, value in points), key=lambda value: metric.better * value), metric.shown)


def _draw_calibration(axes: Axes, result: dict[str, Any]) -> None:
    curves, split = _curves(result, "calibration"), _curve_split(result)
    ratios = {task: finite_number(result.get(f"{split}.{task}.pcoc")) for task in curves}
    texts = {task: "" if ratio is None else f"PCOC {ratio:.3f}" for task, ratio in ratios.items()}
    only = f", {next(iter(texts.values()))}" if len(texts) == 1 and any(texts.values()) else ""
    panel(axes, f"Calibration ({split}){only}" if curves else "Calibration", "mean prediction", "observed rate")
    if not curves:
        return missing(axes, _absent(result))
    top = 0.0
    for number, (task, points) in enumerate(curves.items()):
        p, y, n = (np.array([point[name] for point in points]) for name in ("mean_p", "mean_y", "count"))
        error = 1.96 * np.sqrt(y * (1 - y) / n)
        style = task_style(number)
        axes.errorbar(p, y, error, fmt="none", ecolor=style["color"], alpha=0.45, linewidth=1.4)
        axes.scatter(p, y, s=20 + 60 * n / n.max(), label=f"{task}  {texts[task]}", zorder=3, **style)
        top = max(top, p.max(), (y + error).max())
    axes.axline((0, 0), slope=1, color=GREY, linewidth=1, linestyle=(0, (5, 4)), zorder=1)
    top = min(top * 1.05, 1.02) or 1.0
    axes.set(xlim=(-0.015 * top, top), ylim=(-0.03 * top, top))
    rows = [point["count"] for points in curves.values() for point in points]
    span = f"{min(rows):,}" if min(rows) == max(rows) else f"{min(rows):,} to {max(rows):,}"
    text = f"{span} rows per point, bars: 95 %\ndashed: predicted = observed"
    note(axes, text, 0.99, 0.03, ha="right", va="bottom")
    if len(curves) > 1:
        legend(axes, "upper left")
    return None


def _draw_recalls(axes: Axes, recalls: dict[tuple[str, str, str], float]) -> None:
    """Draw the share of items found, by length of the list; `recalls` by split, task (there is one) and metric."""
    panel(axes, "Found in the best K items", "K", "share")
    splits = list(dict.fromkeys(split for split, _, _ in recalls))
    for number, split in enumerate(splits):
        heights = [value for key, value in recalls.items() if key[0] == split]
        places = [k + (number - (len(splits) - 1) / 2) * 0.4 for k in range(len(heights))]
        bars = axes.bar(places, heights, 0.37, color=COLORS[number], label=split)
        axes.bar_label(bars, [f"{height:.3f}" for height in heights], padding=3, fontsize=11, color=INK)
    axes.set_xticks(range(len(AT)), [str(k) for k in AT])
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.15)
    legend(axes, "upper left")


def _draw_lengths(axes: Axes, result: dict[str, Any]) -> None:
    curves, split = _curves(result, "auc_by_length"), _curve_split(result)
    title = f"AUC by history length ({split})" if curves else "AUC by history length"
    panel(axes, title, "events in the history, and rows")
    if not curves:
        return missing(axes, "no history lengths evaluated" if result.get("curves") else _absent(result))
    rows: dict[str, int] = {}
    for point in (point for points in curves.values() for point in points):
        rows[point["length"]] = max(rows.get(point["length"], 0), point["rows"])
    names = sorted(rows, key=lambda name: (name.startswith(">"), int(name.lstrip(">").partition("-")[0])))
    width = 0.8 / len(curves)
    for number, (task, points) in enumerate(curves.items()):
        places = [names.index(point["length"]) + (number - (len(curves) - 1) / 2) * width for point in points]
        heights = [point["auc"] - 0.5 for point in points]  # a bar starts at .5, the AUC of chance
        bars = axes.bar(places, heights, width * 0.92, bottom=0.5, color=task_style(number)["color"], label=task)
        if len(curves) * len(names) <= 16:
            axes.bar_label(bars, [f"{point['auc']:.3f}" for point in points], padding=3, fontsize=11, color=INK)
    axes.set_xticks(range(len(names)), [f"{name}\n{rows[name]:,}" for name in names])
    axes.grid(visible=False, axis="x")
    axes.axhline(0.5, color="#BBBBBB", linewidth=1)
    axes.margins(y=0.15 if len(curves) == 1 else 0.3)  # room for the legend
    if len(curves) > 1:
        legend(axes, "upper left", 4)
    return None


def _gates(lines: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the newest mean weight of each expert, and its entropy, by gate."""
    newest: dict[str, Any] = next((line for line in reversed(lines) if line["kind"] == "train"), {})
    found: dict[str, dict[str, float]] = {}
    for key, value in newest.items():
        gate, _, expert = key.removeprefix("gate.").rpartition(".")
        if key.startswith("gate.") and finite_number(value) is not None:
            found.setdefault(gate, {})[expert] = float(value)
    return found


def _draw_gates(axes: Axes, gates: dict[str, dict[str, float]]) -> None:
    panel(axes, "Use of experts (last logged step)", "mean weight of each expert; entropy 1: all alike, 0: one per row")
    names = list(dict.fromkeys(name for experts in gates.values() for name in experts if name != "entropy"))
    for row, experts in enumerate(gates.values()):
        left, entropy = 0.0, experts.pop("entropy", math.nan)
        for name, share in experts.items():
            axes.barh(row, share, left=left, height=0.7, color=COLORS[names.index(name) % len(COLORS)], alpha=0.8)
            if share > 0.04:
                axes.text(
                    left + share / 2, row, f"{name} {share:.2f}", ha="center", va="center", fontsize=11, color=INK
                )
            left += share
        axes.text(1.01, row, f"entropy {entropy:.2f}", va="center", fontsize=11, color=GREY)
    axes.set(yticks=range(len(gates)), yticklabels=list(gates), xlim=(0, 1.1), ylim=(len(gates) - 0.5, -0.5))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(visible=False)


def _draw_times(axes: Axes, lines: list[dict[str, Any]]) -> None:
    """Draw a step's mean time as one bar, cut into its parts in their order."""
    timed = [line for line in lines if finite_number(line.get("ms.step")) is not None]
    steps = np.diff([0] + [line["step"] for line in timed])
    if len(timed) > 1:
        timed, steps = timed[1:], steps[1:]  # the first steps also build what the later ones use
    if not timed:
        panel(axes, "Where a step's time goes")
        return missing(axes, "no step times logged")
    whole, *parts = (
        np.average([finite_number(line.get(f"ms.{part}")) or 0.0 for line in timed], weights=steps)
        for part in ("step", *list(PARTS)[:-1])
    )
    panel(axes, f"Where a step's time goes (mean of rank 0), {whole:.1f} ms", " ")  # room for the legend
    left = 0.0
    for (part, color), width in zip(PARTS.items(), [*parts, max(whole - sum(parts), 0.0)], strict=True):
        label = f"{part.replace('_', ' ')} {width / whole:.0%}"
        axes.barh(0, width, left=left, color=color, edgecolor="white", linewidth=1.5, label=label)
        left += width
    axes.set(yticks=[], xticks=[], xlim=(0, whole))
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    style: dict[str, Any] = {"fontsize": 10.5, "labelcolor": INK, "frameon": False, "handlelength": 0.9}
    style |= {"bbox_to_anchor": (-0.008, 0), "ncols": len(PARTS), "borderaxespad": 0.2, "handletextpad": 0.4}
    shown = axes.legend(loc="upper left", **style, columnspacing=1.0)
    return shown.set_in_layout(False)  # it is as wide as the page
