"""How sure a figure of few rows is: 95 % intervals in closed form, which are wide where rows are few, also at 0 and 1.

A bootstrap (trainers/evaluate/intervals.py) knows that rows of one user belong together, and costs a pass per draw;
these take rows as independent, and cost nothing: they stand where each of many small parts needs a bar.
"""

import math
from collections.abc import Callable

Z = 1.96  # of 95 %
_HALVINGS = 40


def rate_interval(rate: float, rows: float) -> tuple[float, float]:
    """Return the ends of Wilson's score interval of a rate that was observed on so many rows.

    Formula: (rate + z^2 / 2n +- z sqrt(rate (1 - rate) / n + z^2 / 4n^2)) / (1 + z^2 / n) (Wilson, "Probable inference,
    the law of succession, and statistical inference", JASA 22, 1927).

    Example:
        >>> [round(end, 3) for end in rate_interval(0.0, 10)]
        [0.0, 0.278]
    """
    share = Z * Z / rows
    middle, half = rate + share / 2, math.sqrt(share * rate * (1 - rate) + share * share / 4)
    return max((middle - half) / (1 + share), 0.0), min((middle + half) / (1 + share), 1.0)


def auc_interval(auc: float, positives: float, negatives: float) -> tuple[float, float]:
    """Return the ends of a score interval of an AUC, given how many rows of each class it was measured on.

    The ends are the AUCs A from which the measured one is z standard deviations away, with Hanley and McNeil's variance
    A (1 - A) (1 + N (1 - A) / (2 - A) + N A / (1 + A)) / (positives negatives), N = (positives + negatives) / 2 - 1
    (Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2", Statistics
    in Medicine 25, 2006: method 5).

    Example:
        >>> [round(end, 2) for end in auc_interval(0.9, 6, 6)]
        [0.56, 0.98]
    """
    spare = (positives + negatives) / 2 - 1

    def near(other: float) -> bool:
        spread = 1 + spare * (1 - other) / (2 - other) + spare * other / (1 + other)
        return abs(auc - other) <= Z * math.sqrt(other * (1 - other) * spread / (positives * negatives))

    return _edge(near, auc, 0.0), _edge(near, auc, 1.0)


def _edge(near: Callable[[float], bool], inside: float, outside: float) -> float:
    """Return where `near` changes between a place where it holds and an end, by bisection."""
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if near(middle) else (inside, middle)
    return inside
