"""A page as a picture: every panel has a place in inches, so that none can grow into another."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from livetrain.trainers.observe.report import panels as look
from livetrain.trainers.observe.report.page import Band, Page, Panel, Plot, Series, Stack, Table
from livetrain.trainers.observe.report.panels import GREY, INK, MARGIN

WIDTH = 16.0
LINE = 0.26  # of a table
Block = tuple[float, Callable[[Figure, float], None]]  # inches that it takes, and what draws it, so far from the top


def draw(page: Page) -> Figure:
    """Draw a page, as wide as 1600 pixels and as high as it needs."""
    facts = [f"{name} {value}" for name, value in page.facts]
    top = look.header(Figure(figsize=(WIDTH, 10)), page.name, facts) + 0.1  # to measure it
    tasks = [len(band.panels) for band in page.bands if band.color]
    columns = 2 if len(tasks) == 1 else max(tasks, default=1)
    blocks = [_table(page.figures), *(_band(band, columns if band.color else len(band.panels)) for band in page.bands)]
    height = top + sum(block for block, _ in blocks) + MARGIN
    figure = Figure(figsize=(WIDTH, height), dpi=100, facecolor="white")
    look.header(figure, page.name, facts)
    for block, paint in blocks:
        paint(figure, top)
        top += block
    return figure


def png(page: Page, path: Any) -> None:
    """Write a page as a PNG file."""
    FigureCanvasAgg(draw(page)).print_png(path)


def _write(figure: Figure, text: str, left: float, top: float, size: float = 11, **style: Any) -> None:
    place = left / WIDTH, 1 - top / figure.get_figheight()
    figure.text(*place, text, fontsize=size, va="top", parse_math=False, **{"color": INK, **style})


def _table(table: Table | None) -> Block:
    """Return the table of figures, whose columns share the page's width; those beyond it are left out."""

    def paint(figure: Figure, top: float) -> None:
        if table is None:
            return _write(figure, "not evaluated yet", MARGIN, top, 12, color=GREY)
        first = min(max(look.width(row[0], 11) for row in table.rows) + 0.5, 4.5)
        cells = [
            [look.width(row[place], 11) for row in [table.columns, *table.rows]] for place in range(len(table.columns))
        ]
        ends, right = [], MARGIN + max(first, look.width(table.title, 11, "bold") + 0.3)
        for column in cells[1:]:
            right += max(column) + 0.4
            ends += [right] if right < WIDTH - MARGIN else []
        _write(figure, table.title, MARGIN, top, weight="bold")
        for end, name in zip(ends, table.columns[1:], strict=False):
            _write(figure, name, end, top, color=GREY, ha="right")
        for number, row in enumerate(table.rows):
            below = top + LINE * (number + 1)
            _write(figure, look.fitting(row[0], first - 0.3, 11), MARGIN + 0.2, below)
            if len(table.rows) > 1:
                style = look.task_style(number)
                place = (MARGIN + 0.06) / WIDTH, 1 - (below + 0.085) / figure.get_figheight()
                figure.text(*place, "\u25cf", color=style["color"], fontsize=10, ha="center", va="center")
            for end, word in zip(ends, row[1:], strict=False):
                _write(figure, word, end, below, ha="right")
        return None

    return LINE * (1 + len(table.rows) if table else 1) + 0.2, paint


def _band(band: Band, columns: int) -> Block:
    """Return panels side by side, so many to a row, below the band's title."""
    title = 0.4 if band.title else 0.0
    scale = 1.0 if columns <= 2 else 0.8
    cell = (WIDTH - 2 * MARGIN) / columns
    rows = [band.panels[start : start + columns] for start in range(0, len(band.panels), columns)]
    heights = [max(sum(_heights(panel, scale)) for panel in row) for row in rows]

    def paint(figure: Figure, top: float) -> None:
        if band.title:
            name = look.fitting(band.title, 10, 15, "bold")
            _write(figure, name, MARGIN, top + 0.08, 15, weight="bold", color=band.color)
            _write(figure, band.about, MARGIN + look.width(name, 15, "bold") + 0.15, top + 0.13, color=GREY)
        top += title
        for row, height in zip(rows, heights, strict=True):
            for number, panel in enumerate(row):
                _panel(figure, panel, (MARGIN + number * cell, top, cell, height), scale)
            top += height

    return title + sum(heights), paint


