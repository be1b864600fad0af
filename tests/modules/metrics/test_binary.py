import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sklearn

from livetrain.modules.metrics import binary

FINITE = st.floats(allow_nan=False, width=32)  # infinities and subnormals included
TIED = st.sampled_from([-2.0, -0.5, 0.0, 0.25, 3.0])


@st.composite
def rows(draw, scores=FINITE | TIED):
    size = draw(st.integers(1, 60))
    labels = draw(hnp.arrays(np.int8, size, elements=st.integers(0, 1)))
    return labels, draw(hnp.arrays(np.float32, size, elements=scores))


def both(labels) -> bool:
    return 0 < labels.sum() < len(labels)


def simulated(size=3000, users=200, seed=0, spread=1.0):
    generator = np.random.default_rng(seed)
    logits = generator.normal(-1, spread, size).astype(np.float32)
    labels = (generator.random(size) < binary.sigmoid(logits)).astype(np.float32)
    return labels, logits, generator.integers(-users, users, size)


def loop_over_groups(labels, scores, groups):
    aucs, sizes = [], []
    for group in np.unique(groups):
        mine = groups == group
        if both(labels[mine]):
            aucs.append(sklearn.roc_auc_score(labels[mine], np.unique(scores[mine], return_inverse=True)[1]))
            sizes.append(mine.sum())
    return np.array(aucs), np.array(sizes)


@given(rows())
def test_auc_equals_sklearn(data):
    labels, scores = data
    found = binary.auc(labels, scores)
    if both(labels):
        assert found == pytest.approx(
            sklearn.roc_auc_score(labels, np.unique(scores, return_inverse=True)[1]), abs=1e-12
        )
    else:
        assert math.isnan(found)


@given(rows(), st.randoms(use_true_random=False))
def test_auc_ignores_the_order_of_rows_and_rising_transforms(data, random):
    labels, scores = data
    order = random.sample(range(len(labels)), len(labels))
    expected = binary.auc(labels, scores)
    assert binary.auc(labels[order], scores[order]) == pytest.approx(expected, nan_ok=True, abs=1e-12)
    ranked = np.unique(scores, return_inverse=True)[1]
    assert binary.auc(labels, ranked) == pytest.approx(expected, nan_ok=True, abs=1e-12)
    assert binary.auc(1 - labels, scores) == pytest.approx(1 - expected, nan_ok=True, abs=1e-12)


def test_auc_at_the_extremes_of_float32():
    huge, tiny = np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal
    scores = np.array([-np.inf, -huge, -tiny, -0.0, 0.0, tiny, huge, np.inf], dtype=np.float32)
    assert binary.auc([0, 0, 0, 0, 1, 1, 1, 1], scores) == (15 + 0.5) / 16  # -0 and 0 tie
    assert binary.auc([0, 1], np.array([tiny, 2 * tiny], dtype=np.float32)) == 1.0


def test_a_diverged_model_has_no_metrics():
    labels, logits, groups = np.array([0, 1, 1, 0]), np.array([0.5, np.nan, 1.0, 0.0]), np.zeros(4, int)
    found = [binary.auc(labels, logits), binary.gauc(labels, logits, groups), binary.uauc(labels, logits, groups)]
    found += [function(labels, logits) for function in (binary.log_loss, binary.normalised_entropy, binary.pcoc)]
    assert all(math.isnan(x) for x in [*found, *binary.bootstrap(labels, logits)])


