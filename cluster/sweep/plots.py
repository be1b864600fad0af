"""A sweep for the eye: parallel coordinates, importance of the keys, learning curves, best so far, the Pareto front."""

import os
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from livetrain.cluster.sweep import parallel
from livetrain.cluster.sweep.importance import LEAST, WITHIN, importance
from livetrain.cluster.sweep.metric import Metric
from livetrain.cluster.sweep.trials import Record, Trial
from livetrain.cluster.sweep.words import short
from livetrain.trainers.observe.report.panels import COLORS, GREY, INK, missing, panel, shortened

LINE = 110  # letters of grey text that a line of 900 pixels has room for


def write(sweep: Record) -> list[Path]:
    """Write `<sweep>/<name>.png` of every plot; each appears whole or not at all."""
    paths = []
    for name, figure in draw(sweep).items():
        path, draft = sweep.folder / f"{name}.png", sweep.folder / f".{name}.png.part"
        FigureCanvasAgg(figure).print_png(draft)
        os.replace(draft, path)
        paths.append(path)
    return paths


def draw(sweep: Record) -> dict[str, Figure]:
    """Return the plots by name: parallel, importance, curves, best, and with several metrics pareto."""
    best = _winner(sweep)
    told = f"{_told(sweep)}\ndashed: stopped early, or still running" + (
        f"; thick and orange: trial {best.name}, the best" if best else ""
    )
    metric = shortened(sweep.metrics[0].text, 60)
    figures = {
        "parallel": parallel.draw(sweep, f"Trials: what was drawn, and {metric}", told),
        "importance": _figure(sweep, f"Which keys decide {metric}", _importance, len(sweep.space.domains) * 0.4 + 2.6),
        "curves": _figure(sweep, f"Learning curves: {metric}", _curves),
        "best": _figure(sweep, f"Best {metric} so far", _best),
    }
    if len(sweep.metrics) > 1:
        more = f", of all {len(sweep.metrics)} metrics" if len(sweep.metrics) > 2 else ""
        figures["pareto"] = _figure(sweep, f"Pareto front{more}", _pareto)
    return figures


def _told(sweep: Record) -> str:
    """Say of which sweep a plot is, and how far it has come."""
    states = Counter(trial.state for trial in sweep.trials)
    counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    of = f"{shortened(sweep.folder.name, 48)}: {sweep.recipe.model.kind}, {sweep.settings.search} search"
    return f"{of}, {len(sweep.trials)} of {sweep.settings.samples} trials ({counts or 'none has started'})"


def _figure(sweep: Record, title: str, paint: Callable[[Axes, Record], str], height: float = 5.4) -> Figure:
    """Return a figure of a panel below a headline; `paint` fills it, and returns a caution or ''.

    A legend, if any, lies below the panel.
    """
    figure = Figure(figsize=(9, height), dpi=100, layout="constrained", facecolor="white")
    axes = figure.subplots()
    panel(axes, "")
    caution = paint(axes, sweep)
    told = textwrap.wrap(_told(sweep), LINE)
    for text, line, looks in (
        (title, 0.0, {"fontsize": 15, "fontweight": "bold", "color": INK}),
        ("\n".join(told), 0.35, {"fontsize": 11, "color": GREY}),
        (caution, 0.35 + 0.19 * len(told), {"fontsize": 11, "color": COLORS[1]}),
    ):
        figure.text(0.015, 1 - (0.12 + line) / height, text, va="top", **looks)
    head = 0.52 + 0.19 * (len(told) + bool(caution))
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.06, rect=(0, 0, 1, 1 - head / height))
    labels = axes.get_legend_handles_labels()[1]
    if labels:
        columns = 4 if sum(map(len, labels)) < 70 else 2
        figure.legend(loc="outside lower left", ncols=columns, frameon=False, fontsize=11, labelcolor=INK)
    return figure


def _missing(axes: Axes, text: str) -> str:
    missing(axes, text)
    return ""


