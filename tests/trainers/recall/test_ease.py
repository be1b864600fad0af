import numpy as np
import pytest

from livetrain.trainers.recall import ease


def test_is_stationary_where_its_diagonal_is_free():
    """At the least of |X - X B|^2 + r |B|^2 with zeros on the diagonal the gradient is 0 everywhere else."""
    draw = np.random.default_rng(0)
    x = (draw.random((60, 25)) < 0.2).astype(float)
    user, item = (np.tile(part, 2) for part in np.nonzero(x))  # every event twice: it counts once
    found = ease.weights(user, item, 25, 7.0)
    gradient = -x.T @ (x - x @ found) + 7.0 * found
    assert np.abs(gradient[~np.eye(25, dtype=bool)]).max() < 1e-12
    assert not found.diagonal().any()
    assert np.abs(found).max() > 0.01


@pytest.mark.parametrize("most", [1, 3, 50])
def test_keeps_the_largest_by_size(most):
    found = np.random.default_rng(1).normal(size=(9, 9))
    found[np.diag_indices(9)] = 0
    places, scores = ease.largest(found, most)
    for row, (place, score) in enumerate(zip(places, scores, strict=True)):
        wanted = np.sort(np.abs(found[row]))[::-1][: min(most, 8)]
        assert np.allclose(np.sort(np.abs(score[place >= 0]))[::-1], wanted)
        assert np.allclose(found[row, place[place >= 0]], score[place >= 0])
        assert (np.diff(place[place >= 0]) > 0).all()