def _heights(panel: Panel, scale: float) -> tuple[float, float, float]:
    """Return the inches of a panel's title and what is said about it, of its axes, and of what stands below."""
    if isinstance(panel, Stack):
        return 0.65, 0.5 if panel.key else max(0.32 * len(panel.rows), 0.5), 0.5 if panel.key else 0.2
    names, keys = 0.25 * scale * len(panel.names or ()), 0.24 * len(panel.series) if panel.key else 0.0
    return 0.8 if scale < 1 else 0.7, max(2.2 * scale**2, names, keys), 0.75 * scale


def _panel(figure: Figure, panel: Panel, place: tuple[float, float, float, float], scale: float) -> None:
    """Draw a panel at (left, top, width, height) in inches of the page."""
    left, top, wide, high = place
    head, _, foot = _heights(panel, scale)
    names = panel.names or () if isinstance(panel, Plot) else [name for name, _, _ in panel.rows]
    most = min(max((look.width(name, 11 * scale) for name in names), default=0.0), 0.4 * wide)
    shown = [look.fitting(name, most, 11 * scale) for name in names]
    before = most + 0.15 if any(names) else 0.1 if isinstance(panel, Stack) else 0.95 * scale
    ends = max((look.width(word, 10 * scale) for word in panel.words), default=0.0) if isinstance(panel, Plot) else 0.0
    after = min(0.36 * wide, 3.4) if isinstance(panel, Plot) and panel.key else 0.25 + (ends and ends + 0.1)
    inner = wide - before - after
    page = figure.get_figheight()
    axes = figure.add_axes(
        ((left + before) / WIDTH, 1 - (top + high - foot) / page, inner / WIDTH, (high - head - foot) / page)
    )
    axes.set_label(panel.title)
    look.panel(axes, "", panel.x if isinstance(panel, Plot) else "", panel.y if isinstance(panel, Plot) else "", scale)
    room, size = wide - 0.25, 10.5 * scale
    _write(figure, look.fitting(panel.title, room, 14 * scale, "bold"), left, top, 14 * scale, weight="bold")
    lines = look.folded(panel.about.split(), room, size, " ")
    lines = [*lines[:1], *([look.fitting(" ".join(lines[1:]), room, size)] if lines[1:] else [])]
    for number, line in enumerate(lines):
        _write(figure, line, left, top + (0.28 + 0.18 * number) * scale, size, color=GREY)
    if panel.missing:
        look.missing(axes, look.fitting(panel.missing, inner, 14 * scale))
        axes.texts[-1].set_fontsize(14 * scale)
    elif isinstance(panel, Stack):
        _stack(axes, panel, shown, inner)
    else:
        _plot(axes, panel, shown, scale, ticks=min(max(int(inner / scale), 2), 4))
        if panel.key:
            _key(axes, after - 0.6)


def _plot(axes: Axes, plot: Plot, names: Sequence[str], scale: float, ticks: int) -> None:
    for series in plot.series:
        _series(axes, series, scale, sideways=plot.names is not None)
    axes.margins(y=0.12)
    style: dict[str, Any] = {"color": GREY, "linewidth": 1, "linestyle": (0, (5, 4)), "zorder": 1}
    if plot.names is not None:
        axes.set_yticks(range(len(names)), names, parse_math=False)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.margins(x=0.08)
        for place, word in enumerate(plot.words):
            axes.text(
                1.02, place, word, transform=axes.get_yaxis_transform(), fontsize=10 * scale, va="center", color=INK
            )
        if plot.level is not None:
            axes.axvline(plot.level, **style)
    elif plot.level is not None:
        axes.axhline(plot.level, **style)
    if plot.diagonal:
        ends = [value for series in plot.series for values in (series.x, series.y) for value in values]
        axes.axline((min(ends), min(ends)), (max(ends), max(ends)) if max(ends) > min(ends) else (1, 1), **style)
    for number, axis in enumerate((axes.xaxis, axes.yaxis)):
        if number == 1 and plot.names is not None:
            continue
        _scale(axes, "xy"[number], plot.log[number], ticks if number == 0 else 4, plot.steps and number == 0)
        axis.set_minor_locator(NullLocator())
    if plot.steps:
        axes.set_xlim(0, 1.04 * max(max(series.x) for series in plot.series) or 1)


