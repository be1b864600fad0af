"""The report's panels of a task: its loss, leading metric and calibration, and that metric by parts of a split."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from livetrain.modules.metrics.certainty import auc_interval, rate_interval
from livetrain.modules.tasks.kind import Metric
from livetrain.modules.tasks.registry import leading, metrics
from livetrain.modules.tasks.retrieval import AT
from livetrain.trainers.observe.report.page import Band, Form, Plot, Series
from livetrain.trainers.observe.report.panels import COLORS, finite_number, task_style
from livetrain.trainers.observe.report.summary import ends, evaluated, interval, slices_in
from livetrain.trainers.observe.report.thinning import joined, thinned

Key = tuple[str, str, str]  # split, task, metric
WIDE = 20.0  # an axis is logarithmic whose values differ by more than this factor


@dataclass(frozen=True)
class Told:
    """What a run has told of itself.

    Attributes:
        recipe: config.yaml as it stands; empty where it is not there.
        lines: of metrics.jsonl, of training and evaluations, in order of steps.
        result: result.json; empty while the run trains.
    """

    recipe: dict[str, Any]
    lines: list[dict[str, Any]]
    result: dict[str, Any]

    @property
    def figures(self) -> dict[Key, float | None]:
        """The figures of the splits as a whole, without those of slices."""
        names = slices_in(self.result)
        return {key: value for key, value in evaluated(self.result) if key[1].partition(".")[0] not in names}

    @property
    def split(self) -> str:
        """The split whose curves the result holds: the test split, where there is one."""
        return "test" if any(split == "test" for split, _, _ in self.figures) else "valid"

    @property
    def tasks(self) -> list[str]:
        """The tasks, of a run that has told of none the unnamed one."""
        logged = [key[1] for key, _, _ in self.evaluations()]
        losses = [key.removesuffix(".loss") for line in self.lines for key in line if key.endswith(".loss")]
        own = list(self.recipe.get("tasks") or {})
        return list(dict.fromkeys([*own, *(task for _, task, _ in self.figures), *logged, *losses])) or [""]

    def evaluations(self) -> list[tuple[Key, int, float | None]]:
        """Return the figures that were logged, with their steps, without those of slices."""
        return [
            ((line.get("split", "valid"), *key.rpartition(".")[::2]), line["step"], finite_number(line[key]))
            for line in self.lines
            if line["kind"] == "eval"
            for names in [slices_in(line)]
            for key in line
            if "." in key and key.partition(".")[0] not in names
        ]


def band(told: Told, task: str, number: int) -> Band:
    """Return the panels of a task, which comes so many after the first."""
    style = task_style(number)
    recalls = {key: value for key, value in told.figures.items() if key[1] == task and key[2].startswith("recall_")}
    curves = told.result.get("curves", {}).get(task)
    panels = [_loss(told, task, style), _leading(told, task, style)]
    panels += [_recalls(told, recalls)] if recalls else []
    if curves is None or any(curves.values()):  # not of a number, which has neither
        panels += [] if recalls else [_calibration(told, task, style)]
        panels += [_lengths(told, task, style)]
    if sliced := slices_in(told.result):
        panels.append(_slices(told, task, sliced, style))
    kind = (told.recipe.get("tasks") or {}).get(task, {}).get("kind", "")
    return Band(task, panels, about=kind, color=style["color"])


def _absent(told: Told) -> str:
    return "no split evaluated" if told.result else "drawn when the run has ended"


def _loss(told: Told, task: str, style: dict[str, Any]) -> Plot:
    plot = partial(Plot, "Training loss", x="step", steps=True)
    lines = [line for line in told.lines if line["kind"] == "train"]
    key = f"{task}.loss" if any(f"{task}.loss" in line for line in lines) else "loss"
    points = [(line["step"], loss) for line in lines if (loss := finite_number(line.get(key))) is not None]
    if not points:
        return plot(missing="no training steps logged")
    steps, losses = joined(*(np.array(x, float) for x in zip(*points, strict=True)))
    log = (False, bool(losses.min() > 0 and losses.max() > WIDE * losses.min()))
    window = len(losses) // 20
    series = [_curve("as logged", steps, losses, style["color"], "line" if window < 5 else "faint")]
    if window < 5:
        return plot(series=series, log=log)
    near = np.ones(window)
    smooth = np.convolve(losses, near, "same") / np.convolve(np.ones_like(losses), near, "same")
    series.append(_curve(f"mean of {window}", steps, smooth, style["color"], "line"))
    return plot(about=f"faint: as logged; line: mean of {window} of these", series=series, log=log)


def _curve(label: str, steps: np.ndarray, values: np.ndarray, color: str, form: Any) -> Series:
    steps, values = thinned(steps, values)
    return Series(label, steps.tolist(), values.tolist(), color, marker="" if len(steps) > 40 else "o", form=form)


def _leading(told: Told, task: str, style: dict[str, Any]) -> Plot:
    """Show a task's leading metric, of the evaluations and, where they were not logged, of the result."""
    logged = [point for point in told.evaluations() if point[0][1] == task]
    seen = {key for key, _, value in logged if value is not None}
    last = max((line["step"] for line in told.lines), default=0)
    at = {"test": told.result.get("best_step") or last}
    logged += [
        (key, at.get(key[0], last), value)
        for key, value in told.figures.items()
        if key[1] == task and key not in seen
    ]  # fmt: skip
    name = leading([key[2] for key, _, value in logged if value is not None])
    known = metrics([] if name is None else [name])
    if name is None:
        main = leading([key[2] for key, _, _ in logged])
        needed = main and f"{known[main].title} undefined: it needs {known[main].needs}"
        return Plot(known[main].title if main else "AUC", missing=needed or "no split evaluated")
    metric, about, series = known[name], [], []
    found: dict[str, dict[int, float]] = {}
    for (split, _, own), step, value in logged:
        if own == name and value is not None:
            found.setdefault(split, {})[step] = value
    if valid := found.get("valid"):
        about.append(f"line: valid, best {format(_best(valid, metric), metric.shown)}")
        series.append(Series("valid", list(valid), list(valid.values()), style["color"], style["marker"]))
    if test := found.get("test"):
        step, value = list(test.items())[-1]
        low, high = interval(told.result, ("test", task, name))
        about.append(f"star: test {format(value, metric.shown)}{ends(told.result, ('test', task, name))}")
        series.append(Series("test", [step], [value], style["color"], form="star", low=[low], high=[high]))
    else:
        tested = ("test", task, name) in told.figures
        about.append("test undefined" if tested else "no test split evaluated")
    return Plot(metric.title, "; ".join(about), "step", series=series, steps=True)


