"""The report's panels on the tasks' gradients: how they point against each other, and what weights they got."""

from typing import Any

import numpy as np

from livetrain.trainers.observe.report.page import Plot, Series
from livetrain.trainers.observe.report.panels import finite_number, task_style
from livetrain.trainers.observe.report.thinning import thinned

Curves = dict[str, list[tuple[int, float]]]

# Lines that an eye can follow; of more pairs of tasks those are drawn that conflict most.
MOST_PAIRS = 6


def gradient_panels(lines: list[dict[str, Any]]) -> list[Plot]:
    """Return the panels for which a log has figures: cosines and task weights, whichever are there.

    Weights that never left 1, a plain sum's, are no figures.

    Args:
        lines: of metrics.jsonl, in order of steps.
    """
    cosines, weights = _curves(lines, ["grad", "cos", None, None]), _curves(lines, ["grad", None, "weight"])
    out = [_cosines(cosines, lines)] if cosines else []
    if any(weight != 1 for points in weights.values() for _, weight in points):
        series = [_line(f"{task}  {points[-1][1]:.2f}", points, i) for i, (task, points) in enumerate(weights.items())]
        about = "a task's gradient is multiplied by its weight; with the last of each"
        out.append(Plot("Weights of the tasks' gradients", about, "step", series=series, steps=True, level=1, key=True))
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


def _cosines(cosines: Curves, lines: list[dict[str, Any]]) -> Plot:
    shares = [share for line in lines if (share := finite_number(line.get("grad.conflict"))) is not None]
    means = {pair: float(np.mean([value for _, value in points])) for pair, points in cosines.items()}
    shown = sorted(means, key=means.__getitem__)[:MOST_PAIRS]
    series = [_line(f"{pair}  {means[pair]:+.2f}", cosines[pair], number) for number, pair in enumerate(shown)]
    about = [f"{np.mean(shares):.0%} of steps conflict (below 0)"] if shares else []
    about += [f"the {len(shown)} of {len(means)} pairs that conflict most"] if len(shown) < len(means) else []
    about += ["with the mean of each"]
    return Plot(
        "Cosines of the tasks' gradients", "; ".join(about), "step", series=series, steps=True, level=0, key=True
    )


def _line(label: str, points: list[tuple[int, float]], number: int) -> Series:
    steps, values = (np.array(x, float) for x in zip(*points, strict=True))
    steps, values = thinned(steps, values)
    return Series(label, steps.tolist(), values.tolist(), **task_style(number))
