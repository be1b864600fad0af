"""A sweep for the eye: parallel coordinates, importance of the keys, learning curves, best so far, the Pareto front."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator

from livetrain.cluster.sweep.trials import Record, Trial
from livetrain.cluster.sweep.words import number, short
from livetrain.configs.space import Choice, Domain, LogUniform, Range
from livetrain.trainers.observe.report.panels import COLORS, GREY, HAIR, INK

COLORMAP = colormaps["viridis"]
LEAST = 4  # trials below which importance says nothing
TREES, REPEATS = 300, 30


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
    figures = {
        "parallel": _figure(12, 5.5, _parallel, sweep),
        "importance": _figure(8, 0.45 * len(sweep.space.domains) + 2, _importance, sweep),
        "curves": _figure(8, 5, _curves, sweep),
        "best": _figure(8, 5, _best, sweep),
    }
    if len(sweep.metrics) > 1:
        figures["pareto"] = _figure(8, 5.5, _pareto, sweep)
    return figures


def _figure(width: float, height: float, paint: Any, sweep: Record) -> Figure:
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.set_axisbelow(True)
    axes.grid(color=HAIR)
    paint(axes, sweep)
    return figure


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", color=INK, fontsize=12)


def _missing(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=12)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)


def _scored(sweep: Record) -> "list[Trial]":
    return [trial for trial in sweep.trials if trial.scores and None not in trial.scores and trial.state != "failed"]


def _parallel(axes: Axes, sweep: Record) -> None:
    """Draw a line per trial across an axis per key; the last axis is the metric, better ones lie above and brighter."""
    metric, trials = sweep.metrics[0], _scored(sweep)
    _title(axes, f"Trials: what was drawn, and {metric.text} (dashed: stopped early)")
    if not trials:
        return _missing(axes, "no trial has a metric yet")
    scores = np.array([trial.scores[0] for trial in trials])
    low, high = scores.min(), scores.max()
    places = (scores - low) / ((high - low) or 1.0)
    goodness = places if metric.sign > 0 else 1 - places
    keys = list(sweep.space.domains)
    for index in np.argsort(goodness):
        trial = trials[index]
        line = [_place(sweep.space.domains[key], trial.values.get(key)) for key in keys] + [places[index]]
        style = "-" if trial.state == "finished" else (0, (4, 3))
        axes.plot(range(len(line)), line, color=COLORMAP(goodness[index]), linewidth=1.8, linestyle=style, alpha=0.9)
    for at, key in enumerate(keys):
        for place, text in _ticks(sweep.space.domains[key]):
            axes.annotate(text, (at, place), xytext=(4, 0), textcoords="offset points", fontsize=8, color=INK,
                          va="center", bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.5})  # fmt: skip
    for place, value in ((0, low), (1, high)):
        axes.annotate(f"{value:.4f}", (len(keys), place), xytext=(4, 0), textcoords="offset points", fontsize=9,
                      va="center", color=INK)  # fmt: skip
    names = [_folded(short(key, sweep.space.domains)) for key in keys]
    axes.set_xticks(range(len(keys) + 1), [*names, _folded(metric.text)], fontsize=9)
    axes.set(yticks=[], ylim=(-0.12, 1.06), xlim=(-0.2, len(keys) + 0.45))
    axes.grid(visible=True, axis="x", color=GREY, linewidth=0.8)
    return axes.spines["left"].set_visible(False)


def _folded(name: str) -> str:
    return name.replace("_", "_\n").replace(".", ".\n").replace(" ", "\n")


def _place(domain: Domain, value: Any) -> float:
    """Return where a value lies between its domain's ends, 0 to 1; a key that was not drawn lies below."""
    if value is None:
        return -0.1
    if isinstance(domain, Choice):
        return domain.choice.index(value) / max(len(domain.choice) - 1, 1)
    assert isinstance(domain, Range)
    low, high = domain.ends()
    if isinstance(domain, LogUniform):
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _ticks(domain: Domain) -> list[tuple[float, str]]:
    shown: Sequence[Any] = ()
    if isinstance(domain, Choice):
        shown = domain.choice
    elif isinstance(domain, Range):
        shown = domain.ends()
    return [(_place(domain, value), number(value)) for value in shown]


