import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from livetrain.trainers.observe.report.thinning import MOST, joined, thinned

SPANS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@given(spans=SPANS, seed=st.integers(0, 99))
def test_joining_keeps_the_sum_over_steps_and_leaves_no_short_span(spans, seed):
    steps = np.cumsum(spans)
    values = np.random.default_rng(seed).normal(size=len(spans))
    ends, means = joined(steps, values)
    np.testing.assert_allclose(np.diff(ends, prepend=0) @ means, np.array(spans) @ values, atol=1e-9)
    assert ends[-1] == steps[-1]
    assert (np.diff(ends) >= np.median(spans) / 2).all()


def test_a_short_curve_is_left_as_it_is():
    steps, values = np.arange(1, MOST + 1), np.random.default_rng(0).normal(size=MOST)
    for found, wanted in zip(thinned(steps, values), (steps, values), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_long_curve_is_means_of_neighbours():
    steps = np.arange(1, 2 * MOST + 2)
    ends, means = thinned(steps, steps.astype(float))
    assert len(ends) <= MOST
    assert (ends[:2].tolist(), means[:2].tolist()) == ([3, 6], [2.0, 5.0])
    assert ends[-1] == steps[-1]
