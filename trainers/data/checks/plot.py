"""The checks on one page: labels and unseen ids by day, leakage probes, lengths."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.checks import ids, leaks
from livetrain.trainers.data.checks.findings import Verdict, called, listed, runs
from livetrain.trainers.data.checks.whole import Checked
from livetrain.trainers.observe.report import panels as look
from livetrain.trainers.observe.report.panels import COLORS, GREY, INK, fitting

BARS, LINES = 12, 6  # columns with the best probes; labels, ids or sequences drawn
NAME = 2.4  # inches of a column's name beside a bar or in a legend, of 11 points
LEGEND = 84  # letters that a legend has room for in a line
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
    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1, wspace=0.04)
    figure = Figure(figsize=(16, 10), dpi=100, layout=layout, facecolor="white")
    _headline(figure, checked)
    rows = figure.add_gridspec(3, 1, height_ratios=[0.1, 0.46, 0.44])
    for place, panels in ((1, (_draw_rates, _draw_unseen)), (2, (_draw_probes, _draw_lengths))):
        row = figure.add_subfigure(rows[place])  # of margins of its own
        for axes, paint in zip(row.subplots(1, 2), panels, strict=True):
            paint(axes, checked)
    return figure


def _headline(figure: Figure, checked: Checked) -> None:
    dataset, verdicts = checked.dataset, [finding.verdict for finding in checked.findings]
    parts = f"{len(dataset.parts)} {'day' if dataset.by_day else 'split'}{'s' if len(dataset.parts) > 1 else ''}"
    facts = [f"{dataset.rows:,} rows in {parts}", f"{len(dataset.schema)} columns"]
    look.header(
        figure,
        dataset.folder.resolve().name,
        facts + [f"{verdicts.count(verdict)} {verdict.value}" for verdict in Verdict],
    )


def _draw_rates(axes: Axes, checked: Checked) -> None:
    """Draw every 0/1 label's rate by day; the axis is logarithmic where one label is SPAN times as rare as another."""
    look.panel(axes, "Rates of the 0/1 labels by day", "", "share of 1 in the known rows")
    shown = [label for label in checked.labels if label.binary and any(day.known and day.mean for day in label.days)]
    if not shown:
        return look.missing(axes, "no label of 0 and 1")
    usual = []
    for number, label in enumerate(shown[:LINES]):
        days, known, ones = _by_day((day.day, day.known, day.known * day.mean) for day in label.days)
        rates = np.where(ones > 0, ones / np.maximum(known, 1), np.nan)
        axes.plot(days, rates, label=fitting(label.column, NAME, 11), **_line(number, len(days)))
        usual.append(np.nanmedian(rates))
    axes.set_ylim(bottom=0)
    if max(usual) > SPAN * min(usual):
        axes.set_yscale("log")
        axes.set_ylim(0.4 * min(usual), min(2.5 * max(usual), 1.6))
        axes.minorticks_off()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{100 * rate:g} %" if rate <= 1 else ""))
    _day_axis(axes, checked)
    return _legend(axes, len(shown), "labels")


def _draw_unseen(axes: Axes, checked: Checked) -> None:
    where = "any day before" if checked.dataset.by_day else "train"
    look.panel(axes, f"Rows with an id that is not in {where}", "", "share of rows")
    columns = [column for column in checked.unseen if not column.calendar]
    shown = sorted((c for c in columns if any(day[3] for day in c.days)), key=_worst, reverse=True)
    if not shown:
        return look.missing(axes, "none" if any(c.days for c in columns) else "no later part with ids")
    for number, column in enumerate(shown[:LINES]):
        days, rows, new = _by_day((day, rows, new) for day, _, rows, new in column.days)
        axes.plot(days, new / rows, label=fitting(column.column, NAME, 11), **_line(number, len(days)))
    axes.set_ylim(0, 1.06 * max(1.15 * ids.UNSEEN, *map(_worst, shown[:LINES])))
    axes.axhline(ids.UNSEEN, color=_VERDICTS[Verdict.look], linewidth=1.2, linestyle=(0, (5, 4)), zorder=1)
    axes.annotate(f"look: above {100 * ids.UNSEEN:g} % in the last part", (0, ids.UNSEEN), xytext=(4, 3), fontsize=11,
                  color=GREY, xycoords=axes.get_yaxis_transform(), textcoords="offset points")  # fmt: skip
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    _day_axis(axes, checked)
    return _legend(axes, len(shown), "columns")


