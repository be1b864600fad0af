"""What a sweep chooses by: names, expressions, directions, and the sentences for what is none."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetrain.cluster.sweep.metric import parse
from livetrain.configs.errors import BadInput
from tests import samples

TASKS = {"click": {"label": "label"}, "like": {"label": "label"}}
RECIPE = samples.recipe("data", tasks=TASKS)
VALUES = {"click.auc": 0.7, "click.log_loss": 0.4, "like.auc": 0.6, "like.log_loss": 0.2, "like.pcoc": 1.1}


@pytest.mark.parametrize(
    ("text", "value", "sign"),
    [
        ("valid/auc", 0.7, 1),
        ("valid/click.auc", 0.7, 1),
        ("valid/like.log_loss", 0.2, -1),
        ("valid/auc + 0.5 * valid/like.auc", 1.0, 1),
        ("valid/auc - valid/like.log_loss", 0.5, 1),
        ("(valid/log_loss + valid/like.log_loss) / 2", 0.3, -1),
        ("-valid/log_loss", -0.4, 1),
        ("valid/auc/valid/log_loss", 1.75, 1),
        ("valid/auc ** 2", 0.49, 1),
        ("min(valid/auc, valid/like.auc)", 0.6, 1),
        ("sqrt(valid/auc * valid/like.auc)", math.sqrt(0.42), 1),
        ("min: abs(valid/like.pcoc - 1)", 0.1, -1),
        ("max: valid/auc + valid/log_loss", 1.1, 1),
    ],
)
def test_value_and_direction(text, value, sign):
    metric = parse(text, RECIPE)
    assert metric.value(VALUES) == pytest.approx(value, abs=1e-12)
    assert metric.sign == sign
    assert metric.score(value) == sign * value


@given(st.floats(0.01, 1), st.floats(0.01, 1))
def test_an_expression_is_python_arithmetic(a, b):
    found = parse("max: 2 * valid/auc - valid/like.log_loss / 3 + valid/auc ** 2", RECIPE)
    assert found.value({"click.auc": a, "like.log_loss": b}) == pytest.approx(2 * a - b / 3 + a**2)


@pytest.mark.parametrize("metrics", [{"click.auc": None}, {"click.auc": math.nan}, {}, {"click.auc": 0.0}])
def test_what_has_no_number_is_worst(metrics):
    metric = parse("log(valid/auc)", RECIPE)
    if metrics:
        assert math.isnan(metric.value(metrics))
        assert metric.score(metric.value(metrics)) == -math.inf == metric.score(None)
    else:
        with pytest.raises(KeyError):  # a metric that was checked is in every evaluation
            metric.value(metrics)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("valid/acu", "no run of this recipe writes valid/click.acu (did you mean 'click.auc'?)"),
        ("valid/share.auc", "no run of this recipe writes valid/share.auc"),
        ("test/auc", "a sweep chooses on the validation split alone; write valid/auc"),
        ("train/loss", "a sweep chooses on the validation split alone"),
        ("auc", "'auc' cannot stand in it"),
        ("click.auc", "'click.auc' cannot stand in it"),
        ("valid/auc +", "this is no expression over metrics"),
        ("1 + 2", "it names no metric"),
        ("__import__('os').system('true') + valid/auc", "cannot stand in it"),
        ("valid/auc if 1 else 2", "cannot stand in it"),
        ("most: valid/auc", "'most' is no direction"),
        ("valid/auc + valid/log_loss", "say whether more or less of it is better"),
        ("valid/pcoc", "say whether more or less of it is better"),
        ("max: min(valid/auc)", "it is no number for any values"),
        ("", "this is no expression"),
    ],
)
def test_what_is_no_metric_is_refused_in_one_sentence(text, sentence):
    with pytest.raises(BadInput) as error:
        parse(text, RECIPE)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_grouped_metrics_need_groups():
    parse("valid/gauc", RECIPE)
    with pytest.raises(BadInput, match=r"writes valid/click\.gauc"):
        parse("valid/gauc", samples.recipe("data", evaluate={}))
