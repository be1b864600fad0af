"""What benchmarks share: scores and gradients are those of the rows, whether they lie as rows or as requests."""

import importlib

import numpy as np
import pytest
import torch

from livetrain.trainers.data.write.requests import convert
from livetrain.trainers.runtime.run_folder import recipe_of
from tests import samples
from tests.trainers.train import test_runs_on_requests as on_requests

REQUESTS = {"data__batch_size": 24, "data__layout": "request", "data__candidates": on_requests.EACH}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The recipe of the rows, the recipe of the same as requests, and a run of the second."""
    folder = tmp_path_factory.mktemp("benchmarks")
    on_requests.write(folder / "flat")
    convert(folder / "flat", folder / "requests", most=on_requests.EACH)
    asked = {"train__epochs": 1, "export__after_training": False, "evaluate__group_by": "user"}
    run = on_requests.trained(folder / "requests", folder / "runs", **asked, **REQUESTS)
    return samples.recipe(folder / "flat", **asked), recipe_of(run), run


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend("benchmarks")
    return importlib.import_module


def test_scores(made, benchmark):
    rows, requests, run = made
    quality = benchmark("quality")
    (wanted,), (found,) = quality.scores(rows, run).values(), quality.scores(requests, run).values()
    assert len(wanted.labels) == on_requests.ROWS
    for name in ("labels", "groups", "rows"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    np.testing.assert_allclose(found.logits, wanted.logits, atol=1e-5)
    assert found.logits.std() > 0.01


def test_scores_with_the_length_of_each_row_s_history(made, benchmark, monkeypatch):
    rows, requests, run = made
    farm_quality = benchmark("farm_quality")
    monkeypatch.setattr(farm_quality, "SPARSE", {"simulated": "history"})
    wanted, found = farm_quality.scores(rows, run), farm_quality.scores(requests, run)
    assert wanted.keys() == found.keys()
    assert wanted["events"].max() > 1
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=name)


def test_gradients_of_requests_are_those_of_their_rows(made, benchmark):
    _, requests, _ = made
    noise = benchmark("noise")
    torch.manual_seed(0)
    model = noise.Model(requests).eval()
    (given,) = noise.Reader(noise.Source.open(requests, "train"), requests, rank=0, world=1, shuffle=True).batches(
        0, 0, 1
    )
    batch, loss, parameters = (
        noise.sampled(requests, noise.PLACES)[0],
        noise.Loss(requests),
        list(model.dense.parameters()),
    )
    dense, embeddings = noise._by_task(model, loss, batch, parameters)
    losses, _ = loss(model(given.ids, given.dense, given.weights, given.vectors, given.requests), given)
    wanted = torch.autograd.grad(losses.sum(), parameters, materialize_grads=True)
    torch.testing.assert_close(dense, torch.cat([each.flatten() for each in wanted])[None], atol=1e-6, rtol=1e-4)
    assert dense.abs().max() > 1e-3
    assert embeddings["user"].shape[1] == len(given.rows)  # one of each row, which requests have of each request
