import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from livetrain.modules.serving.rerank import DPP


def by_hand(relevance: np.ndarray, vectors: np.ndarray, places: int, theta: float) -> list[int]:
    """Try every item at every place, in float64, by the determinant itself; stop where none is left above zero."""
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similar = units @ units.T
    chosen: list[int] = []
    for _ in range(min(places, len(relevance))):
        rest = [i for i in range(len(relevance)) if i not in chosen]
        before = np.linalg.det(similar[np.ix_(chosen, chosen)]) if chosen else 1.0
        left = {i: np.linalg.det(similar[np.ix_([*chosen, i], [*chosen, i])]) / before for i in rest}
        gain = {i: theta * relevance[i] + (1 - theta) * math.log(left[i]) for i in rest if left[i] > 1e-6}
        if not gain:
            return chosen
        chosen.append(max(gain, key=gain.get))
    return chosen


def draw(seed: int, items: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(items, generator=generator), torch.randn(items, width, generator=generator)


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 6), st.sampled_from([0.1, 0.5, 0.9, 1.0]))
def test_equals_the_greedy_search_by_determinants(seed, items, places, theta):
    relevance, vectors = draw(seed, items, 8)
    wanted = by_hand(relevance.double().numpy(), vectors.double().numpy(), places, theta)
    found = DPP(places, theta)(relevance[None], vectors[None])[0].tolist()
    assert found[: len(wanted)] == wanted
    assert found[len(wanted) :] == [-1] * (places - len(wanted))


def test_requests_do_not_see_each_other_nor_padding():
    parts = [draw(seed, items, 8) for seed, items in enumerate([7, 3, 5])]
    relevance, vectors = torch.full((3, 7), 100.0), torch.randn(3, 7, 8)
    valid = torch.zeros(3, 7, dtype=torch.bool)
    for row, (r, v) in enumerate(parts):
        relevance[row, : len(r)], vectors[row, : len(r)], valid[row, : len(r)] = r, v, True
    for rerank in (DPP(5, 0.6), torch.jit.script(DPP(5, 0.6))):
        found = rerank(relevance, vectors, valid)
        for row, (r, v) in enumerate(parts):
            assert torch.equal(found[row], DPP(5, 0.6)(r[None], v[None])[0])
    assert found[1].tolist()[3:] == [-1, -1]


def test_copies_come_last_by_relevance():
    """Two vectors span all items: the third place on goes by relevance, and no item comes twice."""
    vectors = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    relevance = torch.tensor([5.0, 4.0, 1.0, 2.0, 4.5])
    assert DPP(5, 0.5)(relevance[None], vectors[None])[0].tolist() == [0, 3, 4, 1, 2]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_ends_of_theta(scale):
    relevance, vectors = draw(3, 20, 16)
    order = DPP(20, 1.0)(scale * relevance[None], vectors[None])[0]
    assert torch.equal(order, relevance.argsort(descending=True))
    assert torch.equal(DPP(6, 0.0)(scale * relevance[None], vectors[None]), DPP(6, 0.0)(relevance[None], vectors[None]))


@pytest.mark.parametrize(("places", "theta"), [(0, 0.5), (3, -0.1), (3, 1.5)])
def test_refuses_what_makes_no_list(places, theta):
    with pytest.raises(ValueError, match="places must be 1 or more and theta between 0 and 1"):
        DPP(places, theta)
