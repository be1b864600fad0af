"""What a frequency filter kept of a few users' histories: spectrum.png beside a run's report."""

import os
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from livetrain.trainers.observe.report.panels import COLORS, GREY, HAIR, INK, fitting, header, panel

TOLD = (
    "A history of events as a sum of waves: at the left, shaded, what changes slowly, as lasting interests do; at the "
    "right what changes from event to\nevent. Grey: how strong each frequency is in a user's events. Blue: what the "
    "model's gates let through."
)
HIGH, TOP = 3.3, 2.0  # inches: of a row of panels, and of the words above and the legend below all


def write_spectrum(run: Path, spectra: dict[str, list[dict[str, Any]]]) -> Path | None:
    """Write `spectrum.png` of a run, a row per filter and a panel per user.

    Args:
        run: the run's folder.
        spectra: what `Spectra.read` returned.

    Returns:
        Path of the picture, which appears whole or not at all; None where there is nothing to draw.
    """
    figure = draw(run.name, spectra)
    if figure is None:
        return None
    path, unfinished = run / "spectrum.png", run / ".spectrum.png.part"
    FigureCanvasAgg(figure).print_png(unfinished)
    os.replace(unfinished, path)
    return path


def draw(run: str, spectra: dict[str, list[dict[str, Any]]]) -> Figure | None:
    """Return the picture of a run, by its name; see `write_spectrum`."""
    rows = {name: users for name, users in spectra.items() if users}
    if not rows:
        return None
    high = HIGH * len(rows) + TOP
    figure = Figure(figsize=(16, high), dpi=100, facecolor="white")
    told = header(figure, run, ["what the model's frequency filters keep of a few users' histories"])
    figure.text(0.0125, 1 - (told + 0.05) / high, TOLD, fontsize=12, color=GREY, va="top", linespacing=1.3)
    below = (0, 0, 1, 1 - (told + 0.55) / high)
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, rect=below))
    wide = max(map(len, rows.values()))
    for number, (name, users) in enumerate(rows.items()):
        for column, user in enumerate(users):
            axes = figure.add_subplot(len(rows), wide, number * wide + column + 1)
            _draw(axes, f"{fitting(name, 7 / wide, 13, 'bold')}, {user['events']} events", user)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=3, frameon=False, fontsize=12, labelcolor=INK)
    return figure


def _draw(axes: Axes, title: str, user: dict[str, Any]) -> None:
    """Draw one user's power by frequency, in cycles per event, before and behind the gates."""
    panel(axes, title, "cycles per event", "power", scale=0.87)
    frequency = [k / user["events"] for k in range(len(user["power"]))]
    axes.axvspan(
        -0.01,
        (user["low"] - 0.5) / user["events"],
        color=HAIR,
        zorder=0,
        label="low frequencies: gate alpha; the others: gate beta",
    )
    axes.plot(frequency, user["power"], color=GREY, marker=".", label="of the events")
    axes.plot(frequency, user["kept"], color=COLORS[0], marker=".", label="kept by the gates")
    if any(power > 0 for power in user["power"]):
        axes.set_yscale("log")
    axes.set_xlim(-0.01, 0.51)