def _best(points: dict[int, float], metric: Metric) -> float:
    return max(points.values(), key=lambda value: metric.better * value)


def _calibration(told: Told, task: str, style: dict[str, Any]) -> Plot:
    """Show the observed rate by the mean prediction, with Wilson's intervals.

    The axes are logarithmic for a task whose predictions differ much; a rate of 0 stands at the lower edge then.
    """
    curves = told.result.get("curves", {})
    points = curves.get(task, {}).get("calibration")
    if not points:
        return Plot("Calibration", missing="undefined" if task in curves else _absent(told))
    bars = [rate_interval(point["mean_y"], point["count"]) for point in points]
    p, y, rows = ([point[name] for point in points] for name in ("mean_p", "mean_y", "count"))
    log = min(p) > 0 and max(p) > WIDE * min(p)
    lowest = min([value for value in (*p, *y) if value > 0], default=1) / 2
    span = f"{min(rows):,.0f}" if min(rows) == max(rows) else f"{min(rows):,.0f} to {max(rows):,.0f}"
    ratio = finite_number(told.result.get(f"{told.split}.{task}.pcoc"))
    about = [] if ratio is None else [f"PCOC {ratio:.3f}"]
    about += [f"{span} rows per point", "bars: 95 %", "dashed: ideal"]
    about += ["hollow: none observed"] if log and 0 in y else []
    series = []
    kinds: list[tuple[str, Form, str, list[int]]] = [
        (task, "points", style["marker"], [i for i, rate in enumerate(y) if rate or not log]),
        ("none observed", "hollow", "v", [i for i, rate in enumerate(y) if log and not rate]),
    ]
    for label, form, marker, chosen in kinds:
        low = [max(bars[i][0], lowest) if log else bars[i][0] for i in chosen]
        more = {"rows": [f"{rows[i]:,.0f}" for i in chosen], "observed": [f"{y[i]:.4g}" for i in chosen]}
        at, rates = [p[i] for i in chosen], [max(y[i], lowest) if log else y[i] for i in chosen]
        high = [bars[i][1] for i in chosen]
        one = Series(label, at, rates, style["color"], marker, form, low, high, more)
        series += [one] if chosen else []
    title = f"Calibration ({told.split})"
    return Plot(
        title, "; ".join(about), "mean prediction", "observed rate", series, log=(log, log), diagonal=True
    )  # fmt: skip


