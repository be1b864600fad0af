"""Tasks that teach another one: what they learn from, what is exported, and what cannot be."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import livetrain
from livetrain.configs.schema import Recipe
from livetrain.modules.model import Model
from livetrain.modules.tasks.number import Number
from livetrain.modules.tasks.registry import register_task
from tests import samples, twins

TASKS = {
    "click": {"label": "click", "negatives_kept": 0.25},
    "soft": {"label": "score", "kind": "distilled", "of": "click"},
    "order": {"label": "score", "kind": "distilled_list", "of": "click", "group": "request"},
}


def recipe(**tasks) -> Recipe:
    return twins.recipe(tasks={name: task for name, task in (TASKS | tasks).items() if task})


MODELS = {"dnn": {"units": [8]}, "mmoe": {"pooled": ["history", "rating"], "expert_units": [8], "tower_units": [4]}}


@pytest.mark.parametrize("kind", MODELS)
def test_a_teacher_adds_no_output_and_sees_the_logit_of_all_impressions(kind):
    made = {"kind": kind, **MODELS[kind]}
    taught, alone = (Model(twins.recipe(tasks=tasks, model=made)) for tasks in (TASKS, {"click": TASKS["click"]}))
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (taught, alone)]
    assert shapes[0] == shapes[1]
    taught.load_state_dict(alone.state_dict())
    (batch,) = twins.batches(recipe(), 1)
    for training in (True, False):
        logits = taught.train(training)(batch.ids, batch.dense, batch.weights)
        (wanted,) = alone.train(training)(batch.ids, batch.dense, batch.weights).values()
        torch.testing.assert_close(logits["click"], wanted)
        for teacher in ("soft", "order"):  # what sampling adds to the odds is in no teacher's score
            torch.testing.assert_close(logits[teacher], wanted + (math.log(0.25) if training else 0.0))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"click": None}, "tasks: soft, order teach other tasks, and there are none to learn; add one with a label"),
        (
            {"soft": {**TASKS["soft"], "of": "clik"}},
            "tasks.soft.of: there is no task 'clik' that has a logit .did you mean 'click'",
        ),
        ({"soft": {**TASKS["soft"], "of": "order"}}, "tasks.soft.of: there is no task 'order' that has a logit"),
        (
            {"click": {"label": "click", "kind": "focal"}},
            "tasks.soft.of: 'click', of kind focal, predicts no probability, which is what distilled teaches",
        ),
        ({"soft": {"label": "score", "kind": "distilled"}}, "of"),
    ],
)
def test_a_teacher_needs_a_pupil_that_predicts_a_probability(tasks, message):
    with pytest.raises(ValueError, match=message):
        recipe(**tasks)


def test_a_kind_that_follows_says_whom():
    with pytest.raises(TypeError, match="task 'test_follows': a kind that follows, and no other, has a config that is"):

        @register_task("test_follows")
        class Follows(Number):
            follows = True


@pytest.mark.slow
def test_a_small_model_learns_from_a_large_ones_scores(tmp_path):
    """Also of rows that were never shown, whose label is null; on two ranks, resumed, exported, warm started."""
    data = samples.write(tmp_path / "data", rows=1200)
    teacher = samples.recipe(data, train__epochs=4)
    livetrain.train(teacher, runs=tmp_path / "runs")
    for split in ("train", "valid", "test"):
        livetrain.predict(tmp_path / "runs/small", data / split, tmp_path / "scores" / split)
        file = data / split / "part-0.parquet"
        table = pq.read_table(file)
        (predicted,) = (tmp_path / "scores" / split).glob("*.parquet")
        scores = pq.read_table(predicted)["click_score"]
        labels = table["label"].to_pylist()
        if split == "train":
            labels = [None if i % 3 else label for i, label in enumerate(labels)]
        table = table.set_column(table.column_names.index("label"), "label", pa.array(labels, pa.int8()))
        pq.write_table(table.append_column("score", scores), file)
    tasks = {
        "click": {"label": "label", "unknown": True},
        "soft": {"label": "score", "kind": "distilled", "of": "click"},
        "order": {"label": "score", "kind": "distilled_list", "of": "click", "group": "user", "weight": 0.1},
    }
    figures = {}
    for name, chosen in {"alone": ["click"], "taught": list(tasks)}.items():
        made = samples.recipe(
            data, name=name, tasks={task: tasks[task] for task in chosen}, train__epochs=4, cluster__workers=0
        )
        figures[name] = livetrain.train(made, runs=tmp_path / "runs").result
    assert figures["taught"]["test.soft.xauc"] > 0.6
    folder = tmp_path / "runs/taught/export"
    livetrain.export(tmp_path / "runs/taught")
    assert list(json.loads((folder / "signature.json").read_text())["tasks"]) == ["click"]
    assert set(json.loads((folder / "golden.json").read_text())["scores"]) == {"click"}
    again = samples.recipe(
        data,
        name="again",
        tasks=tasks,
        train__epochs=1,
        cluster__workers=0,
        train__warm_start=str(tmp_path / "runs/taught"),
    )
    found = livetrain.train(again, runs=tmp_path / "runs").result
    assert np.isfinite(found["test.click.auc"])
