"""What picks the best checkpoint, also where the data leave its metric undefined."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from livetrain.cluster import launch
from livetrain.configs.errors import BadInput
from livetrain.trainers.data.read.statistics import Statistics
from livetrain.trainers.evaluate import selection
from livetrain.trainers.observe.report.summary import summary_table
from livetrain.trainers.runtime import runlog
from livetrain.trainers.train import preflight
from tests import samples

RECIPE = samples.recipe("data", tasks={"click": {"label": "label"}, "watch": {"label": "watch", "kind": "regression"}})
TOWERS = {
    "tasks": {"click": {"label": "label", "kind": "retrieval"}},
    "train__select": "click.auc",
}
LISTS = ("mrr", "map", "hr_5", "recall_5", "ndcg_5")
maybe = st.sampled_from([None, math.nan, 0.2, 0.4, 0.6])


@given(st.lists(st.tuples(maybe, maybe), min_size=1, max_size=6))
def test_the_selected_metric_comes_before_its_stand_in(evaluations):
    """AUCs and log losses of evaluations in turn: the first of the best AUC wins, or the first of the least loss."""
    best, kept = None, None
    for place, (auc, loss) in enumerate(evaluations):
        metrics = {"click.auc": auc, "click.log_loss": loss}
        if selection.is_better(RECIPE, metrics, best):
            best, kept = metrics, place
    known = [(place, auc) for place, (auc, _) in enumerate(evaluations) if auc is not None and not math.isnan(auc)]
    losses = [(place, loss) for place, (_, loss) in enumerate(evaluations) if loss is not None and not math.isnan(loss)]
    if known:
        assert kept == min(known, key=lambda pair: -pair[1])[0]
    elif losses:
        assert kept == min(losses, key=lambda pair: pair[1])[0]
    else:
        assert kept == len(evaluations) - 1


@pytest.mark.parametrize(
    ("changes", "single", "unknown", "wanted"),
    [
        ({}, {}, {}, []),
        ({}, {"click": 1.0}, {}, ["click.auc", "click.gauc", "click.uauc", "click.ne"]),
        ({"evaluate__group_by": None}, {"click": 0.0}, {}, ["click.auc", "click.ne"]),
        (
            {"evaluate__top": [5]},
            {"click": 0.0},
            {},
            ["click.auc", "click.gauc", "click.uauc", "click.ne", *(f"click.list_{name}" for name in LISTS)],
        ),
        ({"evaluate__group_by": None}, {}, {"click": 1.0}, ["click.auc", "click.log_loss", "click.ne"]),
        (TOWERS, {"click": 1.0}, {}, ["click.auc", "click.gauc", "click.uauc"]),
    ],
)
def test_what_labels_leave_undefined(changes, single, unknown, wanted):
    recipe = samples.recipe("data", **changes)
    found = selection.undefined(recipe, "click", Statistics(9, {}, {}, {}, {"click": 0.0} | unknown, single))
    assert sorted(found) == sorted(wanted)


def test_of_retrieval_without_a_positive_nothing_is_defined():
    recipe = samples.recipe("data", **TOWERS)
    statistics = Statistics(9, {}, {}, {}, {"click": 0.0}, {"click": 0.0})
    assert set(selection.undefined(recipe, "click", statistics)) == set(selection.selectable(recipe))


def test_equal_numbers_have_no_order():
    statistics = Statistics(9, {}, {}, {}, {"watch": 0.0}, {"watch": 2.5})
    assert selection.undefined(RECIPE, "watch", statistics) == ["watch.xauc"]
    assert selection.stand_in(RECIPE, "watch.xauc") == "watch.mae"


def one_class(data, *splits, label=1):
    """Give splits labels of one class."""
    for split in splits:
        file = data / split / "part-0.parquet"
        table = pq.read_table(file)
        values = pa.array([label] * len(table), pa.int8())
        pq.write_table(table.set_column(table.schema.get_field_index("label"), "label", values), file)


@pytest.fixture
def data(tmp_path):
    return samples.write(tmp_path / "data", rows=400)


def shown(result) -> str:
    console = Console(record=True, width=160)
    console.print(summary_table(result))
    return " ".join(console.export_text().split())  # which wraps at the table's width


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.slow
def test_a_validation_split_of_one_class_is_judged_by_log_loss(data, tmp_path, label):
    one_class(data, "valid", label=label)
    result = launch.train(samples.recipe(data, train__epochs=3, evaluate__top=[5]), tmp_path)
    lines = runlog.read(tmp_path / "small")
    losses = {line["step"]: line["click.log_loss"] for line in lines if line.get("split") == "valid"}
    assert len(losses) == 6
    assert result["best_step"] == min(losses, key=losses.get)
    assert (result["selected"], result["best_by"]) == ("click.auc", "click.log_loss")
    notes = [line["text"] for line in lines if line["kind"] == "note"]
    lists = "" if label else "".join(f", click.list_{name}" for name in LISTS)
    assert (
        f"valid: every known label of click is {label}, so click.auc, click.gauc, click.uauc, click.ne{lists} are "
        "undefined there; click.log_loss picks the best checkpoint"
    ) in notes
    said = "valid: click.auc is undefined, for it needs rows of both classes; click.log_loss picks the best checkpoint"
    assert notes.count(said) == 1
    text = shown(json.loads((tmp_path / "small/result.json").read_text()))
    row = text.partition("│ AUC │")[2].partition("│ GAUC")[0]
    assert row.count("undefined") == 1
    assert "needed: rows of both classes" in text
    assert "best checkpoint chosen by click.log_loss, for click.auc is undefined on valid" in text


def test_a_test_split_of_one_class_has_no_auc_and_that_is_said(data, tmp_path):
    one_class(data, "test")
    result = launch.train(samples.recipe(data, train__epochs=1), tmp_path)
    assert (result["best_by"], math.isnan(result["test.click.auc"])) == ("click.auc", True)
    text = shown(json.loads((tmp_path / "small/result.json").read_text()))
    assert "undefined: AUC, NE; needed: rows of both classes" in text
    assert "best checkpoint" not in text


def test_groups_of_one_class_are_found_when_they_are_measured(data, tmp_path):
    recipe = samples.recipe(data, train__epochs=1, train__select="click.gauc", evaluate__group_by="movie")
    for split in ("valid", "test"):
        file = data / split / "part-0.parquet"
        table = pq.read_table(file)
        pq.write_table(table.set_column(1, "movie", pa.array(range(len(table)))), file)
    result = launch.train(recipe, tmp_path)
    assert result["best_by"] == "click.log_loss"
    notes = [line.get("text") for line in runlog.read(tmp_path / "small")]
    assert (
        "valid: click.gauc is undefined, for it needs a group with rows of both classes; click.log_loss picks the best "
        "checkpoint"
    ) in notes


def test_a_validation_split_that_can_pick_nothing_is_refused(data):
    recipe = samples.recipe(data, tasks={"spent": {"label": "gift", "kind": "regression", "unknown": True}})
    file = data / "valid/part-0.parquet"
    table = pq.read_table(file)
    pq.write_table(table.set_column(table.schema.get_field_index("gift"), "gift", pa.nulls(len(table))), file)
    with pytest.raises(BadInput) as refused:
        preflight.check(recipe, lambda text: None)
    assert str(refused.value) == (
        f"{data}/valid: tasks.spent.label 'gift' is null in every row, so spent.xauc is undefined and nothing picks "
        "the best checkpoint; take other rows as valid, or set train.select to another task's metric"
    )


def test_one_class_to_learn_from_is_said(data):
    one_class(data, "train")
    notes = []
    preflight.check(samples.recipe(data), notes.append)
    assert "train: every known label of click is 1, and nothing else can be learned of it" in notes
