"""Nearest items: as comparing with all finds them, filtered or not, by vectors of one interest or several."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetrain.configs.errors import BadInput
from livetrain.trainers.recall.nearest import Nearest, _merged
from tests import indexes

pytest.importorskip("faiss", reason="needs faiss-cpu, of the extra `index`")
WIDTH = 16


def unit(rows: int, seed: int) -> np.ndarray:
    return indexes.unit(rows, WIDTH, seed)


def by_hand(vectors: np.ndarray, queries: np.ndarray, count: int, allowed: np.ndarray | None = None) -> np.ndarray:
    scores = np.einsum("nd,b...d->bn...", vectors, queries)
    scores = scores.reshape(*scores.shape[:2], -1).max(2)
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


@pytest.mark.parametrize("interests", [None, 3])
def test_exact_is_what_comparing_with_all_finds(interests):
    vectors, queries = unit(200, 0), unit(12, 1)
    queries = queries if interests is None else queries.reshape(4, interests, WIDTH)
    allowed = np.random.default_rng(2).random(200) < 0.3
    index = Nearest.build(vectors, "exact", "none")
    for mask in (None, allowed):
        places, scores = index.search(queries, 10, mask)
        np.testing.assert_array_equal(places, by_hand(vectors, queries, 10, mask))
        products = np.einsum("bnd,b...d->bn...", vectors[places], queries)
        np.testing.assert_allclose(scores, products.reshape(*places.shape, -1).max(2), atol=1e-6)


@pytest.fixture(scope="module")
def graph() -> Nearest:
    return Nearest.build(unit(1500, 0), "hnsw", "none")


@pytest.mark.parametrize("share", [1.0, 0.5, 0.02, 0.002])
def test_a_filter_costs_a_graph_no_recall(graph, share):
    vectors, queries = unit(1500, 0), unit(50, 1)
    allowed = np.random.default_rng(3).random(1500) < share
    graph.effort = 64
    places, scores = graph.search(queries, 10, allowed)
    wanted = by_hand(vectors, queries, 10, allowed)[:, : allowed.sum()]
    assert allowed[places[places >= 0]].all()
    assert wanted.shape[1]
    assert np.mean([np.isin(own, found).mean() for own, found in zip(wanted, places, strict=True)]) > 0.95
    assert (places[:, wanted.shape[1] :] == -1).all()
    assert np.isneginf(scores[:, wanted.shape[1] :]).all()


@pytest.mark.parametrize(("kind", "stored"), [("hnsw", "float16"), ("hnsw", "int8"), ("exact", "int8")])
def test_smaller_numbers_find_nearly_the_same(tmp_path, kind, stored):
    vectors, queries = unit(500, 0), unit(50, 1)
    index = Nearest.build(vectors, kind, stored)
    index.effort = 500
    index.write(tmp_path / "index")
    places, scores = Nearest.read(tmp_path / "index").search(queries, 20, None)
    wanted = by_hand(vectors, queries, 20)
    assert np.mean([np.isin(own, found).mean() for own, found in zip(wanted, places, strict=True)]) > 0.95
    np.testing.assert_allclose(scores, np.einsum("bnd,bd->bn", vectors[places], queries), atol=0.02)
    assert Nearest.read(tmp_path / "index").effort == 500


@pytest.mark.slow
def test_lists_of_codes_search_all_lists_of_what_a_filter_leaves():
    vectors, queries = unit(10_000, 0), unit(20, 1)
    index = Nearest.build(vectors, "ivf_pq", "none")
    assert index.efforts()[0] == 1
    index.effort = 4
    allowed = np.zeros(10_000, bool)
    allowed[:30] = True  # of so few all lists are read: nothing is missed but by its code
    places, _ = index.search(queries, 30, allowed)
    assert (np.sort(places, 1) == np.arange(30)).all()


def test_too_few_items_for_codes_are_named():
    with pytest.raises(BadInput, match="takes 9,984 items to place its codes, and here are 100; use hnsw"):
        Nearest.build(unit(100, 0), "ivf_pq", "none")


@given(st.lists(st.tuples(st.integers(-1, 5), st.integers(0, 9)), min_size=1, max_size=12), st.integers(1, 14))
def test_lists_of_several_interests_merge_by_the_best_score(found, count):
    places = np.array([[place for place, _ in found]])
    scores = np.array([[-np.inf if place < 0 else score for place, score in found]], np.float32)
    best: dict[int, float] = {}
    for place, score in found:
        if place >= 0:
            best[place] = max(best.get(place, -np.inf), score)
    merged, told = (part[0] for part in _merged(places, scores, count))
    kept = {int(place): float(score) for place, score in zip(merged, told, strict=True) if place >= 0}
    assert sorted(kept.values(), reverse=True) == sorted(best.values(), reverse=True)[:count]
    assert all(best[place] == score for place, score in kept.items())
