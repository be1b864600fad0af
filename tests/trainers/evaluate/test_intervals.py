"""Intervals: a draw is the evaluation of rows that are there so often, and what it takes depends on ids alone."""

import math

import numpy as np
import pytest
import torch

from livetrain.modules.metrics import binary
from livetrain.modules.tasks.binary import Binary
from livetrain.modules.tasks.regression import Regression
from livetrain.modules.tasks.retrieval import Retrieval
from livetrain.trainers.evaluate.draws import Draws, paired
from livetrain.trainers.evaluate.evaluation import Evaluation
from livetrain.trainers.evaluate.intervals import Bootstrap


def rows(size=600, seed=0):
    generator = np.random.default_rng(seed)
    logits = np.round(generator.normal(-0.5, 1, size), 1).astype(np.float32)
    labels = (generator.random(size) < binary.sigmoid(logits)).astype(np.float32)
    return labels, logits, generator.integers(-(2**62), 2**62, 40)[generator.integers(0, 40, size)]


def copied(labels, logits, groups, times):
    """Write out rows of which each group is there so often, every copy a group of its own."""
    known, units = np.unique(groups, return_inverse=True)
    taken = [(np.flatnonzero(units == unit), copy) for unit, often in enumerate(times) for copy in range(int(often))]
    places = np.concatenate([chosen for chosen, _ in taken])
    copies = np.concatenate([np.full(len(chosen), number) for number, (chosen, _) in enumerate(taken)])
    return labels[places], logits[places], copies


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("make", [Binary, Regression, Retrieval])
def test_a_draw_is_the_evaluation_of_the_rows_that_it_takes(make, grouped):
    kind = make()
    kind.measure_lists([2, 10])
    labels, logits, groups = rows()
    if make is Regression:
        labels = labels * np.abs(logits)
    known, units = np.unique(groups, return_inverse=True)
    redrawn, bootstrap = kind.redrawn(labels, logits, units, grouped), Bootstrap(3, 7)
    for draw in range(3):
        times = bootstrap.times(known, draw)
        assert {0, 1, 2} <= set(times)
        own_labels, own_logits, copies = copied(labels, logits, groups, times)
        wanted = kind.figures(own_labels, own_logits, copies if grouped else None)
        found = redrawn(times)
        assert "auc" in found or "mae" in found
        assert found == pytest.approx({name: wanted[name] for name in found}, rel=1e-9)


def test_times_are_poisson_and_depend_on_the_id_the_draw_and_the_seed_alone():
    ids = np.arange(50_000)
    times = Bootstrap(9, 1).times(ids, 4)
    for often in range(5):
        chance = math.exp(-1) / math.factorial(often)
        assert abs((times == often).mean() - chance) < 5 * (chance / len(ids)) ** 0.5
    some = np.array([-3, 700, 41])
    assert Bootstrap(9, 1).times(some, 4)[1:].tolist() == times[some[1:]].tolist()
    for other in (Bootstrap(9, 1).times(ids, 5), Bootstrap(9, 2).times(ids, 4)):
        assert abs(np.corrcoef(times, other)[0, 1]) < 0.03


def test_an_interval_of_the_auc_is_that_of_drawing_with_replacement():
    labels, logits, groups = rows(4000)
    found = interval(labels, logits, groups)
    _, low, high = binary.bootstrap(labels, logits, groups, draws=400, seed=5)
    width = high - low
    assert abs(found["click.auc_low"] - low) < 0.2 * width
    assert abs(found["click.auc_high"] - high) < 0.2 * width
    rows_alone = interval(labels, logits, None)
    _, low, high = binary.bootstrap(labels, logits, draws=400, seed=5)
    assert abs(rows_alone["click.auc_low"] - low) < 0.2 * (high - low)


def interval(labels, logits, groups, **options):
    evaluation = Evaluation({"click": Binary()}, bootstrap=Bootstrap(400, 1), **options)
    groups = None if groups is None else torch.from_numpy(groups)
    column, tensors = torch.arange(len(labels)), (torch.from_numpy(part)[:, None] for part in (logits, labels))
    evaluation.update(*tensors, torch.ones(len(labels)), groups, numbers=column)
    return evaluation.compute()


