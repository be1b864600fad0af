"""Kinds of tasks by name, and the metric that leads them."""

import pytest
import torch

import livetrain.modules.models  # noqa: F401
from livetrain.configs.registry import TASKS
from livetrain.configs.schema import Task
from livetrain.modules.tasks.binary import Binary
from livetrain.modules.tasks.kind import Metric
from livetrain.modules.tasks.registry import kinds, leading, register_task
from livetrain.trainers.evaluate.evaluation import Evaluation
from livetrain.trainers.evaluate.selection import check_select, is_better, selectable
from livetrain.trainers.observe.progress import State
from livetrain.trainers.observe.report.contents import contents
from livetrain.trainers.observe.report.summary import summary_table
from tests import samples
from tests.trainers.observe.report.test_report import outcome, panel, training, write


@register_task("test_sober")
class Sober(Binary):
    """Writes what a binary task writes, and is led by another of its metrics, of which less is better."""

    leading = "log_loss"


@register_task("test_new")
class New(Binary):
    """Has a metric that no other kind has."""

    metrics = {**Binary.metrics, "misses": Metric("misses", -1, headline=True, shown=",.0f")}
    leading = "misses"

    def figures(self, labels, logits, groups=None):
        return super().figures(labels, logits, groups) | {"misses": float(((logits > 0) != (labels > 0)).sum())}


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["auc", "gauc", "ne"], "auc"),
        (["auc", "gauc", "recall_100"], "recall_100"),
        (["xauc", "mae"], "xauc"),
        (["pcoc"], None),
        (["unheard", "auc"], "auc"),
        ([], None),
        (["log_loss", "auc"], "log_loss"),
        (["auc", "log_loss"], "auc"),
        (["auc", "misses"], "misses"),
    ],
)
def test_a_task_is_led_by_what_its_kind_says(names, wanted):
    assert leading(names) == wanted


def evaluated(kind: str) -> dict[str, float]:
    evaluation = Evaluation(kinds({"a": Task(label="a", kind=kind)}))
    logits, labels = torch.tensor([[-2.0], [1.0], [0.5]]), torch.tensor([[0.0], [1.0], [0.0]])
    evaluation.update(logits, labels, torch.ones(3))
    return evaluation.compute()


def test_an_evaluation_writes_the_leading_metric_first():
    assert list(evaluated("binary"))[1] == "a.auc"
    assert list(evaluated("test_sober"))[1] == "a.log_loss"
    assert evaluated("test_new")["a.misses"] == 1.0


@pytest.mark.parametrize(("kind", "name"), [("test_sober", "log_loss"), ("test_new", "misses")])
def test_selection_progress_and_report_follow(tmp_path, kind, name):
    recipe = samples.recipe("unused", tasks={"a": {"label": "label", "kind": kind}})
    assert recipe.select() == f"a.{name}"
    check_select(recipe)
    assert selectable(recipe)[f"a.{name}"] == -1
    assert is_better(recipe, {f"a.{name}": 0.2}, {f"a.{name}": 0.3})
    assert not is_better(recipe, {f"a.{name}": 0.4}, {f"a.{name}": 0.3})
    lines = [
        {"kind": "eval", "step": step, "split": "valid", f"a.{name}": value, "a.auc": 0.5}
        for step, value in ((1000, 0.5), (2000, 0.25), (3000, 0.75))
    ]
    state = State()
    state.take(lines[0])
    title = kinds(recipe.tasks)["a"].metrics[name].title
    assert state.leading == (f"valid {title}", 0.5)
    shown = panel(contents(write(tmp_path / "run", [*training(), *lines])), title)
    best = "0.2500" if name == "log_loss" else "0"
    assert shown.about == f"line: valid, best {best}; no test split evaluated"
    result = outcome(("a",)) | {f"test.a.{name}": 0.25}
    assert title in [cell for column in summary_table(result).columns for cell in column.cells]


def test_a_name_is_one_kinds_and_only_kinds_can_be_registered():
    class Other(Binary):
        pass

    with pytest.raises(ValueError, match="two tasks call themselves 'binary'"):
        register_task("binary")(Other)
    with pytest.raises(TypeError, match="Linear must be a subclass of"):
        register_task("test_linear")(torch.nn.Linear)


def test_a_metrics_name_means_one_thing():
    """What picks a checkpoint of one kind must not turn round because another kind was registered."""

    class Opposite(Binary):
        metrics = Binary.metrics | {"auc": Metric("AUC", -1)}

    with pytest.raises(ValueError, match="another kind's metric 'auc' is another one; name yours otherwise"):
        register_task("test_opposite")(Opposite)
    assert "test_opposite" not in TASKS