def test_no_rows_have_no_metrics():
    nothing = np.zeros(0)
    found = [binary.auc(nothing, nothing), *binary.gauc_and_uauc(nothing, nothing, nothing)]
    found += [function(nothing, nothing) for function in (binary.log_loss, binary.normalised_entropy, binary.pcoc)]
    assert all(math.isnan(x) for x in [*found, *binary.bootstrap(nothing, nothing)])
    assert binary.calibration(nothing, nothing, nothing) == []


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="one entry per row"):
        binary.auc([0, 1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="one entry per row"):
        binary.gauc([0, 1], [0.1, 0.2], [7])


@given(rows(), st.data())
def test_gauc_and_uauc_equal_a_loop_over_groups(data, more):
    labels, scores = data
    ids = st.integers(-2, 3).map(lambda x: x * 2**61)
    groups = more.draw(hnp.arrays(np.int64, len(labels), elements=ids))
    aucs, sizes = loop_over_groups(labels, scores, groups)
    gauc, uauc = binary.gauc(labels, scores, groups), binary.uauc(labels, scores, groups)
    if len(aucs):
        assert gauc == pytest.approx((aucs * sizes).sum() / sizes.sum(), abs=1e-12)
        assert uauc == pytest.approx(aucs.mean(), abs=1e-12)
    else:
        assert math.isnan(gauc)
        assert math.isnan(uauc)


def test_gauc_of_many_groups():
    labels, logits, groups = simulated()
    logits = np.round(logits, 1)  # ties
    aucs, sizes = loop_over_groups(labels, logits, groups)
    assert len(aucs) > 300
    found, found_sizes = binary.group_aucs(binary.group_runs(labels, logits, groups))
    both = ~np.isnan(found)
    assert 300 < both.sum() < len(found)
    np.testing.assert_allclose(found[both], aucs, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found_sizes[both], sizes)
    assert binary.gauc(labels, logits, groups) != pytest.approx(binary.uauc(labels, logits, groups), abs=1e-6)


def test_gauc_of_one_group_is_auc():
    labels, logits, groups = simulated()
    assert binary.gauc(labels, logits, groups * 0) == pytest.approx(binary.auc(labels, logits), abs=1e-12)


@given(rows(st.floats(-15, 15, width=32) | TIED))
def test_log_loss_equals_sklearn(data):
    labels, logits = data
    expected = sklearn.log_loss(labels, binary.sigmoid(logits), labels=[0, 1])
    assert binary.log_loss(labels, logits) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_log_loss_of_logits_where_probabilities_round():
    assert binary.log_loss([0, 1], np.array([200, -200], dtype=np.float32)) == 200
    assert binary.log_loss([1], np.array([50], dtype=np.float32)) == pytest.approx(math.exp(-50), rel=1e-12)
    assert binary.log_loss([1, 0], np.array([np.inf, -np.inf])) == 0
    assert binary.log_loss([0], np.array([np.inf])) == np.inf


@given(st.floats(-700, 700))
def test_sigmoid_keeps_its_relative_precision(logit):
    exact = 1 / (1 + math.exp(-logit)) if logit > -30 else math.exp(logit)
    assert binary.sigmoid(logit) == pytest.approx(exact, rel=2e-13)


def test_normalised_entropy_of_the_base_rate_is_one():
    labels = np.array([1, 0, 0, 0, 0, 1, 0, 0, 0, 0])
    assert binary.normalised_entropy(labels, np.full(10, math.log(0.2 / 0.8))) == pytest.approx(1, abs=1e-12)
    labels, logits, _ = simulated()
    rate = np.full(len(labels), labels.mean(dtype=np.float64))
    expected = sklearn.log_loss(labels, binary.sigmoid(logits)) / sklearn.log_loss(labels, rate)
    assert binary.normalised_entropy(labels, logits) == pytest.approx(expected, rel=1e-9)
    assert expected < 1
    assert math.isnan(binary.normalised_entropy([1, 1], [0.0, 1.0]))


def test_pcoc():
    assert binary.pcoc([1, 0, 0, 0], np.zeros(4)) == pytest.approx(2)
    assert binary.pcoc([1, 1], np.zeros(2)) == pytest.approx(0.5)
    assert math.isnan(binary.pcoc([0, 0], np.zeros(2)))


@given(rows(st.floats(-10, 10, width=32) | TIED), st.integers(1, 25))
def test_calibration_bins_hold_every_row_once(data, bins):
    labels, logits = data
    scores, positives, negatives = binary.count_by_score(labels, logits)
    points = binary.calibration(binary.sigmoid(scores), positives, negatives, bins)
    assert len(points) <= bins
    assert sum(p["count"] for p in points) == len(labels)
    assert sum(p["count"] * p["mean_y"] for p in points) == pytest.approx(labels.sum())
    assert sum(p["count"] * p["mean_p"] for p in points) == pytest.approx(binary.sigmoid(logits).sum())
    means = [p["mean_p"] for p in points]
    assert means == sorted(means)


def test_calibration_bins_are_of_equal_counts_without_ties():
    labels, logits, _ = simulated()
    assert len(np.unique(logits)) > 2990
    scores, positives, negatives = binary.count_by_score(labels, logits)
    points = binary.calibration(binary.sigmoid(scores), positives, negatives)
    assert len(points) == 20
    assert all(148 <= p["count"] <= 152 for p in points)
    assert all(abs(p["mean_p"] - p["mean_y"]) < 0.16 for p in points)  # four deviations: labels drawn from p itself


@settings(max_examples=50)
@given(rows(st.floats(-5, 5, width=32)), st.floats(0.01, 5))
def test_binned_auc_is_within_its_bound(data, width):
    labels, scores = data
    binned = np.floor(scores / width)
    counts = binary.count_by_score(labels, binned)[1:]
    bound = binary.auc_error_bound(*counts)
    if both(labels):
        assert abs(binary.auc_from_counts(*counts) - binary.auc(labels, scores)) <= bound + 1e-12
        assert 0 <= bound <= 0.5
    else:
        assert math.isnan(bound)


def test_bound_is_reached_when_bins_lose_everything():
    labels, counts = [0, 0, 1], (np.array([1]), np.array([2]))
    lost = abs(binary.auc(labels, [0.1, 0.2, 0.3]) - binary.auc_from_counts(*counts))
    assert binary.auc_error_bound(*counts) == 0.5 == lost


def delong(labels, scores):
    """DeLong et al. (Biometrics 1988): the deviation of AUC from the placements of each class among the other."""
    positives, negatives = scores[labels == 1][:, None], scores[labels == 0][None, :]
    wins = (positives > negatives) + 0.5 * (positives == negatives)
    return math.sqrt(wins.mean(1).var(ddof=1) / wins.shape[0] + wins.mean(0).var(ddof=1) / wins.shape[1])


@pytest.mark.parametrize("decimals", [6, 0])
def test_bootstrap_agrees_with_delong(decimals):
    labels, logits, _ = simulated(1500)
    logits = np.round(logits, decimals)
    std, low, high = binary.bootstrap(labels, logits, draws=800)
    assert std == pytest.approx(delong(labels, logits), rel=0.12)
    assert low < binary.auc(labels, logits) < high
    assert high - low == pytest.approx(2 * 1.96 * std, rel=0.15)


def test_bootstrap_by_group_sees_that_copies_are_not_news():
    labels, logits, _ = simulated(500)
    copies = np.arange(500).repeat(9)
    rows_std, _, _ = binary.bootstrap(labels[copies], logits[copies], draws=400)
    group_std, _, _ = binary.bootstrap(labels[copies], logits[copies], copies * 7919, draws=400)
    assert group_std == pytest.approx(delong(labels, logits), rel=0.15)
    assert rows_std == pytest.approx(group_std / 3, rel=0.2)


def test_bootstrap_repeats_and_leaves_out_draws_of_one_class():
    labels, logits, groups = simulated(300)
    assert binary.bootstrap(labels, logits, groups, seed=3) == binary.bootstrap(labels, logits, groups, seed=3)
    assert binary.bootstrap(labels, logits, groups, seed=3) != binary.bootstrap(labels, logits, groups, seed=4)
    std, low, high = binary.bootstrap([1, 0, 0, 0], [3.0, 1.0, 2.0, 4.0])
    assert 0 <= low <= high <= 1
    assert std > 0
    assert all(math.isnan(x) for x in binary.bootstrap([1, 1], [0.0, 1.0]))
