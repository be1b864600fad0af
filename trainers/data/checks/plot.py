"""The checks on one page: labels and unseen ids by day, leakage probes, lengths."""

import os
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.checks import ids, leaks
from livetrain.trainers.data.checks.findings import Verdict, listed
from livetrain.trainers.data.checks.whole import Checked
from livetrain.trainers.observe.report import panels as look
from livetrain.trainers.observe.report.panels import COLORS, GREY, INK

BARS, LINES = 14, 6  # columns with the best probes; labels, ids or sequences drawn
NAME = 22  # letters of a column's name beside a bar
LEGEND = 72  # letters that a legend has room for in a line
SPAN = 10.0
_VERDICTS = {Verdict.ok: COLORS[0], Verdict.look: COLORS[4], Verdict.wrong: COLORS[1]}


def write(checked: Checked, path: Path) -> Path:
    """Write the picture, 1600 x 1000 pixels; it appears whole or not at all.

    Raises:
        BadInput: the path cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.part")
    try:
        FigureCanvasAgg(draw(checked)).print_png(unfinished)
        os.replace(unfinished, path)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror}); name another file with --out") from error
    return path


def draw(checked: Checked) -> Figure:
    """Draw label rates by day, unseen ids by day, the best leakage probes and the sequences' lengths."""
    figure = Figure(figsize=(16, 10), dpi=100, layout=look.layout(0.895), facecolor="white")
    panels = figure.subplots(2, 2)
    _headline(figure, checked)
    _draw_rates(panels[0][0], checked)
    _draw_unseen(panels[0][1], checked)
    _draw_probes(panels[1][0], checked)
    _draw_lengths(panels[1][1], checked)
    return figure


def _headline(figure: Figure, checked: Checked) -> None:
    verdicts = [finding.verdict for finding in checked.findings]
    parts = [f"{checked.dataset.rows:,} rows"] + [f"{verdicts.count(verdict)} {verdict.value}" for verdict in Verdict]
    figure.text(
        0.0125, 0.975, checked.dataset.folder.resolve().name, fontsize=22, fontweight="bold", color=INK, va="top"
    )
    figure.text(0.0125, 0.93, "   |   ".join(parts), fontsize=15, color=GREY, va="top")


def _draw_rates(axes: Axes, checked: Checked) -> None:
    """Draw every 0/1 label's rate by day; the axis is logarithmic where one label is SPAN times as rare as another."""
    look.panel(axes, "Label rates by day", "", "rate of the known rows")
    shown = [label for label in checked.labels if label.binary and any(day.known and day.mean for day in label.days)]
    if not shown:
        return look.missing(axes, "no label of 0 and 1")
    for number, label in enumerate(shown[:LINES]):
        days = [day for day in label.days if day.known]
        rates = [day.mean or np.nan for day in days]
        axes.plot([day.day for day in days], rates, label=label.column, **_line(number, len(days)))
    usual = [np.median([day.mean for day in label.days if day.known and day.mean]) for label in shown[:LINES]]
    axes.set_ylim(0, 1.45 * max(day.mean for label in shown[:LINES] for day in label.days))
    if max(usual) > SPAN * min(usual):
        axes.set_yscale("log")
        axes.set_ylim(0.2 * min(usual), 6 * max(usual))
        axes.minorticks_off()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{100 * rate:g} %" if rate <= 1 else ""))
    _day_axis(axes, checked)
    return _fitting_legend(axes, len(shown), "labels")


def _draw_unseen(axes: Axes, checked: Checked) -> None:
    where = "any day before" if checked.dataset.by_day else "train"
    look.panel(axes, f"Rows with an id not in {where}", "", "share of rows")
    shown = sorted((c for c in checked.unseen if any(day[3] for day in c.days)), key=_worst, reverse=True)
    if not shown:
        return look.missing(axes, "none" if any(c.days for c in checked.unseen) else "no later part with ids")
    for number, column in enumerate(shown[:LINES]):
        days, _, rows, new = (np.array(x) for x in zip(*column.days, strict=True))
        axes.plot(days, new / rows, label=column.column, **_line(number, len(days)))
    axes.axhline(ids.UNSEEN, color=GREY, linewidth=1, linestyle=(0, (5, 4)), label="_limit")
    _share_axis(axes, max(ids.UNSEEN, *(new / rows for c in shown for *_, rows, new in c.days)))
    _day_axis(axes, checked)
    return _fitting_legend(axes, len(shown), "columns")


