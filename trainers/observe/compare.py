"""Runs side by side: what differs in their recipes, their figures with what chance leaves open, their curves."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from livetrain.configs.errors import BadInput
from livetrain.modules.tasks.registry import metrics
from livetrain.trainers.evaluate.draws import Draws, paired
from livetrain.trainers.observe.report.panels import (
    finite_number,
    header,
    legend_beside,
    missing,
    panel,
    task_style,
)
from livetrain.trainers.observe.runs import Listed, look
from livetrain.trainers.runtime import run_folder, runlog

if TYPE_CHECKING:
    import pandas

FEW = 4  # runs beyond which a terminal has room for a line per run, and not for a column
_APART = ("name", "cluster.address")  # of a recipe, what makes no other run
_SHOWN = 60  # letters of a value of a recipe


@dataclass(frozen=True)
class Compared:
    """Runs, the first of which the others are compared with.

    Args:
        runs: as they are listed.
        figures: of each run, by ``<split>.<task>.<metric>``.
        draws: of each run, of one split.
        split: which that is.
    """

    runs: list[Listed]
    figures: list[dict[str, Any]]
    draws: list[Draws]
    split: str = "test"

    @property
    def names(self) -> list[str]:
        """The runs' names, with their folders where two have the same."""
        names = [run.name for run in self.runs]
        return [name if names.count(name) == 1 else str(run.folder) for run, name in zip(self.runs, names, strict=True)]

    def measured(self) -> list[str]:
        """Return the figures that any run has, in the order of the runs: metrics with a direction, and others."""
        known = metrics(key.rpartition(".")[2] for figures in self.figures for key in figures)
        named = dict.fromkeys(key for figures in self.figures for key in figures)
        return [key for key in named if key.count(".") >= 2 and key.rpartition(".")[2] in known]

    def difference(self, run: int, key: str) -> tuple[float, tuple[float, float] | None] | None:
        """Return a run's figure less the first run's, with the ends of the 95 % interval where their draws pair."""
        one, other = (finite_number(self.figures[at].get(key)) for at in (0, run))
        if run == 0 or one is None or other is None:
            return None
        split, _, name = key.partition(".")
        found = paired(self.draws[0], self.draws[run], name) if split == self.split else None
        return other - one, found

    def recipes(self) -> dict[str, list[Any]]:
        """Return the recipes' keys that are not the same in all runs, with every run's value, None for none."""
        flat = [_flat(run.recipe) for run in self.runs]
        keys = dict.fromkeys(itertools.chain.from_iterable(flat))
        found = {key: [tree.get(key) for tree in flat] for key in keys if key not in _APART}
        return {key: values for key, values in found.items() if any(value != values[0] for value in values)}

    @property
    def frame(self) -> "pandas.DataFrame":
        """A row per figure and run: `metric`, `run`, `value`, its interval, and the difference to the first run."""
        import pandas

        rows = []
        for key in self.measured():
            for at, name in enumerate(self.names):
                difference, ends = self.difference(at, key) or (None, None)
                low, high = ends or (None, None)
                value, own = (
                    self.figures[at].get(key),
                    [self.figures[at].get(f"{key}_{end}") for end in ("low", "high")],
                )
                row = {"metric": key, "run": name, "value": value, "low": own[0], "high": own[1]}
                rows.append(row | {"difference": difference, "difference_low": low, "difference_high": high})
        columns = ["metric", "run", "value", "low", "high", "difference", "difference_low", "difference_high"]
        frame = pandas.DataFrame(rows, columns=columns)
        return frame.astype(dict.fromkeys(columns[2:], "float64"))


def compared(folders: Sequence[Path], measured: Sequence[tuple[dict[str, Any], Draws]] | None, split: str) -> Compared:
    """Compare runs by what they say of themselves, or by what was measured now.

    Args:
        folders: of two runs or more.
        measured: of each run its figures and draws on `split`, in the place of those that it has kept.
        split: which.

    Raises:
        BadInput: one of them is no run, or there are not two.
    """
    if len({folder.resolve() for folder in folders}) < max(len(folders), 2):
        raise BadInput("compare: name two runs or more, each once")
    for folder in folders:
        run_folder.check(folder)
    runs = [look(folder) for folder in folders]
    if measured is not None:
        return Compared(runs, [figures for figures, _ in measured], [draws for _, draws in measured], split)
    kept = [run.result or {f"valid.{name}": value for name, value in run.best.items()} for run in runs]
    return Compared(runs, kept, [Draws.read(folder) for folder in folders], split)


