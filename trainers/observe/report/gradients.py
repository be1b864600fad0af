"""The report's panels on the tasks' gradients: how they point against each other, and what weights they got."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from livetrain.trainers.observe.report.panels import GREY, finite_number, legend, note, panel, step_axis, task_style

Curves = dict[str, list[tuple[int, float]]]

# Lines that an eye can follow; of more pairs of tasks those are drawn that conflict most.
MOST_PAIRS = 6


def gradient_panels(lines: list[dict[str, Any]]) -> list[Callable[[Axes], None]]:
    """Return what draws the panels for which a log has figures: cosines and task weights, whichever are there.

    Weights that never left 1, a plain sum's, are no figures.

    Args:
        lines: of metrics.jsonl, in order of steps.
    """
    cosines, weights = _curves(lines, ["grad", "cos", None, None]), _curves(lines, ["grad", None, "weight"])
    out: list[Callable[[Axes], None]] = []
    if cosines:
        out.append(partial(_draw_cosines, cosines=cosines, lines=lines))
    if any(weight != 1 for points in weights.values() for _, weight in points):
        out.append(partial(_draw_weights, weights=weights, lines=lines))
    return out


def _curves(lines: list[dict[str, Any]], form: list[str | None]) -> Curves:
    """Return (step, value) of the keys of a form, named by what stands in its gaps: names of tasks have no dots."""
    found: Curves = {}
    for line in lines:
        for key in line:
            parts, value = key.split("."), finite_number(line[key])
            fits = len(parts) == len(form) and all(f in (None, part) for f, part in zip(form, parts, strict=True))
            if fits and value is not None:
                name = ", ".join(part for f, part in zip(form, parts, strict=True) if f is None)
                found.setdefault(name, []).append((line["step"], value))
    return found


def _draw_cosines(axes: Axes, cosines: Curves, lines: list[dict[str, Any]]) -> None:
    shares = [share for line in lines if (share := finite_number(line.get("grad.conflict"))) is not None]
    panel(axes, f"Cosines of the tasks' gradients ({np.mean(shares):.0%} of steps conflict)", "step")
    means = {pair: float(np.mean([value for _, value in points])) for pair, points in cosines.items()}
    shown = sorted(means, key=means.__getitem__)[:MOST_PAIRS]
    for number, pair in enumerate(shown):
        label = f"{pair}  {means[pair]:+.2f}"
        axes.plot(*zip(*cosines[pair], strict=True), linewidth=1.6, markersize=4, label=label, **task_style(number))
    axes.axhline(0, color=GREY, linewidth=1, linestyle=(0, (5, 4)), zorder=1)
    if len(shown) < len(means):
        note(axes, f"the {len(shown)} of {len(means)} pairs that conflict most", 0.99, 0.97, ha="right", va="top")
    _finish(axes, lines)


def _draw_weights(axes: Axes, weights: Curves, lines: list[dict[str, Any]]) -> None:
    panel(axes, "Weights of the tasks' gradients", "step")
    for number, (task, points) in enumerate(weights.items()):
        label = f"{task}  {points[-1][1]:.2f}"
        axes.plot(*zip(*points, strict=True), linewidth=1.6, markersize=4, label=label, **task_style(number))
    _finish(axes, lines)


def _finish(axes: Axes, lines: list[dict[str, Any]]) -> None:
    """Number the steps, and put the legend below the curves."""
    lowest, highest = axes.get_ylim()
    axes.set_ylim(lowest - 0.5 * (highest - lowest), highest)
    step_axis(axes, lines)
    legend(axes, "lower left", 2)
