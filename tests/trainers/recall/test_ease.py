import tracemalloc

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from livetrain.cluster import launch
from livetrain.configs.errors import BadInput
from livetrain.modules.fitted import fitted
from livetrain.modules.recall.fitted import NO_ID, Lists, Rows
from livetrain.trainers.export.export import export
from livetrain.trainers.recall import ease
from tests.trainers.recall.tastes import ITEMS, recipe, write

FEATURES = {"item": {"type": "id"}, "history": {"type": "sequence", "max_length": 5}}


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


def test_takes_as_much_memory_as_it_says():
    draw = np.random.default_rng(0)
    user, item = np.arange(6000) % 1500, draw.integers(0, 1500, 6000)
    ease.weights(user, item, 1500, 7.0)
    tracemalloc.start()
    ease.weights(user, item, 1500, 7.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / 1500**2 == pytest.approx(ease.BYTES, abs=1)


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


@pytest.mark.parametrize("user", [None, "user"])
def test_a_run_scores_as_x_b(tmp_path, user):
    data = write(tmp_path / "data")
    model = {"kind": "ease", "key": "item", "history": "history", "regularisation": 5.0, "user": user}
    made = recipe(data, model=model, tables={}, train={}, features=FEATURES)
    launch.train(made, tmp_path / "runs")
    rows = pq.read_table(data / "train").to_pandas()
    rows = rows[rows.label == 1]
    x = np.zeros((len(rows), ITEMS))
    for number, (history, item, name) in enumerate(zip(rows.history, rows.item, rows.user, strict=True)):
        x[number if user is None else name, [item] if user else [*history, item]] = 1
    known = x.any(0)
    p = np.linalg.inv(x.T @ x + 5 * np.eye(ITEMS))
    b = np.where(np.eye(ITEMS) == 1, 0, -p / np.diag(p)) * known[:, None] * known
    export(tmp_path / "runs/factors", out=tmp_path / "out")
    scorer = torch.jit.load(tmp_path / "out/model.pt")
    request = {"item": torch.arange(ITEMS), "history": torch.tensor([3, 7, 8])}, {"history": torch.tensor([3])}
    found = scorer.rank(*request, {})["click"].numpy()
    assert np.allclose(found, b[[3, 7, 8]].sum(0), atol=1e-6)
    assert found.max() > 0.05


def test_events_of_no_user_are_refused(tmp_path):
    model = {"kind": "ease", "key": "item", "history": "history", "user": "user"}
    made = fitted(recipe(tmp_path, model=model, tables={}, train={}, features=FEATURES))
    one = Lists(np.array([3]), np.array([1]))
    rows = Rows(0, np.array([True]), {"item": one, "history": one}, {"user": np.array([NO_ID])})
    with pytest.raises(BadInput, match="model.user: no positive row has a user in column 'user'; name the column with"):
        made.fit(iter([rows]))


def test_a_catalogue_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ease, "ITEMS", 39)
    data = write(tmp_path / "data")
    made = recipe(
        data, model={"kind": "ease", "key": "item", "history": "history"}, tables={}, train={}, features=FEATURES
    )
    with pytest.raises(BadInput, match="ease holds a number for each pair of items, and 40 of them take 0 GB; it"):
        launch.train(made, tmp_path / "runs")