def _flat(tree: Any, above: str = "") -> dict[str, Any]:
    """Return a tree's leaves by dotted keys; lists are leaves."""
    if not isinstance(tree, dict) or not tree:
        return {above: tree} if above else {}
    parts = (_flat(value, f"{above}.{key}".lstrip(".")) for key, value in tree.items())
    return {key: value for part in parts for key, value in part.items()}


def tables(found: Compared) -> list[Table]:
    """Return what differs, the figures and the cost as tables for the terminal."""
    wide = _by_run if len(found.runs) > FEW else _by_row
    differing = found.recipes()
    rows = [(key, [_value(value) for value in values]) for key, values in differing.items()]
    out = [wide(found, "what differs in the recipes", rows)] if rows else []
    keys = found.measured() if len(found.runs) <= FEW else _leading(found)
    figures = [(key, [_figure(found, at, key) for at in range(len(found.runs))]) for key in keys]
    out += [wide(found, "figures, and differences to the first run", figures)] if figures else []
    return [*out, wide(found, "state and cost", _costs(found))]


def _by_row(found: Compared, title: str, rows: list[tuple[str, list[str]]]) -> Table:
    """Return a table with a column per run."""
    shown = Table(title=title, title_justify="left", header_style="bold")
    shown.add_column("", overflow="fold")
    for name in found.names:
        shown.add_column(name, overflow="fold", justify="right")
    for name, cells in rows:
        shown.add_row(name, *cells)
    return shown


def _by_run(found: Compared, title: str, rows: list[tuple[str, list[str]]]) -> Table:
    """Return a table with a line per run, and in it what `rows` say of it."""
    shown = Table(title=title, title_justify="left", header_style="bold")
    shown.add_column("run", overflow="fold")
    shown.add_column("", overflow="fold")
    for at, name in enumerate(found.names):
        shown.add_row(name, ", ".join(f"{key} {cells[at]}" for key, cells in rows if cells[at] != "-"))
    return shown


def _leading(found: Compared) -> list[str]:
    """Return the figures of the metrics that pick the runs' best checkpoints."""
    picks = dict.fromkeys(run.metric for run in found.runs if run.metric)
    return [key for key in found.measured() if key.partition(".")[2] in picks]


