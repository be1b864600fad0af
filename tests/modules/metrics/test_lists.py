"""Metrics of lists equal their mean over every order of rows with equal scores, one group after another."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetrain.modules.metrics import lists
from livetrain.modules.metrics.binary import group_runs

TOP = (1, 2, 3, 10)


def of_order(labels: list[int], k: int) -> dict[str, float]:
    """The figures of one list, best first, as textbooks define them."""
    places = [place for place, label in enumerate(labels, 1) if label]
    ideal = sum(1 / math.log2(1 + place) for place in range(1, min(len(places), k) + 1))
    return {
        "list_mrr": 1 / places[0],
        "list_map": sum(number / place for number, place in enumerate(places, 1)) / len(places),
        f"list_hr_{k}": float(places[0] <= k),
        f"list_recall_{k}": sum(place <= k for place in places) / len(places),
        f"list_ndcg_{k}": sum(1 / math.log2(1 + place) for place in places if place <= k) / ideal,
    }


def by_hand(labels: list[int], scores: list[float]) -> dict[str, float] | None:
    """The mean over all orders that the scores allow; None without a positive."""
    if not any(labels):
        return None
    orders = [
        [labels[row] for row in order]
        for order in itertools.permutations(range(len(labels)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    every = [{name: x for k in TOP for name, x in of_order(order, k).items()} for order in orders]
    return {name: sum(one[name] for one in every) / len(every) for name in every[0]}


row = st.tuples(st.sampled_from([0, 0, 1]), st.sampled_from([0.0, -1.5, 2.0, math.inf]))


@given(st.lists(st.lists(row, min_size=1, max_size=6), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_equal_the_mean_over_all_orders(groups, shuffle):
    rows = [(label, score, number * 2**61) for number, group in enumerate(groups) for label, score in group]
    shuffle.shuffle(rows)
    found = lists.by_group(group_runs(*(np.array(column) for column in zip(*rows, strict=True))), TOP)
    assert found.shape == (len(groups), len(lists.names(TOP)))
    for group, figures in zip(groups, found, strict=True):
        wanted = by_hand(*(list(column) for column in zip(*group, strict=True)))
        if wanted is None:
            assert np.isnan(figures).all()
        else:
            assert dict(zip(lists.names(TOP), figures.tolist(), strict=True)) == pytest.approx(wanted, abs=1e-12)


def test_many_rows_of_one_score_are_worth_what_random_orders_are():
    generator = np.random.default_rng(0)
    labels = np.arange(400) < 7
    found = dict(
        zip(lists.names((20,)), lists.by_group(group_runs(labels, labels * 0.0, labels * 0), (20,))[0], strict=True)
    )
    drawn = [of_order(generator.permutation(labels).tolist(), 20) for _ in range(4000)]
    for name, value in found.items():
        sample = np.array([one[name] for one in drawn])
        assert abs(sample.mean() - value) < 5 * sample.std() / len(sample) ** 0.5
    assert found["list_recall_20"] == pytest.approx(20 / 400, abs=1e-12)
    assert found["list_hr_20"] == pytest.approx(1 - math.comb(393, 20) / math.comb(400, 20), rel=1e-9)


def test_a_large_group_keeps_its_digits():
    labels, size = np.zeros(200_000), 200_000
    labels[::1000] = 1
    runs = group_runs(labels, -np.arange(size), labels * 0)
    places = np.flatnonzero(labels) + 1
    found = dict(zip(lists.names((10_000,)), lists.by_group(runs, (10_000,))[0], strict=True))
    assert found["list_map"] == pytest.approx((np.arange(1, 201) / places).mean(), rel=1e-9)
    assert found["list_recall_10000"] == 10 / 200
    assert found["list_mrr"] == 1


def test_no_rows():
    nothing = np.zeros(0)
    assert lists.by_group(group_runs(nothing, nothing, nothing.astype(int)), TOP).shape == (0, 14)
