"""How every panel of a report looks: its colours, axes and legend."""

import math
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.ticker import FuncFormatter, MaxNLocator

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito, safe for the colour blind
MARKERS = ("o", "s", "^", "D", "v", "P")  # a second key to the task, for prints without colour
INK, GREY, HAIR = "#222222", "#6B6B6B", "#E3E3E3"


def finite_number(value: Any) -> float | None:
    """Return a finite number, or None for anything else: JSON writers disagree on how to spell nan."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def task_style(number: int) -> dict[str, Any]:
    """Return the colour and marker of the task that comes so many after the first."""
    return {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}


def panel(axes: Axes, title: str, x: str = "", y: str = "") -> None:
    """Set a panel's title and axis labels, and make it look like the others."""
    axes.set_title(title, loc="left", fontsize=15, fontweight="bold", color=INK, pad=10)
    axes.set_xlabel(x, fontsize=12, color=GREY)
    axes.set_ylabel(y, fontsize=12, color=GREY)
    axes.grid(color=HAIR, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=GREY, labelsize=11, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#BBBBBB")


def step_axis(axes: Axes, lines: list[dict[str, Any]]) -> None:
    """Let the x axis count steps up to the log's last one."""
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.set_xlim(0, 1.03 * max([line["step"] for line in lines], default=0) or 1)


def missing(axes: Axes, text: str) -> None:
    """Say in an empty panel what is missing."""
    axes.set(xticks=[], yticks=[], xlabel="", ylabel="", facecolor="#F6F6F6")
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=14, color=GREY)


def note(axes: Axes, text: str, x: float, y: float, **place: Any) -> None:
    """Write a remark at a place from (0, 0), the panel's lower left, to (1, 1)."""
    axes.text(x, y, text, transform=axes.transAxes, fontsize=11, color=GREY, **place)


def layout(height: float) -> ConstrainedLayoutEngine:
    """Return what places the panels in the lower part, `height`, of a figure; above it is room for a headline."""
    return ConstrainedLayoutEngine(w_pad=0.2, h_pad=0.2, wspace=0.03, hspace=0.04, rect=(0, 0, 1, height))


Place = Literal["best", "upper left", "upper right", "lower left", "lower right"]


def legend(axes: Axes, place: Place, columns: int = 1) -> Legend:
    """Draw the legend of what is labelled."""
    return axes.legend(loc=place, ncols=columns, fontsize=12, labelcolor=INK, framealpha=0.9, edgecolor="white")


def shortened(name: str, most: int) -> str:
    """Return a name of at most so many letters: its middle is left out, for names often begin or end alike."""
    if len(name) <= most:
        return name
    return f"{name[: most // 2]}…{name[len(name) - (most - most // 2 - 1) :]}"
