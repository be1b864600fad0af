"""Curves of as many points as an eye can use: a page shall not grow with a run's log."""

import numpy as np

MOST = 300  # points of a curve


def joined(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (n,) values by step with those that stand for few steps joined to the one before, as a weighted mean.

    A value is the mean over the steps since the one before. At evaluations a run logs ahead of its turn: the mean of
    one step among means of twenty looks like an event, and is noise.

    Example:
        >>> steps, values = joined(np.array([20, 40, 41, 61]), np.array([4.0, 3.0, 24.0, 2.0]))
        >>> steps.tolist(), values.tolist()
        ([20, 41, 61], [4.0, 4.0, 2.0])
    """
    covered = np.diff(steps, prepend=0)
    usual = np.median(covered)
    starts = np.flatnonzero((covered >= usual / 2) | (np.arange(len(steps)) == 0))
    return _means(steps, values, covered, starts)


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (n,) values by step as at most MOST means of neighbours, each at its last step."""
    group = -(-len(steps) // MOST)
    return _means(steps, values, np.ones(len(steps)), np.arange(0, len(steps), group))


def _means(
    steps: np.ndarray, values: np.ndarray, weights: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the last step and the weighted mean of each group, given where groups start."""
    ends = np.append(starts[1:], len(steps)) - 1
    return steps[ends], np.add.reduceat(values * weights, starts) / np.add.reduceat(weights, starts)