def test_of_a_sample_of_groups_the_interval_is_as_wide_as_that_of_all():
    generator = np.random.default_rng(3)
    labels, logits, _ = rows(20_000)
    groups = generator.integers(0, 4000, 20_000)
    whole, part = interval(labels, logits, groups), interval(labels, logits, groups, memory="bounded", sample_rows=6000)
    assert part["gauc_groups_share"] == 0.25
    widths = [found["click.auc_high"] - found["click.auc_low"] for found in (whole, part)]
    assert abs(widths[1] - widths[0]) < 0.25 * widths[0]
    assert part["click.auc_low"] < part["click.auc"] < part["click.auc_high"]
    gaucs = [found["click.gauc_high"] - found["click.gauc_low"] for found in (whole, part)]
    assert 1.5 < gaucs[1] / gaucs[0] < 2.7  # of a quarter of the groups, and so is the figure


def test_what_no_draw_defines_has_no_interval():
    found = interval(np.ones(20, np.float32), np.zeros(20, np.float32), np.arange(20))
    assert math.isnan(found["click.auc_low"])
    assert found["click.log_loss_low"] == pytest.approx(found["click.log_loss"])
    assert not [name for name in found if name.startswith("click.positives_")]


def pairs(size, groups):
    """Two models on the same rows, the second a little better."""
    labels, logits, own = rows(size)
    noise = np.random.default_rng(9).normal(0, 0.3, size).astype(np.float32)
    return labels, logits + noise, logits + 0.2 * labels + noise, own if groups else None


def drawn(labels, logits, groups, seed=0, **options):
    evaluation = Evaluation({"click": Binary()}, bootstrap=Bootstrap(60, seed), **options)
    groups = None if groups is None else torch.from_numpy(groups)
    tensors = (torch.from_numpy(part)[:, None] for part in (logits, labels))
    evaluation.update(*tensors, torch.ones(len(labels)), groups, numbers=torch.arange(len(labels)))
    figures = evaluation.compute()
    return figures, evaluation.draws


@pytest.mark.parametrize("grouped", [True, False])
def test_draws_of_two_models_pair_as_in_a_bootstrap_that_knows_both_predictions(grouped, tmp_path):
    labels, one, other, groups = pairs(500, grouped)
    units = np.arange(len(labels)) if groups is None else groups
    known = np.unique(units)
    differences = []
    for draw in range(60):
        times = dict(zip(known, Bootstrap(60, 0).times(known, draw), strict=True))
        taken = np.repeat(np.arange(len(labels)), [int(times[unit]) for unit in units])  # rows, as often as drawn
        aucs = [binary.auc(labels[taken], logits[taken]) for logits in (one, other)]
        differences.append(aucs[1] - aucs[0])
    wanted = np.percentile(differences, (2.5, 97.5))
    (_, left), (figures, right) = (drawn(labels, logits, groups) for logits in (one, other))
    assert paired(left, right, "click.auc") == pytest.approx(tuple(wanted), abs=1e-9)
    low, high = paired(right, left, "click.auc")
    assert (-high, -low) == pytest.approx(tuple(wanted), abs=1e-9)
    assert high - low < 0.5 * (figures["click.auc_high"] - figures["click.auc_low"])  # what pairing is for
    right.write(tmp_path)
    assert paired(left, Draws.read(tmp_path), "click.auc") == pytest.approx(tuple(wanted), abs=1e-6)


def test_draws_of_other_rows_do_not_pair():
    labels, one, other, groups = pairs(300, True)
    _, left = drawn(labels, one, groups)
    order = np.random.default_rng(1).permutation(300)
    assert paired(left, drawn(labels[order], other[order], groups[order])[1], "click.auc") is not None
    assert paired(left, drawn(1 - labels, other, groups)[1], "click.auc") is None
    assert paired(left, drawn(labels[1:], other[1:], groups[1:])[1], "click.auc") is None
    assert paired(left, left, "click.none") is None
    assert paired(left, Draws(), "click.auc") is None


def test_draws_that_are_not_whole_are_none(tmp_path):
    assert Draws.read(tmp_path) == Draws()
    for text in ("", "{", "[]", '{"values": {"click.auc": 1}}', '{"values": [], "rows": {}}'):
        (tmp_path / "draws.json").write_text(text)
        assert Draws.read(tmp_path) == Draws()
