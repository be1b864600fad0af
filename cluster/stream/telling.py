"""What a follower says, so that somebody who is woken by it at night knows at once how things stand."""

import time
from collections.abc import Iterator

from livetrain.cluster.stream.windows import Increment
from livetrain.configs.duration import span
from livetrain.modules.tasks.registry import metrics
from livetrain.trainers.train.increments import Learned, Line

_UNDEFINED = "undefined"
SILENT = 5  # increments' time after which a stream that closes nothing is said to be silent


def lag(taken: int, newest: int | None) -> dict[str, float]:
    """Return how far what is learned lies behind the newest closed minute and behind the clock, in s of event time."""
    return {
        "behind_s": float(max((newest or taken) - taken, 0)),
        "behind_clock_s": round(time.time() - taken, 1),
    }


def line(of: Line, found: Increment, learned: Learned, behind: dict[str, float]) -> str:
    """Return an increment in one line."""
    late = behind["behind_s"]
    how = "up to date" if late < found.end - found.start else f"{span(late)} behind the stream"
    parts = [f"{found}: {found.rows:,} events"]
    if learned.figures:
        parts += [f"{name} {_figure(learned.figures, name)}" for name in of.gate if name in learned.figures]
        parts.append(f"judged and learned in {learned.seconds:.1f} s")
    return ", ".join([*parts, f"{how}, {span(behind['behind_clock_s'])} behind the clock"])


def alarms(of: Line, learned: Learned, before: set[str]) -> Iterator[str]:
    """Yield what is said of figures that raise an alarm and did not before, and of those that do no longer."""
    for name in learned.alarms:
        if name in before:
            continue
        limits = of.charts.limits(name)
        assert limits is not None  # it has judged
        ends = [f"at least {limits.low:.4f}"] if limits.low > float("-inf") else []
        ends += [f"at most {limits.high:.4f}"] if limits.high < float("inf") else []
        stops = "; the model is not published until it is back, and goes on learning" if name in of.gate else ""
        yield f"ALARM: {name} is {_figure(learned.figures, name)}, expected {' and '.join(ends)}{stops}"
    for name in sorted(before - set(learned.alarms)):
        figure = _figure(learned.figures, name)
        yield f"over: {name} is " + (figure if figure == _UNDEFINED else f"{figure}, as expected")


def _figure(figures: dict[str, float], name: str) -> str:
    value = figures.get(name, float("nan"))
    known = metrics().get(name.rpartition(".")[2])
    return _UNDEFINED if value != value else format(value, known.shown if known else ".4f")
