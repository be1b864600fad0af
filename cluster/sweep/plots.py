"""A sweep for the eye: parallel coordinates, importance of the keys, learning curves, best so far, the Pareto front."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from livetrain.cluster.sweep import parallel
from livetrain.cluster.sweep.importance import LEAST, WITHIN, importance
from livetrain.cluster.sweep.metric import Metric
from livetrain.cluster.sweep.trials import Record, Trial
from livetrain.cluster.sweep.words import short
from livetrain.trainers.observe.report.panels import COLORS, GREY, INK, MARGIN, fitting, header, missing, panel


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
    metric = sweep.metrics[0].text
    figures = {
        "parallel": parallel.draw(sweep, facts(sweep)),
        "importance": _figure(sweep, f"Which keys decide {metric}", _importance, len(sweep.space.domains) * 0.4 + 3),
        "curves": _figure(sweep, f"Learning curves: {metric}", _curves),
        "best": _figure(sweep, f"Best {metric} so far", _best),
    }
    if len(sweep.metrics) > 1:
        more = f", of all {len(sweep.metrics)} metrics" if len(sweep.metrics) > 2 else ""
        figures["pareto"] = _figure(sweep, f"Pareto front{more}", _pareto)
    return figures


def facts(sweep: Record) -> list[str]:
    """Return what a plot says of its sweep at its head: of what, and how far it has come."""
    states = Counter(trial.state for trial in sweep.trials)
    counts = [f"{count} {state}" for state, count in states.most_common()]
    of = f"{len(sweep.trials)} of {sweep.settings.samples} trials"
    return [f"model {sweep.recipe.model.kind}", f"{sweep.settings.search} search", of, *counts]


def _figure(sweep: Record, title: str, paint: Callable[[Axes, Record], str], height: float = 5.6) -> Figure:
    """Return a figure of a panel below a headline; `paint` fills it, and returns a caution or ''.

    A legend, if any, lies below the panel.
    """
    figure = Figure(figsize=(9, height), dpi=100, facecolor="white")
    axes = figure.subplots()
    panel(axes, "", scale=0.9)
    caution = paint(axes, sweep)
    head = header(figure, sweep.folder.name, facts(sweep))
    place = MARGIN / figure.get_figwidth()
    title = fitting(title, figure.get_figwidth() - 2 * MARGIN, 14, "bold")
    figure.text(place, 1 - (head + 0.08) / height, title, fontsize=14, fontweight="bold", color=INK, va="top")
    figure.text(place, 1 - (head + 0.36) / height, caution, fontsize=11, color=COLORS[1], va="top")
    head += 0.64 if caution else 0.4
    below = (0, 0, 1, 1 - head / height)
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.06, rect=below))
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
    axes.barh([fitting(short(name, names), 3.5, 10) for name in names], mean, color=COLORS[0], height=0.6)
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
    return f"{fitting(metric.text, 2, 11)}, {'more' if metric.sign > 0 else 'less'} is better"


def _pareto(axes: Axes, sweep: Record) -> str:
    """Draw the first two metrics against each other, and the trials of the front (by all metrics) marked."""
    one, two = sweep.metrics[:2]
    trials = [trial for trial in sweep.trials if trial.scored]
    if not trials:
        return _missing(axes, "no trial has finished yet")
    axes.scatter(*np.array([trial.scores[:2] for trial in trials], float).T, color=GREY, label="finished")
    front = sweep.front
    points = np.array([trial.scores[:2] for trial in front], float)
    axes.plot(*points.T, color=COLORS[1], marker="o", linewidth=1.5, label="front, with the trials' numbers", zorder=3)
    axes.margins(0.08)
    axes.autoscale_view()
    axes.ticklabel_format(useOffset=False)
    for trial, point in _apart(axes, front, points):
        axes.annotate(
            trial.name, (point[0], point[1]), xytext=(5, 5), textcoords="offset points", color=INK, fontsize=9
        )
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
