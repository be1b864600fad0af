"""What a frequency filter kept of a few users' histories: spectrum.png beside a run's report."""

import os
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from livetrain.trainers.observe.report.panels import COLORS, GREY, HAIR, legend, panel


def write_spectrum(run: Path, spectra: dict[str, list[dict[str, Any]]]) -> Path | None:
    """Write `spectrum.png` of a run, a row per filter and a panel per user.

    Args:
        run: the run's folder.
        spectra: what `Spectra.read` returned.

    Returns:
        Path of the picture, which appears whole or not at all; None where there is nothing to draw.
    """
    rows = {name: users for name, users in spectra.items() if users}
    if not rows:
        return None
    wide = max(map(len, rows.values()))
    figure = Figure(figsize=(16, 4 * len(rows)), dpi=100, layout="constrained", facecolor="white")
    for number, (name, users) in enumerate(rows.items()):
        for column, user in enumerate(users):
            axes = figure.add_subplot(len(rows), wide, number * wide + column + 1)
            _draw(axes, f"{name}: {user['events']} events", user)
            if number == 0 and column == 0:
                legend(axes, "best")
    path, unfinished = run / "spectrum.png", run / ".spectrum.png.part"
    FigureCanvasAgg(figure).print_png(unfinished)
    os.replace(unfinished, path)
    return path


def _draw(axes: Axes, title: str, user: dict[str, Any]) -> None:
    """Draw one user's power by frequency, in cycles per event, before and behind the gates."""
    panel(axes, title, "cycles per event", "power")
    frequency = [k / user["events"] for k in range(len(user["power"]))]
    axes.axvspan(-0.01, (user["low"] - 0.5) / user["events"], color=HAIR, zorder=0, label="low frequencies")
    axes.plot(frequency, user["power"], color=GREY, marker=".", label="events")
    axes.plot(frequency, user["kept"], color=COLORS[0], marker=".", label="kept by the gates")
    axes.set_yscale("log")
    axes.set_xlim(-0.01, 0.51)
