"""Whether a figure is like those before it: a control chart (Shewhart 1931) over the last increments of a stream.

A figure raises an alarm that is worse than the median of the last `WINDOW` by more than `DEVIATIONS` of their standard
deviations, and by more than a tolerance. One that does is kept out of the chart: so a change that lasts goes on raising
it until the charts begin anew, and a bad increment does not widen the limits of those after it.

Of a few events a figure says nothing, good or bad: it is neither judged nor charted, and an alarm stays what it was.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from livetrain.configs.schema import Recipe
from livetrain.modules.tasks.registry import kinds, metrics

WINDOW = 24  # figures that a chart goes by
FEWEST = 8  # below which it judges nothing
EVENTS = 100  # of an increment, or of a slice of it, below which its figures are left alone
DEVIATIONS = 4.0


@dataclass(frozen=True)
class Limits:
    """Between which a figure raises no alarm."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def limits(before: Sequence[float], better: int, tolerance: float, least: float = -math.inf) -> Limits | None:
    """Return the limits of a figure, or None where too few are known.

    Args:
        before: those that raised no alarm, the newest last.
        better: 1 where more is, so that it has no upper limit; -1 where less is; 0 where it must not change.
        tolerance: by how much it may differ in any case.
        least: that it can be.

    Example:
        >>> limits([0.6, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.8], better=1, tolerance=0.01)
        Limits(low=0.48619100647, high=inf)
    """
    if len(before) < FEWEST:
        return None
    last = np.array(before[-WINDOW:])
    centre = float(np.median(last))
    room = max(DEVIATIONS * float(last.std(ddof=1)), tolerance)
    low = -math.inf if better < 0 else max(round(centre - room, 12), least)
    return Limits(low, math.inf if better > 0 else round(centre + room, 12))


class Charts:
    """The charts of a model's figures.

    Args:
        recipe: names the tasks and slices: of each task the leading metric, log loss and PCOC are watched, overall and
            by slice.
        kept: figures by name, as `kept` has them.
        alarmed: the figures that raised an alarm last.

    Attributes:
        kept: JSON-able: of each figure those that raised no alarm.
        alarmed: the figures that raised one last.
    """

    def __init__(
        self, recipe: Recipe, kept: Mapping[str, Sequence[float]] | None = None, alarmed: Iterable[str] = ()
    ) -> None:
        self._tolerance = recipe.follow.tolerance if recipe.follow is not None else 0.0
        self._better = watched(recipe)
        self.kept = {name: list((kept or {}).get(name, ())) for name in self._better}
        self._least = {name: metrics()[name.rpartition(".")[2]].least for name in self._better}
        self.alarmed = [name for name in alarmed if name in self._better]

    def _limits(self, name: str) -> Limits | None:
        least = -math.inf if _ratio(name) else self._least[name]
        return limits(self.kept[name], self._better[name], self._tolerance, least)

    def limits(self, name: str) -> Limits | None:
        """Return between what a figure is expected, as it is reported."""
        found = self._limits(name)
        if found is None or not _ratio(name):
            return found
        return Limits(math.exp(found.low), math.exp(found.high))

    def take(self, figures: Mapping[str, float]) -> list[str]:
        """Judge the figures of an increment, and keep those that raise no alarm; return the names of those that do.

        Of fewer than `EVENTS` rows (``rows``, ``<slice>.rows``) they are not judged.
        A figure that is undefined raises one where it was known before, and where it is of the whole increment: a slice
        may well have no rows.
        """
        before_it, self.alarmed = self.alarmed, []
        for name, before in self.kept.items():
            part = "".join(f"{each}." for each in name.split(".")[:-2])
            if figures.get(f"{part}rows", 0) < EVENTS:
                self.alarmed += [name] if name in before_it else []
                continue
            value, known = _scaled(name, figures.get(name, math.nan)), self._limits(name)
            if not math.isfinite(value):
                if known is not None and name.count(".") == 1:
                    self.alarmed.append(name)
            elif known is not None and value not in known:
                self.alarmed.append(name)
            else:
                self.kept[name] = [*before, value][-WINDOW:]
        return self.alarmed


def watched(recipe: Recipe) -> dict[str, int]:
    """Return the figures that are watched, as ``<task>.<metric>`` and ``<slice>.<task>.<metric>``: what is better."""
    return {
        f"{part}{task}.{name}": kind.metrics[name].better
        for part in ("", *(f"{name}." for name in recipe.evaluate.slices))
        for task, kind in kinds(recipe.tasks).items()
        for name in dict.fromkeys((kind.leading, "log_loss", "pcoc"))
        if name in kind.metrics and (recipe.evaluate.group_by or not kind.metrics[name].grouped)
    }


def _ratio(name: str) -> bool:
    return name.endswith(".pcoc")


def _scaled(name: str, value: float) -> float:
    """Return a figure as its chart has it: half and twice are equally far from 1."""
    if not _ratio(name):
        return value
    return math.log(value) if 0 < value < math.inf else math.nan