def _value(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _figure(found: Compared, at: int, key: str) -> str:
    """Return a run's figure, and below it the difference to the first run's."""
    value, name = finite_number(found.figures[at].get(key)), key.rpartition(".")[2]
    if value is None:
        return "-"
    known = metrics([name])[name]
    text, apart = format(value, known.shown), found.difference(at, key)
    if apart is None or not known.better:
        return text
    difference, ends = apart
    within = f" ({ends[0]:+.4f} to {ends[1]:+.4f})" if ends else ""
    return f"{text} {difference:+.4f}{within}"


def _costs(found: Compared) -> list[tuple[str, list[str]]]:
    """Return what the runs are and took."""

    def cells(get: Callable[[Listed], str | None]) -> list[str]:
        return [get(run) or "-" for run in found.runs]

    def result(key: str, shown: Callable[[Any], str | None]) -> list[str]:
        return cells(lambda run: shown(run.result[key]) if run.result.get(key) is not None else None)

    rows = [
        ("state", cells(lambda run: run.progress)),
        ("model", cells(lambda run: run.model)),
        ("data", cells(lambda run: run.data)),
        ("best checkpoint's step", result("best_step", lambda step: f"{step:,}")),
        ("time", result("wall_s", lambda seconds: f"{seconds:,.0f} s")),
        ("rows/s", result("rows_per_s", lambda rate: f"{rate:,.0f}")),
        ("workers", result("workers", str)),
        ("device", result("device", str)),
        ("most memory of a worker", result("memory", lambda peak: _mebibytes(peak["host"]))),
        ("the same, GPU", result("memory", lambda peak: _mebibytes(peak["gpu"]) if peak["gpu"] else None)),
    ]
    return [row for row in rows if set(row[1]) != {"-"}]


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"


def remarks(found: Compared) -> list[str]:
    """Return what is to be known of the tables: what the intervals are, and why there are none."""
    first, lines = found.names[0], []
    others = range(1, len(found.runs))
    differences = [(at, found.difference(at, key)) for at in others for key in found.measured()]
    if any(each and each[1] for _, each in differences):
        lines.append(
            f"differences are to {first}; in brackets, 95 % intervals by a bootstrap whose draws take the same groups "
            f"of rows for both runs: one without 0 in it is more than chance among the rows of {found.split}"
        )
    for at in others:
        pairs = [each for number, each in differences if number == at and each]
        if not pairs:
            lines.append(f"{found.names[at]} and {first} have no figure in common")
        elif not any(ends for _, ends in pairs):
            lines.append(f"{found.names[at]}: differences have no intervals: {_why(found, at)}")
    if not found.recipes():
        lines.append("the recipes are the same")
    return lines


def _why(found: Compared, at: int) -> str:
    """Say why two runs' draws do not pair."""
    without = [found.names[number] for number in (0, at) if not found.draws[number].values]
    if without:
        return f"{' and '.join(without)} kept no draws (evaluate.bootstrap was 0); --split test measures anew"
    return f"it was measured on other rows of {found.split}, other labels or other groups than {found.names[0]}"


def draw(found: Compared) -> Figure:
    """Return the runs' curves: the loss of training, and what picks the best checkpoint, each by epoch."""
    chosen = list(dict.fromkeys(run.metric for run in found.runs if run.metric))[:3]
    figure = Figure(figsize=(6.5 * (1 + len(chosen)), max(5.0, 2.2 + 0.24 * len(found.runs))))
    facts = [f"{len(found.runs)} runs", f"the first is {found.names[0]}"]
    top = header(figure, "Runs compared", facts)
    below = (0, 0, 1, 1 - top / figure.get_figheight())
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.2, h_pad=0.2, wspace=0.03, hspace=0.04, rect=below))
    axes = figure.subplots(1, 1 + len(chosen), squeeze=False)[0]
    for at, run in enumerate(found.runs):
        lines = runlog.read(run.folder)
        train = [line for line in lines if line.get("kind") == "train"]
        epochs = {line.get("step"): line.get("epoch") for line in train}
        evaluations = [line for line in lines if line.get("kind") == "eval" and line.get("split") == "valid"]
        name = found.names[at] if len(found.names[at]) <= 28 else f"{found.names[at][:13]}…{found.names[at][-14:]}"
        _curve(axes[0], name, at, _smoothed(_known((line.get("epoch"), line.get("loss")) for line in train)))
        for place, metric in zip(axes[1:], chosen, strict=True):
            _curve(place, name, at, _known((epochs.get(line.get("step")), line.get(metric)) for line in evaluations))
    titles = ["Loss of training, in means", *(f"{metric} on valid" for metric in chosen)]
    for place, title in zip(axes, titles, strict=True):
        panel(place, title, "epoch")
        place.yaxis.set_major_locator(MaxNLocator(7, prune="lower"))  # the lowest may meet the x axis' first
        if not any(len(line.get_xdata()) for line in place.lines):
            missing(place, "no run has come so far")
    legend_beside(axes[-1])
    return figure


def _smoothed(points: list[tuple[float, float]], most: int = 60) -> list[tuple[float, float]]:
    """Return the means of at most so many stretches of points that follow one another: one step's loss tells little."""
    stretches = (
        [part for part in np.array_split(np.array(points), min(most, len(points))) if len(part)] if points else []
    )
    return [(float(part[-1, 0]), float(part[:, 1].mean())) for part in stretches]


def _known(points: Iterable[tuple[Any, Any]]) -> list[tuple[float, float]]:
    """Return the points of which both numbers are known."""
    pairs = ((finite_number(x), finite_number(y)) for x, y in points)
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _curve(axes: Axes, name: str, number: int, points: list[tuple[float, float]]) -> None:
    """Draw a run's curve; one without points stands in the legend all the same."""
    style = task_style(number) | {"markersize": 5, "markevery": max(len(points) // 12, 1)}
    style["linestyle"] = ("-", "--", ":", "-.")[number // 12 % 4]  # styles come again after twelve
    axes.plot([x for x, _ in points], [y for _, y in points], label=name, **style)