def _recalls(told: Told, recalls: dict[Key, float | None]) -> Plot:
    """Show the share of items found, by length of the list."""
    series, about = [], []
    for number, split in enumerate(dict.fromkeys(split for split, _, _ in recalls)):
        marker = "os"[number % 2]
        values = [(k, recalls.get((split, task, f"recall_{k}"))) for (_, task, _) in list(recalls)[:1] for k in AT]
        known = [(float(k), value) for k, value in values if value is not None]
        if known:
            at, shares = (list(x) for x in zip(*known, strict=True))
            series.append(Series(split, at, shares, COLORS[number], marker))
            about.append(f"{('circles', 'squares')[number % 2]}: {split}")
    if not series:
        return Plot("Found in the best K items", missing=_absent(told))
    return Plot("Found in the best K items", "; ".join(about), "K", "share", series, log=(True, False))


def _lengths(told: Told, task: str, style: dict[str, Any]) -> Plot:
    curves = told.result.get("curves", {})
    points = curves.get(task, {}).get("auc_by_length")
    if not points:
        return Plot("AUC by history length", missing="no history lengths evaluated" if curves else _absent(told))
    bars = [
        auc_interval(point["auc"], point["positives"], point["rows"] - point["positives"])
        if "positives" in point
        else (None, None)
        for point in points
    ]
    rows = [(point["length"], point["auc"], *bar, point["rows"]) for point, bar in zip(points, bars, strict=True)]
    about = "events in the history (rows)"
    whole = told.figures.get((told.split, task, "auc"))
    return _by_part(f"AUC by history length ({told.split})", about, metrics()["auc"], rows, whole, style)


def _slices(told: Told, task: str, names: list[str], style: dict[str, Any]) -> Plot:
    """Show a task's leading metric by slice, the whole split first, with intervals where they were drawn."""
    name = leading([own for split, of, own in told.figures if (split, of) == (told.split, task)])
    if name is None:
        return Plot("By slice", missing=_absent(told))
    rows, figures = [], dict(evaluated(told.result))
    for part in ("", *names):
        key = (told.split, f"{part}.{task}" if part else task, name)
        count = told.result.get(f"{told.split}.{part}.rows" if part else f"{told.split}.rows") or 0
        rows.append((part or "all", figures.get(key), *interval(told.result, key), count))
    metric = metrics([name])[name]
    about = "slice (rows)"
    whole = rows[0][1]
    return _by_part(f"{metric.title} by slice ({told.split})", about, metric, rows, whole, style)


def _by_part(
    title: str,
    about: str,
    metric: Metric,
    rows: Sequence[tuple[str, float | None, float | None, float | None, float]],
    whole: float | None,
    style: dict[str, Any],
) -> Plot:
    """Show a metric of parts of a split, given name, value, ends of its interval and rows of each, and the whole's."""
    known = [(place, value, low, high) for place, (_, value, low, high, _) in enumerate(rows) if value is not None]
    if not known:
        return Plot(title, missing=f"{metric.title} undefined")
    names = [f"{name} ({count:,.0f})" for name, *_, count in rows]
    words = ["-" if value is None else format(value, metric.shown) for _, value, *_ in rows]
    places, values, low, high = zip(*known, strict=True)
    about += "; bars: 95 %" if any(end is not None for end in low) else ""
    one = Series(metric.title, values, places, style["color"], style["marker"], "points", low, high)
    return Plot(title, f"{about}; dashed: all", metric.title, series=[one], level=whole, names=names, words=words)