def _draw_probes(axes: Axes, checked: Checked) -> None:
    """Draw the columns whose best probe is highest, each with the label that it predicts best; of v_0 .. v_63 one."""
    look.panel(axes, "How well one column alone predicts a label", "AUC, and two standard errors either way", "")
    best: dict[str, leaks.Probe] = {}
    runs_of = {name: called(run) for run in runs(checked.dataset.schema.names) for name in run}
    for found in sorted(checked.probes, key=lambda probe: -probe.auc):
        best.setdefault(runs_of[found.column], found)
    shown = list(best.values())[:BARS][::-1]
    if not shown:
        return look.missing(axes, "no column to probe, or too few rows of one class")
    names = [" → ".join(fitting(name, 0.8 * NAME, 11) for name in (probe.column, probe.label)) for probe in shown]
    auc, errors = (np.array([getattr(probe, name) for probe in shown]) for name in ("auc", "error"))
    axes.barh(names, auc - 0.5, left=0.5, color=[_VERDICTS[probe.verdict] for probe in shown])
    reach = np.minimum(2 * errors, 1 - auc)
    axes.errorbar(auc, range(len(shown)), xerr=[2 * errors, reach], fmt="none", ecolor=INK, elinewidth=1, capsize=2)
    for place, probe in enumerate(shown):
        axes.annotate(f"{probe.auc:.3f}", (probe.auc + reach[place], place), xytext=(5, 0), va="center",
                      textcoords="offset points", fontsize=11, color=INK)  # fmt: skip
    top = max(len(shown), 4)
    for limit, verdict, side in ((leaks.LOOK, Verdict.look, "right"), (leaks.WRONG, Verdict.wrong, "center")):
        axes.axvline(limit, color=_VERDICTS[verdict], linewidth=1.2, linestyle=(0, (5, 4)), zorder=1)
        axes.text(limit, top + 0.15, f"{verdict.value}: above {limit:g}", fontsize=11, color=GREY, ha=side,
                  va="center", bbox={"fc": "white", "ec": "none", "pad": 1})  # fmt: skip
    axes.set(xlim=(0.5, 1.06), ylim=(-0.6, top + 0.6))
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
        label = f"{fitting(listed(names, 2), 1.5 * NAME, 11)}: mean {lengths.mean():.1f}"
        axes.step(edges, more, where="post", label=label, **_line(number, 1000))
    axes.set_ylim(0, 1.04)
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    return _legend(axes, len(shown), "sequences")


def _by_day(rows: Iterable[tuple[int, float, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the days, in order, and two sums by day: a day may be cut by splits, and is one day still."""
    sums: dict[int, list[float]] = {}
    for day, one, two in rows:
        found = sums.setdefault(day, [0.0, 0.0])
        found[0], found[1] = found[0] + one, found[1] + two
    days = sorted(sums)
    one, two = np.array([sums[day] for day in days]).T
    return np.array(days), one, two


def _worst(column: ids.Unseen) -> float:
    _, rows, new = _by_day((day, rows, new) for day, _, rows, new in column.days)
    return float((new / rows).max())


def _line(number: int, points: int) -> dict:
    style = look.task_style(number) | {"linewidth": 2.0, "markersize": 5}
    dashes = {"linestyle": ("-", "--")[number // len(COLORS) % 2]}
    return style | dashes | ({} if points <= 60 else {"marker": ""})


def _legend(axes: Axes, count: int, what: str) -> None:
    """Draw a legend below a panel, of as many columns as its words have room for."""
    if count > LINES:
        axes.plot([], [], " ", label=f"and {count - LINES} more {what}")
    names = axes.get_legend_handles_labels()[1]
    columns = max(1, min(4, len(names), LEGEND // (max(map(len, names)) + 7)))
    below = axes.transAxes + ScaledTranslation(0, -45 / 72, axes.figure.dpi_scale_trans)  # past ticks and axis label
    axes.legend(loc="upper left", bbox_to_anchor=(-0.01, 0), bbox_transform=below, ncols=columns, fontsize=12,
                labelcolor=INK, frameon=False, borderaxespad=0)  # fmt: skip


def _percent(share: float, _: int) -> str:
    return f"{100 * share:g} %" if share <= 1 else ""


def _day_axis(axes: Axes, checked: Checked) -> None:
    """Name the days, and mark where splits begin that follow each other; without dates the parts are the days."""
    dataset = checked.dataset
    spans: dict[int, tuple[int, int]] = {}  # part -> its first and last day
    days = [(day.part, day.day) for label in checked.labels for day in label.days]
    for part, day in days + [(row[1], row[0]) for column in checked.unseen for row in column.days]:
        first, last = spans.get(part, (day, day))
        spans[part] = (min(first, day), max(last, day))
    low, high = min(first for first, _ in spans.values()), max(last for _, last in spans.values())
    axes.set_xlim(low - 0.5, high + 0.5)
    axes.set_xticks(range(low, high + 1, max(1, -(-(high - low) // 6))))
    axes.tick_params(axis="x", pad=7)
    skipped = len("2026-") if dataset.dated else 0
    axes.xaxis.set_major_formatter(FuncFormatter(lambda day, _: dataset.day(int(day))[skipped:]))
    if not dataset.dated:
        return
    told = f"{dataset.day(low)} to {dataset.day(high)}" if low < high else dataset.day(low)
    parts = sorted(spans)
    pairs = list(zip(parts, parts[1:], strict=False))
    if pairs and not dataset.by_day and all(spans[later][0] >= spans[part][1] for part, later in pairs):
        for part, later in pairs:
            axes.axvline((spans[part][1] + spans[later][0]) / 2, color=GREY, linewidth=1, linestyle=":", zorder=1)
        told += f"; dotted: where {' and '.join(dataset.parts[later].name for later in parts[1:])} begin"
    axes.set_xlabel(told, fontsize=12, color=GREY)