def _draw_probes(axes: Axes, checked: Checked) -> None:
    """Draw the columns whose best probe is highest, each with the label that it predicts best."""
    look.panel(axes, "One column alone against a label", "AUC", "")
    best: dict[str, leaks.Probe] = {}
    for found in sorted(checked.probes, key=lambda probe: -probe.auc):
        best.setdefault(found.column, found)
    shown = list(best.values())[:BARS][::-1]
    if not shown:
        return look.missing(axes, "no column to probe, or too few rows of one class")
    bars = axes.barh(
        [f"{_short(probe.column)} > {_short(probe.label)}" for probe in shown],
        [probe.auc - 0.5 for probe in shown],
        left=0.5,
        color=[_VERDICTS[probe.verdict] for probe in shown],
    )
    axes.bar_label(bars, [f"{probe.auc:.3f}" for probe in shown], padding=3, fontsize=11, color=INK)
    for limit in (leaks.LOOK, leaks.WRONG):
        axes.axvline(limit, color=GREY, linewidth=1, linestyle=(0, (5, 4)))
    axes.set_xlim(0.5, 1.04)
    return axes.grid(visible=False, axis="y")


def _draw_lengths(axes: Axes, checked: Checked) -> None:
    """Draw what share of the sampled rows has a sequence longer than x."""
    look.panel(axes, "Sequence lengths", "events", "share of rows with more")
    shown: dict[bytes, tuple[np.ndarray, list[str]]] = {}  # parallel sequences are one line
    for column in checked.lengths:
        lengths = np.concatenate(column.parts)
        if lengths.any():
            shown.setdefault(lengths.tobytes(), (lengths, []))[1].append(column.column)
    if not shown:
        return look.missing(axes, "no sequences" if not checked.lengths else "all sequences are empty")
    for number, (lengths, names) in enumerate(list(shown.values())[:LINES]):
        edges = np.arange(lengths.max() + 1)
        more = 1 - np.cumsum(np.bincount(lengths)) / len(lengths)
        axes.step(
            edges, more, where="post", label=f"{listed(names, 2)}: mean {lengths.mean():.1f}", **_line(number, 1000)
        )
    _share_axis(axes, 1.0)
    return _fitting_legend(axes, len(shown), "sequences")


def _short(name: str) -> str:
    return name if len(name) <= NAME else f"{name[: NAME - 1]}…"


def _worst(column: ids.Unseen) -> float:
    return max(new / rows for *_, rows, new in column.days)


def _line(number: int, points: int) -> dict:
    style = look.task_style(number) | {"linewidth": 2.0, "markersize": 5}
    dashes = {"linestyle": ("-", "--")[number // len(COLORS) % 2]}
    return style | dashes | ({} if points <= 60 else {"marker": ""})


def _fitting_legend(axes: Axes, count: int, what: str) -> None:
    """Draw a legend above the lines, of as many columns as its words have room for; it takes no part in the layout."""
    longest = max(len(str(line.get_label())) for line in axes.get_lines())
    columns = max(1, min(4, count, LEGEND // (longest + 8)))
    look.legend(axes, "upper left", columns).set_in_layout(False)
    if count > LINES:
        look.note(axes, f"and {count - LINES} more {what}", 0.99, 1.01, ha="right", va="bottom")


def _share_axis(axes: Axes, most: float) -> None:
    """Leave room for the legend above `most`, and write shares as percents."""
    axes.set_ylim(0, 1.45 * most)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %" if share <= 1 else ""))


def _day_axis(axes: Axes, checked: Checked) -> None:
    """Name the days; without dates the parts are the days."""
    days = sorted(
        {day.day for label in checked.labels for day in label.days} | {d[0] for c in checked.unseen for d in c.days}
    )
    low, high = days[0], days[-1]
    axes.set_xlim(low - 0.5, high + 0.5)
    step = max(1, -(-(high - low) // 4))
    axes.set_xticks(range(low, high + 1, step))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda day, _: checked.dataset.day(int(day))))
