"""Parallel coordinates: a line per trial across an axis per key, and across the metric at the right."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from livetrain.cluster.sweep.trials import Record, Trial
from livetrain.cluster.sweep.words import folded, number, place, short
from livetrain.configs.space import Choice, Domain, Range
from livetrain.trainers.observe.report.panels import COLORS, GREY, INK, MARGIN, fitting, header, missing

# From worst to best: pale to dark, for on white what is pale recedes.
SHADES = ListedColormap(colormaps["viridis_r"](np.linspace(0.08, 1, 256)))
BEST = COLORS[1]
NUMBERED = 20  # trials whose numbers there is room for
COLUMN, HEIGHT, SIDES = 1.15, 4.6, (0.55, 2.35)  # inches: between axes, of an axis, left and right of them
LETTER = 0.082  # inches, of a letter of 9 points at most
LOW = -0.1  # where keys that were not drawn lie


def draw(sweep: Record, facts: list[str]) -> Figure:
    """Draw the trials that have a metric, the best one above all others; `facts` stand at the head."""
    keys, metric = list(sweep.space.domains), sweep.metrics[0]
    column = max(COLUMN, 8 / (len(keys) + 1))
    letters = int(column / LETTER)
    trials = [trial for trial in sweep.trials if trial.measured]
    best = sweep.best if any(trial.scored for trial in trials) else None
    names = [folded(short(key, keys), letters) for key in keys] + [folded(metric.text, letters)]
    figure, axes = _page(sweep, facts, best, column * len(keys), max(name.count("\n") + 1 for name in names))
    axes.set(yticks=[], ylim=(LOW - 0.03, 1.03), xlim=(0, len(keys)))
    if not trials:
        missing(axes, "no trial has a metric yet")
        return figure
    axes.set_xticks(range(len(keys) + 1), names, fontsize=9, color=INK)
    axes.tick_params(length=0)
    axes.grid(axis="x", color=GREY, linewidth=0.8)
    scores = np.array([trial.scores[0] for trial in trials])
    span = float(np.ptp(scores))
    worst = scores.min() if metric.sign > 0 else scores.max()
    places = metric.sign * (scores - worst) / span if span else np.full(len(trials), 0.5)
    _lines(axes, sweep, trials, places, best)
    for at, key in enumerate(keys):
        for height_at, text in _ticks(sweep.space.domains[key], column - 0.2):
            axes.annotate(text, (at, height_at), xytext=(4, 0), textcoords="offset points", fontsize=8, color=INK,
                          va="center", zorder=9, path_effects=[withStroke(linewidth=3, foreground="white")],
                          annotation_clip=False)  # fmt: skip
    _numbers(axes, trials, places, best, 1 / column)
    _key(figure, axes, (float(scores.min()), float(scores.max())), metric.sign)
    return figure


def _page(sweep: Record, facts: list[str], best: Trial | None, wide: float, lines: int) -> tuple[Figure, Axes]:
    """Return a figure with a headline, and its axes, `wide` inches, above names of so many lines."""
    below = 0.3 + 0.17 * lines
    width, height = sum(SIDES) + wide, below + HEIGHT + 1.9
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    axes = figure.add_axes((SIDES[0] / width, below / height, wide / width, HEIGHT / height), zorder=1)
    axes.spines[:].set_visible(False)
    head = header(figure, sweep.folder.name, facts)
    told = "dashed: stopped early, or still running; " if any(trial.measured for trial in sweep.trials) else ""
    told += f"thick and orange: trial {best.name}, the best" if best else ""
    title = fitting(f"Trials: what was drawn, and {sweep.metrics[0].text}", width - 2 * MARGIN, 14, "bold")
    place = MARGIN / width
    figure.text(place, 1 - (head + 0.08) / height, title, fontsize=14, fontweight="bold", color=INK, va="top")
    figure.text(place, 1 - (head + 0.36) / height, told, fontsize=11, color=GREY, va="top")
    return figure, axes


def _lines(axes: Axes, sweep: Record, trials: list[Trial], places: np.ndarray, best: Trial | None) -> None:
    """Draw a line per trial, better ones above and darker; the best finished one is marked."""
    for index in np.argsort(places):
        trial = trials[index]
        line = [place(domain, trial.values.get(key)) for key, domain in sweep.space.domains.items()] + [places[index]]
        style = {"color": SHADES(places[index]), "linewidth": 1.6, "zorder": 3}
        if trial is best:
            style = {"color": BEST, "linewidth": 3.2, "zorder": 5}
        dashes = "-" if trial.state == "finished" else (0, (4, 3))
        axes.plot(range(len(line)), line, linestyle=dashes, label=trial.name, clip_on=False, **style)


def _ticks(domain: Domain, inches: float) -> list[tuple[float, str]]:
    shown: Sequence = ()
    if isinstance(domain, Choice):
        shown = domain.choice if len(domain.choice) <= NUMBERED else (domain.choice[0], domain.choice[-1])
    elif isinstance(domain, Range):
        shown = domain.ends()
    missing_too = [(LOW, "not drawn")] if domain.when else []
    return missing_too + [(place(domain, value), fitting(number(value), inches, 8)) for value in shown]


def spread(places: Sequence[float], gap: float, top: float) -> list[float]:
    """Return places, in rising order, moved so that they are `gap` apart, none above `top` if they fit below it.

    >>> spread([0.0, 0.5, 0.5], gap=0.2, top=1.0)
    [0.0, 0.5, 0.7]
    """
    out: list[float] = []
    for wanted in places:
        out.append(max(wanted, out[-1] + gap) if out else wanted)
    for at in range(len(out) - 1, -1, -1):
        out[at] = min(out[at], top - gap * (len(out) - 1 - at))
    return out


def _numbers(axes: Axes, trials: list[Trial], places: np.ndarray, best: Trial | None, inch: float) -> None:
    """Write the trials' numbers beside the ends of their lines, of many the best ones'; an `inch` is so wide."""
    last = axes.get_xlim()[1]
    order = np.argsort(places, kind="stable")[-NUMBERED:]
    for index, height in zip(order, spread(places[order].tolist(), 0.043, 1.01), strict=True):
        color = SHADES(places[index])
        axes.plot([last, last + 0.22 * inch], [places[index], height], color=color, linewidth=0.8, clip_on=False)
        text = axes.text(last + 0.27 * inch, height, trials[index].name, fontsize=9, va="center", color=INK)
        if trials[index] is best:
            text.set(color=BEST, fontweight="bold")
    if len(trials) > NUMBERED:
        axes.text(last + 0.05 * inch, LOW, f"numbers: the {NUMBERED} best", fontsize=9, color=GREY, va="center")


def _key(figure: Figure, axes: Axes, ends: tuple[float, float], sign: int) -> None:
    """Draw what the lines' colours mean, a scale of the metric as high as its axis; the best is at the top."""
    box = axes.get_position()
    width, height = figure.get_size_inches()
    low = box.y0 + box.height * (0 - LOW + 0.03) / (1.06 - LOW)
    bar = figure.add_axes((box.x1 + 0.85 / width, low, 0.16 / width, box.height / (1.06 - LOW)))
    if ends[0] == ends[1]:
        bar.set_axis_off()
        bar.text(0, 0.5, f"{ends[0]:.4g}", fontsize=9, color=INK, va="center")
        return
    bar.set(xticks=[])
    bar.yaxis.tick_right()
    bar.tick_params(labelsize=9, colors=INK)
    bottom, top = ends if sign > 0 else ends[::-1]
    bar.imshow(np.linspace(0, 1, 256)[:, None], cmap=SHADES, origin="lower", aspect="auto", extent=(0, 1, bottom, top))
    bar.ticklabel_format(useOffset=False)
    bar.set_ylabel("better at the top", fontsize=9, color=GREY)
    bar.yaxis.set_label_position("right")
