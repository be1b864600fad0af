import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binomtest

from livetrain.modules.metrics.binary import auc
from livetrain.modules.metrics.certainty import Z, auc_interval, rate_interval


@pytest.mark.parametrize(("hits", "rows"), [(0, 1), (0, 12), (3, 12), (12, 12), (7, 1000), (1, 10**6)])
def test_a_rates_interval_is_wilsons(hits, rows):
    wanted = binomtest(hits, rows).proportion_ci(0.95, method="wilson")
    assert rate_interval(hits / rows, rows) == pytest.approx((wanted.low, wanted.high), rel=1e-4, abs=1e-12)


def deviation(value, positives, negatives):
    """Hanley and McNeil's (1982), from the two chances Q1 and Q2 that they take it apart into, N1 and N2 replaced."""
    one, two, half = value / (2 - value), 2 * value**2 / (1 + value), (positives + negatives) / 2
    spread = value * (1 - value) + (half - 1) * (one - value**2) + (half - 1) * (two - value**2)
    return math.sqrt(spread / (positives * negatives))


@pytest.mark.parametrize(("measured", "positives", "negatives"), [(0.7, 500, 4500), (0.9, 6, 6), (0.55, 5, 700)])
def test_an_aucs_interval_ends_where_it_would_be_a_surprise(measured, positives, negatives):
    def surprise(value):
        return abs(measured - value) - Z * deviation(value, positives, negatives)

    wanted = brentq(surprise, 1e-9, measured), brentq(surprise, measured, 1 - 1e-9)
    assert auc_interval(measured, positives, negatives) == pytest.approx(wanted, abs=1e-6)


def test_an_auc_at_the_end_is_not_certain():
    low, high = auc_interval(1.0, 6, 6)
    assert high == pytest.approx(1.0)
    assert 0.5 < low < 0.8
    assert auc_interval(0.0, 6, 6) == pytest.approx((0.0, 1 - low))


def test_intervals_hold_the_true_auc_as_often_as_they_say():
    rng = np.random.default_rng(1)
    labels, held = np.repeat([1, 0], (8, 30)), 0
    true = 0.760250  # Phi(1 / sqrt(2)), of normal scores one apart
    for _ in range(1000):
        low, high = auc_interval(auc(labels, rng.normal(size=38) + labels), 8, 30)
        held += low <= true <= high
    assert 930 <= held <= 985
