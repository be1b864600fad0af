"""Runs of kind als: what they learn is what plain NumPy solves for, on any number of ranks, resumed or not."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from livetrain.configs.errors import BadInput
from livetrain.configs.load import dump_recipe
from livetrain.configs.schema import Recipe
from livetrain.trainers.export.export import export
from livetrain.trainers.recall import solving
from livetrain.trainers.runtime import ranks
from livetrain.trainers.train import preflight
from livetrain.trainers.train.loop import Job
from livetrain.trainers.train.sharding import shard
from tests.trainers.recall.tastes import DIM, ITEMS, recipe, write


def job(data: Path, run: Path, **changes: Any) -> Job:
    made = recipe(data, **changes)
    run.mkdir(parents=True, exist_ok=True)
    sources, statistics = preflight.check(made, lambda text: None)
    return Job(made, run, sources, statistics)


def fitted(made: Job, stop: int | None = None) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """Run a job on the ranks of this group; the result, this rank's last vectors, and the last background.

    With `stop` it ends after so many steps, without its end.
    """
    with ranks.alone(False):
        trainer = solving.Solving(made, torch.device("cpu"))
        last = []

        def finish() -> dict:
            last.extend([solving.taken(trainer.sharded, "item"), trainer.sharded.model.dense.network.towers.user])
            last[1] = last[1].background.clone()
            return {} if stop else type(trainer)._finish(trainer)

        trainer._finish = finish  # type: ignore[method-assign]
        trainer.total = stop or trainer.total
        result = trainer.run()
        return result, *last


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("taste"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> tuple[Path, tuple]:
    run = tmp_path_factory.mktemp("whole")
    return run, fitted(job(data, run))


def by_hand(data: Path, begin: np.ndarray, value: str | None = None) -> np.ndarray:
    """The items' vectors after three sweeps over dense matrices, with the settings of `recipe`."""
    table = pq.read_table(data / "train/part-0.parquet").to_pandas()
    table = table[table.label == 1]
    if value:
        table = table[table.seconds >= 10]
        w = np.zeros((table.user.max() + 1, 64))
        np.add.at(w, (table.user, table.item), 1 + 0.5 * np.log(table.seconds / 10))
    else:
        w = np.zeros((len(table), 64))
        for number, (history, item) in enumerate(zip(table.history, table.item, strict=True)):
            np.add.at(w[number], [*history, item], 1)
    known = w.sum(1) > 0
    y, a = begin * (w.sum(0) > 0)[:, None], 0.2

    def half(w, other, others):
        regular = 0.01 * (w.sum(1) + a * others)
        left = np.einsum("ui,id,ie->ude", w, other, other) + a * other.T @ other + regular[:, None, None] * np.eye(DIM)
        return np.linalg.solve(left, (w @ other)[:, :, None])[:, :, 0]

    for _ in range(3):
        x = half(w[known], y, (w.sum(0) > 0).sum())
        y = half(w[known].T, x, known.sum()) * (w.sum(0) > 0)[:, None]
    return y


def initial(made: Recipe) -> np.ndarray:
    with ranks.alone(False):
        return solving.taken(shard(made, torch.device("cpu")), "item").double().numpy()


EVENTS = {
    "tables__item__frozen": True,
    "model__user": "user",
    "model__value": "seconds",
    "model__threshold": 10.0,
    "model__confidence": 0.5,
}


@pytest.mark.parametrize("changes", [{}, EVENTS], ids=["users", "events"])
def test_equals_sweeps_by_hand(data, tmp_path, whole, changes):
    made = recipe(data, **changes)
    _, vectors, _ = fitted(job(data, tmp_path, **changes)) if changes else whole[1]
    wanted = by_hand(data, initial(made), changes.get("model__value"))
    assert np.abs(wanted).max() > 0.1
    assert np.allclose(vectors.numpy(), wanted, rtol=0, atol=2e-5)