def _series(axes: Axes, series: Series, scale: float, sideways: bool) -> None:
    x, y = list(series.x), list(series.y)
    if series.low is not None and series.high is not None:
        middles = x if sideways else y
        bars = [
            [max(middle - low, 0) if low is not None else 0 for middle, low in zip(middles, series.low, strict=True)],
            [
                max(high - middle, 0) if high is not None else 0
                for middle, high in zip(middles, series.high, strict=True)
            ],
        ]
        error: dict[str, Any] = {"xerr" if sideways else "yerr": bars}
        axes.errorbar(x, y, **error, fmt="none", ecolor=series.color, alpha=0.6, linewidth=1.5)
    if series.form == "star":
        style: dict[str, Any] = {"s": 260 * scale, "marker": "*", "edgecolor": INK, "zorder": 5, "clip_on": False}
        axes.scatter(x, y, color=series.color, label=series.label, **style)
    elif series.form in ("points", "hollow"):
        fill = "white" if series.form == "hollow" else series.color
        axes.scatter(x, y, s=45 * scale, marker=series.marker, facecolor=fill, edgecolor=series.color,
                     label=series.label, zorder=3)  # fmt: skip
    else:
        faint = series.form == "faint"
        marker = "" if faint or len(x) > 40 else series.marker
        size = 5 * scale if len(x) > 1 else 8 * scale
        axes.plot(x, y, color=series.color, marker=marker, markersize=size, label=series.label,
                  linewidth=1 if faint else 2 * scale, alpha=0.3 if faint else 1)  # fmt: skip


def _scale(axes: Axes, name: str, log: bool, ticks: int, whole: bool) -> None:
    """Number an axis with few ticks, whose words have room beside each other."""
    axis = axes.xaxis if name == "x" else axes.yaxis
    if log:
        axes.set(**{f"{name}scale": "log"})
        low, high = axes.get_xlim() if name == "x" else axes.get_ylim()
        axis.set_major_locator(FixedLocator(_log_ticks(low, high)))
    else:
        axis.set_major_locator(MaxNLocator(ticks, integer=whole))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))


def _log_ticks(low: float, high: float) -> list[float]:
    """Return at most five round numbers between two ends."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        if len(ticks) <= 5:
            return ticks
    return ticks[:: -(-len(ticks) // 5)]


def _number(value: float) -> str:
    """Return a number of an axis in few letters: 20k, 1.5M, 0.75, 1e-05."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= unit:
            return f"{value / (1e3 if letter == 'k' else unit):.5g}{letter}"
    return f"{value:,.5g}"


def _key(axes: Axes, inches: float) -> None:
    legend = look.legend_beside(axes, 10)
    for text in legend.get_texts():
        text.set_text(look.fitting(text.get_text(), inches, 10))
        text.set_parse_math(False)


def _stack(axes: Axes, stack: Stack, names: Sequence[str], inches: float) -> None:
    ends = max((look.width(word, 10) for _, _, word in stack.rows), default=0.0)
    whole = max(sum(part.size for part in parts) for _, parts, _ in stack.rows) or 1.0
    reach = whole * inches / max(inches - ends - 0.15, 1.0) if ends else whole
    for row, (_, parts, word) in enumerate(stack.rows):
        left = 0.0
        for part in parts:
            axes.barh(row, part.size, 0.72, left, color=part.color, edgecolor="white", label=part.label)
            if not stack.key and look.width(part.label, 10) + 0.08 < part.size / reach * inches:
                axes.text(left + part.size / 2, row, part.label, ha="center", va="center", fontsize=10,
                          color=look.letters_on(part.color), parse_math=False)  # fmt: skip
            left += part.size
        axes.text(left + 0.008 * reach, row, word, va="center", fontsize=10, color=GREY)
    axes.set(xlim=(0, reach), ylim=(len(stack.rows) - 0.5, -0.5), xticks=[])
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    if stack.key:
        labels = [part.label for part in stack.rows[0][1]]
        sizes = (
            size for size in (10.5, 10, 9.5, 9, 8.5) if sum(look.width(label, size) + 0.38 for label in labels) < inches
        )
        look.legend_below(axes, len(labels), next(sizes, 8))
