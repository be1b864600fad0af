"""Blended lists, beside lists made by hand."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from livetrain.trainers.recall import merging
from livetrain.trainers.recall.channels import unseen
from livetrain.trainers.recall.figures import Measured, figures
from livetrain.trainers.recall.merging import Settings


def by_hand(lists: list[list[int]], settings: Settings) -> list[int]:
    """One request's candidates, the best first."""
    worth: dict[int, float] = {}
    for own, weight, quota, reserve in zip(lists, *settings, strict=True):
        for rank, item in enumerate(own[:quota], 1):
            bonus = settings.weights.sum() + 1 if rank <= reserve else 0
            worth[item] = worth.get(item, 0) + weight / (60 + rank) + bonus
    return sorted((item for item in worth if worth[item] > 0), key=lambda item: (-worth[item], item))


LISTS = st.lists(st.lists(st.integers(0, 9), unique=True, max_size=5), min_size=2, max_size=2)
WEIGHTS = st.sampled_from([0.0, 0.5, 1.0, 3.0])


@given(
    st.lists(LISTS, min_size=1, max_size=3),
    st.tuples(WEIGHTS, WEIGHTS),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.integers(0, 1),
    st.lists(st.integers(0, 9), min_size=3, max_size=3),
)
def test_a_blend_is_what_its_formula_says(requests, weights, quotas, reserve, wanted):
    settings = Settings(np.array(weights), np.array(quotas), np.array([0, reserve]))
    lists = [np.full((len(requests), 5), -1) for _ in range(2)]
    for row, request in enumerate(requests):
        for channel, own in enumerate(request):
            lists[channel][row, : len(own)] = own
    found = merging.pairs(lists)
    worth = merging.scores(found, settings)
    place = merging.places(found, worth)
    assert (merging.brought(found, settings).any(1) == (worth > 0)).all()  # one rule of what is a candidate
    of_wanted = merging.place_of(found, worth, merging.of_items(found, np.array(wanted[: len(requests)])))
    for row, request in enumerate(requests):
        own = (found.request == row) & (worth > 0)
        made = found.item[own][np.argsort(place[own])].tolist()
        assert made == by_hand(request, settings)
        there = made.index(wanted[row]) + 1 if wanted[row] in made else np.iinfo(np.int64).max
        assert of_wanted[row] == there


def test_figures_of_two_channels_by_hand():
    """Two requests: of the first both channels bring the item, of the second the second channel alone."""
    measured = Measured(["one", "two"], Settings(np.array([2.0, 1.0]), np.array([2, 2]), np.zeros(2, int)), size=2)
    measured.add([np.array([[4, 5], [1, 2]]), np.array([[5, 4], [7, -1]])], np.array([4, 7]))
    found = figures(measured, np.array([1, 2]), np.array([1, 0]), ["some"])
    assert found["blend"] == {"recall_2": 0.5}  # 7 stands third: 2/61, 2/62, 1/61
    assert found["channels"]["one"] == {"recall_2": 0.5, "only_2": 0.0, "share_2": 1.0, "sole_2": 0.5}
    assert found["channels"]["two"] == {"recall_2": 1.0, "only_2": 0.0, "share_2": 0.5, "sole_2": 0.0}
    assert found["gain"]["2"] == {"over": "two", "recall": -0.5, "standard_error": np.sqrt(0.5) / 2}
    assert found["slices"]["some"]["requests"] == 1
    assert found["slices"]["some"]["blend"] == {"recall_2": 1.0}
    only = Measured(["one", "two"], Settings(np.array([1.0, 2.0]), np.array([2, 2]), np.zeros(2, int)), size=2)
    only.add([np.array([[4, 5], [1, 2]]), np.array([[5, 4], [7, -1]])], np.array([4, 7]))
    assert figures(only, np.array([1, 2]), np.zeros(2, int), [])["channels"]["two"]["only_2"] == 0.5


def test_a_channel_of_weight_0_brings_its_reserve_alone():
    """The second channel is the only one to bring 7 and 8; without a reserve neither is a candidate."""
    for reserve, hits in ((0, 0.0), (1, 0.5)):
        settings = Settings(np.array([1.0, 0.0]), np.array([2, 2]), np.array([0, reserve]))
        measured = Measured(["one", "two"], settings, size=4)
        measured.add([np.array([[4, 5], [4, 5]]), np.array([[7, 8], [7, 8]])], np.array([7, 8]))
        found = figures(measured, np.array([1, 2]), np.zeros(2, int), [])
        assert found["blend"] == {"recall_4": hits}
        assert found["channels"]["two"]["sole_4"] == reserve / (2 + reserve)


@given(st.lists(st.integers(-1, 6), min_size=4, max_size=4), st.sets(st.integers(0, 6)), st.integers(1, 4))
def test_what_was_seen_is_left_out_in_order(own, seen, count):
    rows = np.array([own, own])
    found = unseen(rows, np.array([7 + item for item in seen], np.int64), 7, count)  # of the second request
    kept = [item for item in own if item >= 0 and item not in seen]
    assert found[1].tolist() == (kept + [-1] * count)[:count]
    assert found[0].tolist() == ([item for item in own if item >= 0] + [-1] * count)[:count]