def test_finds_what_the_users_like(whole):
    result = whole[1][0]
    assert result["test.click.recall_10"] > 0.9  # of ten items of a group five are masked; by chance it were 10 of 35


def test_stopped_and_gone_on_it_is_the_same(data, tmp_path, whole):
    made = job(data, tmp_path)
    fitted(made, stop=3)
    result, vectors, background = fitted(made)
    assert torch.equal(vectors, whole[1][1])
    assert torch.equal(background, whole[1][2])
    assert result["test.click.recall_10"] == whole[1][0]["test.click.recall_10"]


@pytest.mark.parametrize("sharding", ["row_wise", "column_wise", "data_parallel"])
def test_two_ranks_fit_what_one_does(data, tmp_path, whole, two_ranks, sharding):
    made = job(data, tmp_path, tables__item__sharding=sharding, optimizers__sparse={"kind": "sgd"})
    found = two_ranks.run(fitted, made)
    for rank, (result, vectors, background) in enumerate(found):
        assert torch.allclose(vectors, whole[1][1][rank::2], rtol=0, atol=1e-5)
        assert torch.allclose(background, whole[1][2], rtol=0, atol=1e-5)
        assert result["test.click.recall_10"] == whole[1][0]["test.click.recall_10"]


def test_begins_with_the_vectors_of_an_earlier_run(data, tmp_path, whole):
    run, (result, _, _) = whole
    assert result["best_step"] == 3  # after the first sweep, which a start continues
    (run / "config.yaml").write_text(dump_recipe(recipe(data)))
    _, found, _ = fitted(job(data, tmp_path / "on", train__warm_start=str(run), train__epochs=1))
    _, wanted, _ = fitted(job(data, tmp_path / "two", train__epochs=2))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_what_is_exported_folds_a_history_in(data, tmp_path, whole, quantize):
    run, _ = whole
    (run / "config.yaml").write_text(dump_recipe(recipe(data)))
    export(run, "last", tmp_path / "out", quantize)  # which proves it on held-out rows
    model, user, item = (torch.jit.load(tmp_path / "out" / f"{name}.pt") for name in ("model", "user", "item"))
    request = {"item": torch.tensor([3, 8]), "history": torch.tensor([3, 7, 7])}, {"history": torch.tensor([3, 0])}
    x, y = user(*request, {}), item(*request, {})
    assert torch.allclose(model(*request, {})["click"], (x * y).sum(1), atol=1e-6)
    assert not x[1].any()
    every = item({"item": torch.arange(ITEMS)}, {}, {}).double().numpy()
    seen, known = every[[3, 7, 7]], whole[1][1].double().numpy()
    items = int((known != 0).any(1).sum())
    left = seen.T @ seen + 0.2 * known.T @ known + 0.01 * (3 + 0.2 * items) * np.eye(DIM)
    assert np.allclose(x[0].numpy(), np.linalg.solve(left, seen.sum(0)), atol=1e-5)


def test_mistakes_are_named(data, tmp_path):
    other = {"tables__other": {"rows": 64, "dim": DIM, "hash": "modulo"}, "features__history__table": "other"}
    with pytest.raises(BadInput, match="features.history.table: it is other, and that of the item item"):
        fitted(job(data, tmp_path, **other))
    for changes, words in (
        ({"model__value": "seconds"}, "model.value: it is a column of events"),
        ({"model__key": "itme"}, "model.key: there is no feature 'itme' that is an id .did you mean 'item'"),
        (
            {"features__user": {"type": "id", "table": "item"}},
            "features.user: als knows the item and the history",
        ),
        ({"model__user": "usr"}, "model.user: .* has no column 'usr' .did you mean 'user'"),
        ({**EVENTS, "model__threshold": 1000.0}, "no row of the training split is an event"),
    ):
        with pytest.raises((BadInput, ValidationError), match=words):
            fitted(job(data, tmp_path, **changes))