def _importance(axes: Axes, sweep: Record) -> str:
    """Draw a bar per key with its interval."""
    try:
        found = importance(sweep)
    except ImportError:
        return _missing(axes, "scikit-learn is not installed: pip install 'livetrain[tune]'")
    if found is None:
        return _missing(axes, f"fewer than {LEAST} trials to compare, or all alike")
    names = sorted(found.shares, key=lambda name: found.shares[name][1])
    low, mean, high = np.array([found.shares[name] for name in names]).T
    ends = [np.maximum(mean - low, 0), np.maximum(high - mean, 0)]
    axes.barh([shortened(short(name, names), 40) for name in names], mean, color=COLORS[0], height=0.6)
    axes.errorbar(mean, range(len(names)), xerr=ends, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    axes.set_xlim(0, 1)
    axes.grid(visible=False, axis="y")
    axes.figure.supxlabel(
        f"Share of what the keys explain, by {found.trials} trials at epoch {found.epoch:.2f}, which all of them "
        f"reached.\nThe thin lines hold {100 * WITHIN:g} % of what resamples of these trials give.",
        x=0.015, ha="left", fontsize=10, color=GREY, linespacing=1.4,
    )  # fmt: skip
    return found.caution


def _curves(axes: Axes, sweep: Record) -> str:
    metric, winner = sweep.metrics[0], _winner(sweep)
    drawn = False
    for trial in sweep.trials:
        log = sweep.evaluations(trial)
        points = [(line["epoch"], metric.value(line)) for line in log]
        if not points:
            continue
        drawn = True
        best = trial is winner
        axes.plot(
            *zip(*points, strict=True),
            color=COLORS[1] if best else COLORS[0] if trial.state == "finished" else GREY,
            linewidth=2.6 if best else 1.2,
            marker="o" if trial.state == "finished" else "x",
            markersize=4,
            alpha=1 if best else 0.6,
            zorder=3 if best else 2,
            label=f"trial {trial.name}, the best" if best else None,
        )
    if not drawn:
        return _missing(axes, "no trial has been evaluated yet")
    axes.plot([], [], color=COLORS[0], marker="o", markersize=4, label="finished")
    axes.plot([], [], color=GREY, marker="x", markersize=4, label="stopped early, failed or still running")
    axes.set_xlabel("epoch, a mark per evaluation on the validation split", fontsize=11, color=GREY)
    axes.set_xlim(left=0)
    return _value_axis(axes, metric)


def _winner(sweep: Record) -> "Trial | None":
    return sweep.best if any(trial.scored for trial in sweep.trials) else None


def _best(axes: Axes, sweep: Record) -> str:
    metric, trials = sweep.metrics[0], [trial for trial in sweep.trials if trial.measured]
    finished = [trial for trial in trials if trial.state == "finished"]
    if not trials:
        return _missing(axes, "no trial has a metric yet")
    for state, color, marker in (("finished", COLORS[0], "o"), ("stopped", GREY, "x"), ("running", COLORS[5], "s")):
        points = [(trial.number, trial.scores[0]) for trial in trials if trial.state == state]
        if points:
            axes.scatter(*zip(*points, strict=True), color=color, marker=marker, label=state, zorder=3)
    if finished:
        best = np.maximum.accumulate([metric.score(trial.scores[0]) for trial in finished]) * metric.sign
        numbers = [trial.number for trial in finished]
        last = max(trial.number for trial in sweep.trials)
        axes.step(
            [*numbers, last], [*best, best[-1]], where="post", color=COLORS[1], linewidth=2, label="best finished"
        )
    axes.set_xlabel("trial", fontsize=11, color=GREY)
    axes.set_xlim(-0.5, max(trial.number for trial in sweep.trials) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(11, integer=True))
    return _value_axis(axes, metric)


def _value_axis(axes: Axes, metric: Metric) -> str:
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_ylabel(_better(metric), fontsize=11, color=GREY)
    return ""


def _better(metric: Metric) -> str:
    return f"{shortened(metric.text, 44)}, {'more' if metric.sign > 0 else 'less'} is better"


def _pareto(axes: Axes, sweep: Record) -> str:
    """Draw the first two metrics against each other, and the trials of the front (by all metrics) marked."""
    one, two = sweep.metrics[:2]
    trials = [trial for trial in sweep.trials if trial.scored]
    if not trials:
        return _missing(axes, "no trial has finished yet")
    axes.scatter(*np.array([trial.scores[:2] for trial in trials], float).T, color=GREY, label="finished")
    front = sorted(sweep.front, key=lambda trial: float(trial.scores[0]))
    points = np.array([trial.scores[:2] for trial in front], float)
    axes.plot(*points.T, color=COLORS[1], marker="o", linewidth=1.5, label="front, with the trials' numbers", zorder=3)
    axes.margins(0.08)
    axes.ticklabel_format(useOffset=False)
    for trial, point in _apart(axes, front, points):
        axes.annotate(trial.name, point, xytext=(5, 5), textcoords="offset points", color=INK, fontsize=9)
    axes.set_xlabel(_better(one), fontsize=11, color=GREY)
    axes.set_ylabel(_better(two), fontsize=11, color=GREY)
    return ""


def _apart(axes: Axes, trials: list[Trial], points: np.ndarray) -> list[tuple[Trial, np.ndarray]]:
    """Return the trials, with their points, beside which there is room for a number."""
    kept: list[tuple[Trial, np.ndarray]] = []
    pixels = axes.transData.transform(points)
    for place, trial in enumerate(trials):
        near = [np.abs(pixels[place] - axes.transData.transform(point)) for _, point in kept]
        if all(gap[0] > 30 or gap[1] > 18 for gap in near):
            kept.append((trial, points[place]))
    return kept