def _importance(axes: Axes, sweep: Record) -> None:
    metric = sweep.metrics[0]
    _title(axes, f"Importance of each key for {metric.text}")
    try:
        found = importance(sweep)
    except ImportError:
        return _missing(axes, "scikit-learn is not installed: pip install 'livetrain[tune]'")
    if found is None:
        return _missing(axes, f"fewer than {LEAST} trials to compare")
    shares, epoch, count = found
    names = sorted(shares, key=shares.__getitem__)
    axes.barh([short(name, sweep.space.domains) for name in names], [shares[name] for name in names], color=COLORS[0])
    axes.set_xlabel(f"share, by {count} trials at epoch {epoch:.2f}, which all of them reached", color=INK)
    return axes.grid(visible=False, axis="y")


def importance(sweep: Record) -> tuple[dict[str, float], float, int] | None:
    """Return how much each key decides the first metric.

    Trials are compared where all of them can be: at the last evaluation that even the first to be stopped has reached.
    A random forest learns the metric there from what was drawn; a key's importance is what shuffling its values takes
    from the forest's fit (Breiman 2001), in parts of the sum.

    Returns:
        Shares by key, the epoch of the comparison and the number of trials; None where there are too few of them.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    logs = {trial.number: sweep.evaluations(trial) for trial in _scored(sweep)}
    logs = {key: log for key, log in logs.items() if log}
    if len(logs) < LEAST:
        return None
    epoch = min(log[-1]["epoch"] for log in logs.values())
    rows, target = [], []
    for key, log in logs.items():
        line = max((line for line in log if line["epoch"] <= epoch), key=lambda line: line["epoch"], default=log[0])
        value = line["scores"][0]
        if value is not None:
            values = sweep.trials[key].values
            rows.append([_place(domain, values.get(name)) for name, domain in sweep.space.domains.items()])
            target.append(value)
    if len(rows) < LEAST:
        return None
    forest = RandomForestRegressor(TREES, random_state=0).fit(rows, target)
    drops = permutation_importance(forest, rows, target, n_repeats=REPEATS, random_state=0).importances_mean
    drops = np.maximum(drops, 0)
    shares = drops / (drops.sum() or 1.0)
    return dict(zip(sweep.space.domains, shares.tolist(), strict=True)), epoch, len(rows)


def _curves(axes: Axes, sweep: Record) -> None:
    metric = sweep.metrics[0]
    _title(axes, f"Learning curves: {metric.text} at each evaluation")
    winner = _winner(sweep)
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
    axes.set_xlabel("epoch", color=INK)
    axes.legend(frameon=False, labelcolor=INK)
    return None


def _winner(sweep: Record) -> "Trial | None":
    return sweep.best if any(trial.scored for trial in sweep.trials) else None


def _best(axes: Axes, sweep: Record) -> None:
    metric, trials = sweep.metrics[0], _scored(sweep)
    _title(axes, f"Best {metric.text} so far, by trial")
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
    axes.set_xlabel("trial", color=INK)
    places = AutoLocator()
    places.set_params(integer=True)
    axes.xaxis.set_major_locator(places)
    axes.legend(frameon=False, labelcolor=INK)
    return None


def _pareto(axes: Axes, sweep: Record) -> None:
    """Draw the first two metrics against each other, and the trials of the front (by all metrics) marked."""
    one, two = sweep.metrics[:2]
    more = f", of the front by all {len(sweep.metrics)} metrics" if len(sweep.metrics) > 2 else ""
    _title(axes, f"Pareto front{more}")
    trials = [trial for trial in _scored(sweep) if trial.state == "finished"]
    if not trials:
        return _missing(axes, "no trial has finished yet")
    axes.scatter(*np.array([trial.scores[:2] for trial in trials], float).T, color=GREY, label="finished")
    points = {trial.name: np.array(trial.scores[:2], float) for trial in sweep.front}
    front = sorted(points, key=lambda name: float(points[name][0]))
    axes.plot(
        *np.array([points[name] for name in front]).T,
        color=COLORS[1],
        marker="o",
        linewidth=1.5,
        label="front",
        zorder=3,
    )
    for name in front:
        axes.annotate(name, tuple(points[name]), xytext=(5, 5), textcoords="offset points", color=INK, fontsize=9)
    axes.set_xlabel(f"{one.text} ({'more' if one.sign > 0 else 'less'} is better)", color=INK)
    axes.set_ylabel(f"{two.text} ({'more' if two.sign > 0 else 'less'} is better)", color=INK)
    axes.legend(frameon=False, labelcolor=INK)
    return None
