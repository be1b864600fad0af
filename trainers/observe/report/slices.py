"""The panel of slices: each one's leading metric beside the whole split's, with intervals where they were drawn."""

from typing import Any

from matplotlib.axes import Axes

from livetrain.modules.tasks.registry import leading, metrics
from livetrain.trainers.observe.report.panels import GREY, legend, panel, task_style
from livetrain.trainers.observe.report.summary import _figures, _tasks, interval, slices_in


def draw_slices(axes: Axes, result: dict[str, Any], split: str) -> None:
    """Draw a row per slice, the whole split first, and in it a mark per task.

    Args:
        axes: to draw in.
        result: of a run with slices.
        split: whose figures are drawn.
    """
    figures, names = dict(_figures(result)), slices_in(result)
    tasks = [task for task in _tasks(result) if task.partition(".")[0] not in names]
    parts, titles = ["", *names], []
    for number, task in enumerate(tasks):
        metric = leading([name for of, own, name in figures if (of, own) == (split, task)])
        if metric is None:
            continue
        titles.append(metrics([metric])[metric].title)
        shift = (number - (len(tasks) - 1) / 2) * 0.6 / len(tasks)
        style, labelled = task_style(number), False
        for row, part in enumerate(parts):
            key = (split, f"{part}.{task}" if part else task, metric)
            value, (low, high) = figures.get(key), interval(result, key)
            if value is None:
                continue
            bars = [[max(value - low, 0)], [max(high - value, 0)]] if low is not None and high is not None else None
            label = None if labelled or len(tasks) == 1 else task
            axes.errorbar(
                value, row + shift, xerr=bars, markersize=8, linestyle="", capsize=3, label=label, color=style["color"],
                marker=style["marker"],
            )  # fmt: skip
            labelled = True
            axes.annotate(f"{value:.4f}", (value, row + shift), (0, 7), textcoords="offset points", ha="center",
                          fontsize=11, color=GREY)  # fmt: skip
    drawn = any(key.endswith("_low") for key in result)
    panel(axes, f"{' / '.join(dict.fromkeys(titles)) or 'Slices'} by slice ({split})", "bars: 95 %" if drawn else "")
    rows = [result.get(f"{split}.{part}.rows" if part else f"{split}.rows") for part in parts]
    labels = [f"{part or 'all'}\n{count or 0:,.0f} rows" for part, count in zip(parts, rows, strict=True)]
    axes.set(yticks=range(len(parts)), yticklabels=labels, ylim=(len(parts) - 0.4, -0.6))
    axes.margins(x=0.08)
    if axes.get_legend_handles_labels()[0]:
        legend(axes, "upper right", 4)
