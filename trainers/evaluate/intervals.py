"""Bootstrap intervals: how far a metric might be from here had other users, or other requests, been in the split.

Rows of one group are not independent, so whole groups are drawn (without groups, rows). A draw takes each group so many
times, independently of all others: Poisson with mean 1, which for many groups is what drawing with replacement gives
(Hanley and MacGibbon, "Creating non-parametric bootstrap samples using Poisson frequencies", Computer Methods and
Programs in Biomedicine 83, 2006). The number is a function of (seed, draw, id of the group) alone: it does not depend
on the order of rows, on other groups, or on the number of ranks.

The interval is from the 2.5 % point to the 97.5 % point of the metric over the draws in which it is defined.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from livetrain.modules.mixing import mix
from livetrain.modules.tasks.kind import Redrawn

LOW, HIGH = "_low", "_high"  # end the names of an interval's ends
_ENDS = (2.5, 97.5)
_MOST = 20  # times that a group is drawn: more have a chance of 2e-20
_CHANCES = np.cumsum([math.exp(-1) / math.factorial(times) for times in range(_MOST)])
_LIMITS = np.array([min(round(chance * 2**64), 2**64 - 1) for chance in _CHANCES], np.uint64)


class Bootstrap(NamedTuple):
    """How intervals are drawn: so many draws, from a seed. All runs have the same one, so that their draws pair."""

    draws: int
    seed: int = 0

    def times(self, groups: np.ndarray, draw: int) -> np.ndarray:
        """Return (U,) float64, how often a draw takes each of (U,) int64 groups.

        Example:
            >>> Bootstrap(100, seed=1).times(np.array([7, 8, 9]), draw=0)
            array([1., 2., 2.])
        """
        key = mix(np.array([self.seed * 2**20 + draw], np.uint64))
        return np.searchsorted(_LIMITS, mix(groups.view(np.uint64) ^ key), side="right").astype(np.float64)

    def drawn(
        self, figures: Mapping[str, float], groups: np.ndarray, redraw: Callable[[np.ndarray], Redrawn | None]
    ) -> dict[str, np.ndarray]:
        """Return by name the (draws,) figures of n rows that have an interval; nan where a draw leaves one undefined.

        Args:
            figures: by name, as they are reported. Measured on more rows than these, they may be a little off their
                own middle: the draws move with them.
            groups: (n,) int64 what is drawn together.
            redraw: given the place of each row's group among all groups, (n,), what `TaskKind.redrawn` returns.
        """
        if not self.draws or not len(groups):
            return {}
        known, units = np.unique(groups, return_inverse=True)
        redrawn = redraw(units)
        if redrawn is None:
            return {}
        middles = redrawn(np.ones(len(known)))
        found = [redrawn(self.times(known, draw)) for draw in range(self.draws)]
        return {
            name: figures[name] + np.array([one[name] for one in found]) - middle
            for name, middle in middles.items()
            if name in figures
        }


def ends(drawn: np.ndarray) -> tuple[float, float]:
    """Return the ends of the interval of (N,) draws; nan where fewer than two are defined."""
    values = drawn[np.isfinite(drawn)]
    low, high = np.percentile(values, _ENDS) if len(values) > 1 else (np.nan, np.nan)
    return float(low), float(high)


def intervals(drawn: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return `<metric>_low` and `<metric>_high` of what was drawn, by name."""
    return {f"{name}{end}": x for name in drawn for end, x in zip((LOW, HIGH), ends(drawn[name]), strict=True)}
