import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from livetrain.trainers.recall import als
from livetrain.trainers.recall.als import Weighing
from livetrain.trainers.runtime import ranks

USERS, ITEMS, DIM = 23, 17, 5


def events(seed=0):
    """(N,) users, items and weights of no two events of one pair; item 3 has none."""
    draw = np.random.default_rng(seed)
    pairs = draw.permutation(USERS * ITEMS)[:150]
    pairs = pairs[pairs % ITEMS != 3]
    users = 1000 - 7 * (pairs // ITEMS)
    return (torch.from_numpy(part) for part in (users, pairs % ITEMS, draw.uniform(0.5, 3, len(pairs))))


def start():
    return torch.from_numpy(np.random.default_rng(1).normal(0, 0.1, (ITEMS, DIM)))


def plain(weighing, epochs):
    """The same on dense matrices, a row at a time; the items' vectors and each epoch's loss, term by term."""
    users, items, weights = (part.numpy() for part in events())
    known, user = np.unique(users, return_inverse=True)
    w = np.zeros((len(known), ITEMS))
    w[user, items] = weights
    y, x, losses = start().numpy() * (w.sum(0) > 0)[:, None], np.zeros((len(known), DIM)), []
    a, lam = weighing.unobserved, weighing.regularisation
    reg_u = lam * (w.sum(1) + a * (w.sum(0) > 0).sum()) ** weighing.power
    reg_i = lam * (w.sum(0) + a * len(known)) ** weighing.power

    def half(w, other, reg):
        out = np.zeros((len(w), DIM))
        for row, weight in enumerate(w):
            if weight.any():
                matrix = (other.T * weight) @ other + a * other.T @ other + reg[row] * np.eye(DIM)
                out[row] = np.linalg.solve(matrix, weight @ other)
        return out

    for _ in range(epochs):
        x = half(w, y, reg_u)
        s = x @ y.T
        losses.append((w * (s - 1) ** 2).sum() + a * (s**2).sum() + (reg_u @ (x**2).sum(1)) + (reg_i @ (y**2).sum(1)))
        y = half(w.T, x, reg_i)
    return y, losses


def fitted(weighing, epochs):
    """This rank's part of a fit on the events of every R-th row, and the losses that it was told."""
    part = [column[ranks.rank() :: ranks.world()] for column in events()]
    users, items = als.both_sides(*part, ITEMS)
    losses = []
    vectors = start()[ranks.rank() :: ranks.world()]
    for _ in range(epochs):
        vectors, loss = als.sweep(users, items, vectors, weighing)
        losses.append(loss)
    return vectors.numpy(), losses, [len(users.starts) - 1, len(users.others) + len(items.others)]


@pytest.mark.parametrize("weighing", [Weighing(0.2, 0.05, 1.0), Weighing(1.0, 0.3, 0.0)])
def test_equals_solving_dense_systems_and_its_loss_is_the_formula_s(weighing):
    expected, losses = plain(weighing, 3)
    vectors, told, _ = fitted(weighing, 3)
    assert np.allclose(vectors, expected, rtol=0, atol=1e-10)
    assert np.allclose(told, losses, rtol=1e-10)
    assert told == sorted(told, reverse=True)
    assert not vectors[3].any()


def test_pieces_of_long_rows_and_many_short_ones_change_nothing(monkeypatch):
    expected, losses = plain(Weighing(0.2, 0.05, 1.0), 2)
    monkeypatch.setattr(als, "STEP", 4 * DIM**2)
    vectors, told, _ = fitted(Weighing(0.2, 0.05, 1.0), 2)
    assert np.allclose(vectors, expected, rtol=0, atol=1e-10)
    assert np.allclose(told, losses, rtol=1e-10)
    monkeypatch.setattr(als, "STEP", 3 * DIM)  # pieces of three events
    assert np.allclose(fitted(Weighing(0.2, 0.05, 1.0), 2)[0], expected, rtol=0, atol=1e-10)


def test_two_ranks_equal_one_and_each_holds_about_half(two_ranks):
    whole, losses, (users, held) = fitted(Weighing(0.2, 0.05, 1.0), 3)
    parts = two_ranks.run(fitted, Weighing(0.2, 0.05, 1.0), 3)
    for rank, (vectors, told, _) in enumerate(parts):
        assert np.allclose(vectors, whole[rank::2], rtol=0, atol=1e-10)
        assert np.allclose(told, losses, rtol=1e-10)
    assert sum(part[2][0] for part in parts) == users
    assert sum(part[2][1] for part in parts) == held
    assert max(part[2][1] for part in parts) < 0.7 * held


def test_a_half_is_that_of_the_library_by_a_factor():
    """The library aims at 1 where an event is, and this loss at 1 and 0 together: at 1 / (1 + a)."""
    implicit = pytest.importorskip("implicit", reason="the oracle, implicit, is not installed")
    users, items, _ = events()
    a, reg = 0.5, 0.2
    pairs, _ = als.both_sides(users, items, torch.ones(len(users), dtype=torch.float64), ITEMS)
    found, _ = als.solve(pairs, start(), a * als.gram(start()), torch.full((len(pairs.starts) - 1,), reg))
    oracle = implicit.als.AlternatingLeastSquares(DIM, regularization=reg / a, dtype=np.float64, num_threads=1)
    oracle.item_factors = start().numpy()
    counts = [part.numpy() for part in (pairs.others, pairs.starts)]
    matrix = csr_matrix((np.full(len(users), 1 + 1 / a), *counts), (len(counts[1]) - 1, ITEMS))
    expected = oracle.recalculate_user(np.arange(matrix.shape[0]), matrix)
    assert np.allclose(found.numpy(), expected / (1 + a), rtol=0, atol=1e-7)
