"""Trained on few of the negatives, evaluated on all impressions: the predictions are calibrated, down a chain too."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from livetrain.cluster import launch
from tests import samples

KEPT = 0.2


@pytest.fixture(scope="module")
def thinned(tmp_path_factory):
    """A dataset whose training split has lost four in five of its rows without a click."""
    data = samples.write(tmp_path_factory.mktemp("thinned") / "data", rows=12_000)
    file = data / "train/part-0.parquet"
    table = pq.read_table(file)
    kept = (table["label"].to_numpy() == 1) | (np.random.default_rng(0).random(len(table)) < KEPT)
    pq.write_table(table.filter(pa.array(kept)), file)
    return data


@pytest.mark.slow
@pytest.mark.parametrize("told", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_predictions_are_calibrated_if_the_recipe_tells_of_it(thinned, tmp_path, told):
    model = samples.MULTI_TASK["model"] | {"kind": "esmm", "chains": [["click", "like"]]}
    tasks = {"click": {"label": "label", "negatives_kept": KEPT if told else 1.0}, "like": {"label": "like"}}
    recipe = samples.recipe(
        thinned, model=model, tasks=tasks, train__epochs=2, train__evaluate_every=1, optimizers__sparse__lr=0.02
    )
    found = launch.train(recipe, tmp_path)
    ratios = [found[f"test.{task}.pcoc"] for task in tasks]
    assert all(ratio == pytest.approx(1, abs=0.15) for ratio in ratios) if told else min(ratios) > 1.3
    assert found["test.click.auc"] > 0.75
