"""How every picture looks: its colours, header, axes and legends, and words that are cut to the room they have.

Pictures say at their head what they show: `header` writes a name and facts as `model din`, `data ml-1m`, `2 workers`
and a date, each whole or cut with an ellipsis, and returns how many inches it took. A series keeps its colour and
marker in all panels (`task_style`; twelve differ). A legend stands beside or below its axes, never over data
(`legend_beside`, `legend_below`). tests/pictures.py checks what comes out.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend

# Okabe and Ito's, safe for the colour blind; then the same lighter and darker, which greyscale tells apart too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MORE_COLORS = ("#7FB8D8", "#7A3500", "#7FCEB9", "#7A3F62", "#8A5F00", "#245F80")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")  # a second key, for prints without colour
INK, GREY, HAIR = "#222222", "#6B6B6B", "#E3E3E3"
MARGIN = 0.2  # inches between what stands on a page and its edge


def finite_number(value: Any) -> float | None:
    """Return a finite number, or None for anything else: JSON writers disagree on how to spell nan."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def task_style(number: int) -> dict[str, Any]:
    """Return the colour and marker of the task that comes so many after the first; twelve differ."""
    colors = COLORS + MORE_COLORS
    return {"color": colors[number % len(colors)], "marker": MARKERS[number % len(MARKERS)]}


def letters_on(color: str) -> str:
    """Return the colour of letters that can be read on another, which is given as ``#rrggbb``.

    Example:
        >>> letters_on("#0072B2"), letters_on("#E69F00")
        ('white', '#222222')
    """
    red, green, blue = (int(color[place : place + 2], 16) for place in (1, 3, 5))
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 125 else INK


@cache
def width(text: str, size: float, weight: str = "normal") -> float:
    """Return how many inches a line of text takes at 100 pixels to the inch, in points of `size`.

    Example:
        >>> width("live", 10) < width("live room", 10) < width("live room", 20)
        True
    """
    font = FontProperties(size=size, weight=weight)
    return _renderer().get_text_width_height_descent(text, font, ismath=False)[0] / 100


@cache
def _renderer() -> RendererAgg:
    return RendererAgg(1, 1, 100)


def fitting(text: str, inches: float, size: float, weight: str = "normal") -> str:
    """Return a text, cut with an ellipsis in its middle where it takes more inches: names often differ at their ends.

    Example:
        >>> fitting("a_very_long_name_of_a_task", 1.2, 10)
        'a_very_…_a_task'
    """
    if width(text, size, weight) <= inches:
        return text
    kept = min(max(3, int(len(text) * inches / width(text, size, weight))), len(text) - 1)
    while kept > 3 and width(_cut(text, kept), size, weight) > inches:
        kept -= 1
    return _cut(text, kept) if kept >= 3 else text


def _cut(text: str, kept: int) -> str:
    """Return a text in so many letters, an ellipsis among them."""
    left = kept // 2
    return f"{text[:left]}…{text[len(text) - (kept - 1 - left) :]}"


def folded(parts: Sequence[str], inches: float, size: float, between: str) -> list[str]:
    """Return lines of parts with `between` between them, as many parts to a line as have room in so many inches.

    Example:
        >>> folded(["model din", "2 workers", "37 s"], 1.6, 10, " | ")
        ['model din | 2 workers', '37 s']
    """
    lines: list[str] = []
    for part in (fitting(part, inches, size) for part in parts):
        longer = f"{lines[-1]}{between}{part}" if lines else part
        if lines and width(longer, size) <= inches:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def header(figure: Figure, name: str, facts: Sequence[str]) -> float:
    """Write a picture's name at its head, and facts below it in as many lines as they need.

    Args:
        figure: whose size is that of the picture in the end.
        name: what is shown: a run, a sweep or a data set.
        facts: such as ``model din``, ``recipe din_ml1m``, ``2 workers``, ``cpu``, ``37 s``, ``2025-06-01 12:00``.

    Returns:
        Inches from the top edge to below the last line.
    """
    inch, room = 1 / figure.get_figheight(), figure.get_figwidth() - 2 * MARGIN
    left, title = MARGIN / figure.get_figwidth(), fitting(name, room, 22, "bold")
    figure.text(left, 1 - 0.2 * inch, title, fontsize=22, fontweight="bold", color=INK, va="top", parse_math=False)
    below = 0.66
    for line in folded(facts, room, 12, "   |   "):
        figure.text(left, 1 - below * inch, line, fontsize=12, color=GREY, va="top", parse_math=False)
        below += 0.27
    return below + 0.05


def footer(figure: Figure, text: str) -> None:
    """Write a remark at a picture's lower left edge, cut where the page ends."""
    text = fitting(text, figure.get_figwidth() - 2 * MARGIN, 9)
    place = MARGIN / figure.get_figwidth(), 0.08 / figure.get_figheight()
    figure.text(*place, text, fontsize=9, color=GREY, va="bottom", parse_math=False)


def panel(axes: Axes, title: str, x: str = "", y: str = "", scale: float = 1) -> None:
    """Set a panel's title and axis labels, and make it look like the others; `scale` is that of its letters."""
    axes.set_title(title, loc="left", fontsize=15 * scale, fontweight="bold", color=INK, pad=10, parse_math=False)
    axes.set_xlabel(x, fontsize=12 * scale, color=GREY, parse_math=False)
    axes.set_ylabel(y, fontsize=12 * scale, color=GREY, parse_math=False)
    axes.grid(color=HAIR, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=GREY, labelsize=11 * scale, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#BBBBBB")


def missing(axes: Axes, text: str) -> None:
    """Say in an empty panel what is missing."""
    axes.set(xticks=[], yticks=[], xlabel="", ylabel="", facecolor="#F6F6F6")
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=14, color=GREY)


def legend_beside(axes: Axes, size: float = 11) -> Legend:
    """Draw the legend of what is labelled to the right of the axes, where it covers nothing."""
    style: dict[str, Any] = {"fontsize": size, "labelcolor": INK, "frameon": False, "borderaxespad": 0.0}
    return axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), **style)


def legend_below(axes: Axes, columns: int, size: float = 11, gap: float = 0.12) -> Legend:
    """Draw the legend of what is labelled below the axes, `gap` of their height from them."""
    style: dict[str, Any] = {"fontsize": size, "labelcolor": INK, "frameon": False, "borderaxespad": 0.0}
    style |= {"handlelength": 1.2, "handletextpad": 0.4, "columnspacing": 1.2, "ncols": columns}
    return axes.legend(loc="upper left", bbox_to_anchor=(0, -gap), **style)
